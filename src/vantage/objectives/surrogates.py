"""Policy losses from log-probabilities and advantages. Gradient flows through `logp` alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from vantage.core import above, at_least, component, one_of
from vantage.core.context import Context
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.divergences import k3
from vantage.functions.ratios import log_ratio
from vantage.functions.surrogates import clipped_surrogate, surrogate


def record_ratio(log: Tensor, mask: Tensor, context: Context) -> None:
    """Record the KL estimate mean(ratio - 1 - log ratio) (k3, non-negative)."""
    with torch.no_grad():
        excess = k3(log)
        context.record_mean("kl/old", excess if excess.shape == mask.shape else excess.expand(mask.shape), mask)


_LEVELS = ("token", "sequence", "product")


@dataclass(frozen=True)
class PolicyGradient:
    """-A * logp: REINFORCE's loss (Williams 1992). It is on-policy: no ratio corrects for stale data.

    A run whose update takes several optimiser steps on a batch is warned.
    """

    wants = frozenset({"logp"})

    def prepare(self, context: Context) -> None:
        """Warn where the loss includes rows that an older policy sampled."""
        steps = getattr(context.method.update, "optimizer_steps", None) or 1
        if steps > 1:
            warnings.warn(
                f"PolicyGradient has no ratio, and the update takes {steps:g} optimiser steps on a batch: all but the first follow"
                " the gradient of an older policy's rows. Take Surrogate or Clip as objective, or epochs=1 and minibatches=1",
                stacklevel=2,
            )

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        credit = torch.where(batch.mask, batch.advantage, 0.0)
        return -credit * torch.where(batch.mask, evaluation.logp, 0.0)


@component
class Surrogate:
    """-ratio * A: the importance-weighted surrogate, unclipped; its gradient at ratio 1 is the policy gradient.

    Attributes:
        level: "token", "sequence" or "product"; see `log_ratio`.
    """

    level: Annotated[str, one_of(_LEVELS)] = "token"
    wants = frozenset({"logp"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        log = log_ratio(evaluation.logp, batch.logp_old, batch.mask, self.level)
        record_ratio(log, batch.mask, context)
        return surrogate(log, batch.advantage, batch.mask)


@component
class Clip:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7), with separate bounds on each side.

        loss = -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)
        with `dual` c, where A < 0:  loss = min(loss, -c * A)           (dual clip, arXiv 1912.09729, eq. 5)

    Attributes:
        low: clip range below 1, at least 0.
        high: clip range above 1; None takes `low`.
        dual: c > 1, or None.
        level: of the ratio: "token", "sequence" (GSPO) or "product"; see `log_ratio`.
    """

    low: Annotated[float, at_least(0)] = 0.2
    high: Annotated[float, at_least(0)] | None = None
    dual: Annotated[float, above(1)] | None = None
    level: Annotated[str, one_of(_LEVELS)] = "token"
    wants = frozenset({"logp"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        high = self.low if self.high is None else self.high
        log = log_ratio(evaluation.logp, batch.logp_old, batch.mask, self.level)
        return recorded_clip(log, batch, 1 - self.low, 1 + high, self.dual, context)


def recorded_clip(
    log: Tensor, batch: Trajectories, low: float | Tensor, high: float | Tensor, dual: float | None, context: Context
) -> Tensor:
    """Return `clipped_surrogate` of the batch [N, T]; record the share of decisions whose gradient the clip removed and the KL
    estimate to the policy that acted.
    """
    loss, removed = clipped_surrogate(log, batch.advantage, batch.mask, low, high, dual)
    context.record_mean("clip_fraction", removed.float(), batch.mask)
    record_ratio(log, batch.mask, context)
    return loss
