"""Which decisions of a row are learnt from, by their place in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories


@dataclass(frozen=True)
class FirstSteps:
    """Learn from the first int(share * T) decisions of each row, at least one; the others are masked.

    Attributes:
        share: in (0, 1].
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"FirstSteps.share={self.share} is out of range: above 0, at most 1")

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Mask the rest."""
        kept = max(int(self.share * batch.steps), 1)
        if kept == batch.steps:
            return batch
        return batch.replace(mask=batch.mask & (torch.arange(batch.steps, device=batch.device) < kept))


@dataclass(frozen=True)
class NoisySteps:
    """Learn from the decisions that were drawn: steps of a sampler without noise (`sigma` 0) are masked."""

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Mask the others."""
        return batch.replace(mask=batch.mask & (batch.observation["sigma"] > 0))
