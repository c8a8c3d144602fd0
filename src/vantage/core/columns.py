"""Columns that a component declares and the training loop fills from the policy or a named frozen one before the advantage."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vantage.core.context import Context
from vantage.core.trajectories import Trajectories, declare

REFERENCE = "reference"
UNDER = "logp_under_"
"""A column of this name and a policy's: log-probability [N, T] under that named frozen policy."""

FILLERS: dict[str, Callable[[Trajectories, Context], Tensor]] = {
    "logp_ref": lambda batch, context: context.evaluate(batch, "logp", context.named(REFERENCE)),
    "logp_old": lambda batch, context: context.evaluate(batch, "logp"),
    "logp_current": lambda batch, context: context.evaluate(batch, "logp"),
    "entropy_old": lambda batch, context: context.evaluate(batch, "entropy"),
    "hidden_old": lambda batch, context: context.evaluate(batch, "hidden"),
}


def needed_policies(column: str) -> frozenset[str]:
    """Return the named policies that a column needs, so that a component that reads it need not declare both."""
    if column == "logp_ref":
        return frozenset({REFERENCE})
    return frozenset({column.removeprefix(UNDER)} if column.startswith(UNDER) else ())


def fill(batch: Trajectories, names: frozenset[str], context: Context) -> Trajectories:
    """Fill those of the named columns that can be filled from a policy and are not there yet; no gradient."""
    filled: dict[str, Tensor] = {}
    for name in sorted(names):
        if name in batch:
            continue
        if name in FILLERS:
            filled[name] = FILLERS[name](batch, context)
        elif name.startswith(UNDER):
            declare(
                name, "[N, T]", "log-probability under a named frozen policy", "a component that names it in `columns`"
            )
            filled[name] = context.evaluate(batch, "logp", context.named(name.removeprefix(UNDER)))
    return batch.replace(**filled) if filled else batch
