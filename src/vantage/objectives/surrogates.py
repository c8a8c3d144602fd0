"""Policy losses from log-probabilities and advantages. Gradient flows through `logp` alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the decisions where the mask holds; rows of one decision have no padding."""
    if mask.shape[1] == 1:
        return values.mean()
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def log_ratio(logp: Tensor, logp_old: Tensor, mask: Tensor, level: str = "token") -> Tensor:
    """Return log of the importance ratio, [N, T] or [N, 1].

    level: "token" each decision's own; "sequence" the mean over the row (GSPO, arXiv 2507.18071, eq. 7: the ratio of the
    row to the power 1 / length); "product" the sum over the row (the row's true ratio).
    """
    difference = logp - logp_old
    if mask.shape[1] > 1:
        # Padding becomes ratio 1, so that whatever stands there can neither overflow nor send NaN into the gradient.
        difference = torch.where(mask, difference, 0.0)
    if level == "token":
        return difference
    total = difference.sum(-1, keepdim=True)
    return total / mask.sum(-1, keepdim=True).clamp(min=1) if level == "sequence" else total


def record_ratio(log: Tensor, mask: Tensor, context: Context) -> None:
    """Record the KL estimate mean(ratio - 1 - log ratio) (k3, non-negative)."""
    with torch.no_grad():
        excess = torch.expm1(log) - log
        context.record("kl/old", masked_mean(excess if excess.shape == mask.shape else excess.expand(mask.shape), mask))


_LEVELS = ("token", "sequence", "product")


def _check_level(name: str, level: str) -> None:
    if level not in _LEVELS:
        raise UserError(f"{name}.level={level!r} is not known: {', '.join(_LEVELS)}")


@dataclass(frozen=True)
class PolicyGradient:
    """-A * logp: REINFORCE's loss (Williams 1992). It is on-policy: no ratio corrects for stale data."""

    wants = frozenset({"logp"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        return -batch.advantage * evaluation.logp


@dataclass(frozen=True)
class Surrogate:
    """-ratio * A: the importance-weighted surrogate, unclipped; its gradient at ratio 1 is the policy gradient.

    Attributes:
        level: "token", "sequence" or "product"; see `log_ratio`.
    """

    level: str = "token"
    wants = frozenset({"logp"})

    def __post_init__(self) -> None:
        _check_level("Surrogate", self.level)

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        log = log_ratio(evaluation.logp, batch.logp_old, batch.mask, self.level)
        record_ratio(log, batch.mask, context)
        return -batch.advantage * log.exp()


@dataclass(frozen=True)
class Clip:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7), with bounds of its own on each side.

        loss = -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)
        with `dual` c, where A < 0:  loss = min(loss, -c * A)           (dual clip, arXiv 1912.09729, eq. 5)

    Attributes:
        low: how far the ratio may fall below 1 and still be rewarded, at least 0.
        high: how far it may rise; None takes `low`.
        dual: c > 1, or None.
        level: of the ratio: "token", "sequence" (GSPO) or "product"; see `log_ratio`.
    """

    low: float = 0.2
    high: float | None = None
    dual: float | None = None
    level: str = "token"
    wants = frozenset({"logp"})

    def __post_init__(self) -> None:
        _check_level("Clip", self.level)
        if not self.low >= 0 or (self.high is not None and not self.high >= 0):
            raise UserError(f"Clip(low={self.low}, high={self.high}) is out of range: at least 0")
        if self.dual is not None and not self.dual > 1:
            raise UserError(f"Clip.dual={self.dual} is out of range: above 1")

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        high = self.low if self.high is None else self.high
        log = log_ratio(evaluation.logp, batch.logp_old, batch.mask, self.level)
        return clipped_surrogate(log, batch, 1 - self.low, 1 + high, self.dual, context)


def clipped_surrogate(
    log: Tensor, batch: Trajectories, low: float | Tensor, high: float | Tensor, dual: float | None, context: Context
) -> Tensor:
    """Return -min(ratio * A, clip(ratio, low, high) * A), [N, T]; the bounds are two numbers or two tensors that broadcast to it.

    Records the share of decisions whose gradient the clip removed and the KL estimate to the policy that acted.
    """
    ratio = log.exp()
    advantage, mask = batch.advantage, batch.mask
    plain = -advantage * ratio
    held = torch.clamp(ratio, low, high)  # type: ignore[arg-type]
    clipped = -advantage * held
    loss = torch.maximum(plain, clipped)
    if dual is not None:
        loss = torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)
    with torch.no_grad():
        context.record("clip_fraction", masked_mean((clipped > plain).float(), mask))
    record_ratio(log, mask, context)
    return loss
