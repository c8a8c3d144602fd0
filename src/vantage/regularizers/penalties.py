"""Terms beside the policy loss: entropy and divergence to a frozen policy."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from vantage.core import at_least, component
from vantage.core.context import Context
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.divergences import divergence


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
