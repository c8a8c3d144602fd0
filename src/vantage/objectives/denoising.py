"""Policy losses over the steps of a sampler, whose decisions are vectors of many dimensions."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from vantage.core import at_least, component
from vantage.core.context import Context
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.ratios import bounded, log_ratio
from vantage.objectives.surrogates import recorded_clip


@component
class StepClip:
    """Clipped surrogate whose ratio is taken per dimension: exp(mean over dimensions of log p - log p_old).

        loss = max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps))        Flow-GRPO, arXiv 2505.05470, as released

    Gradient flows through `logp`. The mean is the true ratio to the power 1 / D; the published clip ranges belong to it.

    Attributes:
        eps: clip range on both sides, at least 0.
    """

    eps: Annotated[float, at_least(0)] = 1e-4
    wants = frozenset({"logp"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        size = math.prod(batch.action.shape[2:])
        log = log_ratio(evaluation.logp, batch.logp_old, batch.mask) / size
        return clipped_step(log, self.eps, batch, context)


def clipped_step(log: Tensor, eps: float, batch: Trajectories, context: Context) -> Tensor:
    """Return the clipped surrogate [N, T] of a log-ratio [N, T], and record the share clipped on either side.

    `clip_fraction/positive` is the share of the decisions with A > 0 whose ratio is above 1 + eps, `clip_fraction/negative` that
    of the decisions with A < 0 whose ratio is below 1 - eps, `clip_balance` the first less the second.
    """
    with torch.no_grad():
        moved = log.expm1()
        for name, side, beyond in (
            ("positive", batch.advantage > 0, moved > eps),
            ("negative", batch.advantage < 0, moved < -eps),
        ):
            side = side & batch.mask
            context.record_total(f"clip_fraction/{name}", (side & beyond).sum(), side.sum())
        context.derive("clip_balance", float.__sub__, "clip_fraction/positive", "clip_fraction/negative")
    return recorded_clip(log, batch, 1 - eps, 1 + eps, None, context)


@component
class GuardedClip:
    """GRPO-Guard's loss per decision [N, T]; gradient flows through the step's mean.

    Attributes:
        eps: clip range on both sides, at least 0.
        by_length: divide a step's loss by -dt.
        shared_bias: the bias of the log-ratio is averaged over the rows that are evaluated together, step by step.
    """

    eps: Annotated[float, at_least(0)] = 1e-4
    by_length: bool = True
    shared_bias: bool = False
    wants = frozenset({"mean"})
    columns = frozenset({"mean_old"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss."""
        seen, old = batch.observation, batch["mean_old"]
        length = seen["time"] - seen["next_time"]
        std = seen["sigma"] * length.sqrt()
        used, shift = batch.mask & (std > 0), evaluation.extras["mean"] - old
        moved = (shift * (batch.action - old)).flatten(2).mean(-1)
        if self.shared_bias:
            # Half a square each: what the bias of a row is less than that of all.
            own = torch.where(used, shift.square().flatten(2).mean(-1) / 2, 0.0)
            moved = moved - own + own.sum(0) / used.sum(0).clamp(min=1)
        log = bounded(torch.where(used, moved / torch.where(std > 0, std, 1.0), 0.0))
        loss = clipped_step(log, self.eps, batch, context)
        return loss / length if self.by_length else loss
