"""Selections of the decisions of a row by their position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F

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


@component
class RandomSteps:
    """Mask all but a random int(share * T') decisions of each row, at least one.

    T' is the number of decisions that are drawn from: all, or all but the last.

    Attributes:
        share: in (0, 1].
        last: whether a row's last decision may be drawn too.
    """

    share: Annotated[float, above(0), at_most(1)] = 1.0
    last: bool = False

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Mask the others."""
        # A row of a single decision would have none left.
        steps = max(batch.steps - (not self.last), 1)
        kept = max(int(self.share * steps), 1)
        if kept == batch.steps:
            return batch
        # Drawn where the generator is, so that a run draws the same on every device.
        generator = context.generator
        order = torch.rand(len(batch), steps, generator=generator, device=generator.device).argsort(-1)
        drawn = F.pad(order < kept, (0, batch.steps - steps)).to(batch.device)
        return batch.replace(mask=batch.mask & drawn)


@dataclass(frozen=True)
class NoisySteps:
    """Mask the decisions that were not drawn at random: steps of a sampler without noise (`sigma` 0)."""

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Mask the others."""
        return batch.replace(mask=batch.mask & (batch.observation["sigma"] > 0))
