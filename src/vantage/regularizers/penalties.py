"""Terms of the loss beside the objective: entropy and divergence to a frozen policy."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from vantage.core import above, at_least, component
from vantage.core.context import Context
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import FRESH, Trajectories
from vantage.functions.divergences import divergence
from vantage.functions.groups import leave_one_out_mean
from vantage.functions.rows import row_logp


@component
class EntropyBonus:
    """-coefficient * entropy of the policy at each decision; gradient flows through the entropy."""

    coefficient: float = 0.01
    wants = frozenset({"entropy"})
    label = "entropy"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term per decision [N, T]."""
        context.record_mean("entropy", evaluation.entropy, batch.mask)
        return -self.coefficient * evaluation.entropy


@component
class ReferenceKL:
    """coefficient * KL estimate between the policy and the reference, per decision, in the loss.

    Attributes:
        coefficient: beta, at least 0.
        estimator: "k1", "k2" or "k3"; see `divergence`.
    """

    coefficient: Annotated[float, at_least(0)] = 0.04
    estimator: Literal["k1", "k2", "k3"] = "k3"
    wants = frozenset({"logp"})
    columns = frozenset({"logp_ref"})
    label = "kl"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term per decision [N, T]."""
        reference = torch.where(batch.mask, batch.logp_ref, evaluation.logp.detach())
        estimate = divergence(evaluation.logp, reference, self.estimator)
        context.record_mean("kl/reference", estimate, batch.mask)
        return self.coefficient * estimate


@component
class OnlineKL:
    """coefficient * leave-one-out score-function estimate of KL(policy || reference) on the fresh rows, [N]; 0 on stored ones.

    Attributes:
        coefficient: lam, at least 0.
        clip: bound of the log-ratio, above 0; None for none.
    """

    coefficient: Annotated[float, at_least(0)] = 1e-2
    clip: Annotated[float, above(0)] | None = None
    wants = frozenset({"logp"})
    columns = frozenset({"logp_ref"})
    unit = "group"
    label = "kl"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term; gradient flows through the factor `logp` alone."""
        fresh = batch.source == FRESH
        logp = row_logp(evaluation.logp, batch.mask)
        ratio = (logp - row_logp(batch.logp_ref, batch.mask)).detach()
        if self.clip is not None:
            ratio = ratio.clamp(-self.clip, self.clip)
        with torch.no_grad():
            count = int(fresh.sum())
            if count:
                context.record("kl/online", (ratio * fresh).sum() / count, count)
            others = leave_one_out_mean(torch.where(fresh, ratio, 0.0), batch.group).to(ratio.dtype)
        return self.coefficient * torch.where(fresh, (ratio - others) * logp, 0.0)
