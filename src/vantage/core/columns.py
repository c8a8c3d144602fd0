"""Columns that a part declares and that the road fills from the policy or a named frozen one, before credit is given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.protocols import Policy
from vantage.core.trajectories import Trajectories

REFERENCE = "reference"


def _judge(policy: Policy, batch: Trajectories, want: str, micro: int | None) -> Tensor:
    with torch.no_grad():
        if micro is None or micro >= len(batch):
            return getattr(policy.evaluate(batch, frozenset({want})), want)
        parts = [batch[i : i + micro] for i in range(0, len(batch), micro)]
        return torch.cat([getattr(policy.evaluate(part, frozenset({want})), want) for part in parts])


FILLERS: dict[str, Callable[[Trajectories, Context, int | None], Tensor]] = {
    "logp_ref": lambda batch, context, micro: _judge(context.named(REFERENCE), batch, "logp", micro),
    "logp_old": lambda batch, context, micro: _judge(context.policy, batch, "logp", micro),
    "entropy_old": lambda batch, context, micro: _judge(context.policy, batch, "entropy", micro),
    "hidden_old": lambda batch, context, micro: _judge(context.policy, batch, "hidden", micro),
}

NEEDED_POLICIES = {"logp_ref": frozenset({REFERENCE})}
"""Named policies that a column needs, so that a part which reads it need not declare both."""


def fill(batch: Trajectories, names: frozenset[str], context: Context, micro: int | None = None) -> Trajectories:
    """Fill those of the named columns that can be filled from a policy and are not there yet; no gradient."""
    missing = [name for name in sorted(names) if name in FILLERS and name not in batch]
    return batch.replace(**{name: FILLERS[name](batch, context, micro) for name in missing}) if missing else batch
