"""Selections of the decisions of a row by their position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from vantage.core import above, at_most, component
from vantage.core.context import Context
from vantage.core.trajectories import Trajectories


@component
class FirstSteps:
    """Mask all but the first int(share * T) decisions of each row, at least one.

    Attributes:
        share: in (0, 1].
    """

    share: Annotated[float, above(0), at_most(1)] = 1.0

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Mask the others."""
        kept = max(int(self.share * batch.steps), 1)
        if kept == batch.steps:
            return batch
        return batch.replace(mask=batch.mask & (torch.arange(batch.steps, device=batch.device) < kept))


@dataclass(frozen=True)
class NoisySteps:
    """Mask the decisions that were not drawn at random: steps of a sampler without noise (`sigma` 0)."""

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Mask the others."""
        return batch.replace(mask=batch.mask & (batch.observation["sigma"] > 0))
