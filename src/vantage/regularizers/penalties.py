"""Terms beside the policy loss: entropy and divergence to a frozen policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.divergences import divergence
from vantage.functions.whitening import masked_mean


@dataclass(frozen=True)
class EntropyBonus:
    """-coefficient * entropy of the policy at each decision; gradient flows through the entropy."""

    coefficient: float = 0.01
    wants = frozenset({"entropy"})
    label = "entropy"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term per decision [N, T]."""
        context.record("entropy", masked_mean(evaluation.entropy.detach(), batch.mask))
        return -self.coefficient * evaluation.entropy


@dataclass(frozen=True)
class ReferenceKL:
    """coefficient * KL estimate between the policy and the reference, per decision, in the loss.

    Attributes:
        coefficient: beta, at least 0.
        estimator: "k1", "k2" or "k3"; see `divergence`.
    """

    coefficient: float = 0.04
    estimator: str = "k3"
    wants = frozenset({"logp"})
    columns = frozenset({"logp_ref"})
    label = "kl"

    def __post_init__(self) -> None:
        if self.estimator not in ("k1", "k2", "k3"):
            raise UserError(f"ReferenceKL.estimator={self.estimator!r} is not known: 'k1', 'k2' or 'k3'")
        if not self.coefficient >= 0:
            raise UserError(f"ReferenceKL.coefficient={self.coefficient} is out of range: at least 0")

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term per decision [N, T]."""
        reference = torch.where(batch.mask, batch.logp_ref, evaluation.logp.detach())
        estimate = divergence(evaluation.logp, reference, self.estimator)
        context.record("kl/reference", masked_mean(estimate.detach(), batch.mask))
        return self.coefficient * estimate
