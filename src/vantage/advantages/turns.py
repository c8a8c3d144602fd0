"""Credit over the turns of a conversation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from vantage.advantages.estimators import GAE
from vantage.core.context import Context
from vantage.core.trajectories import Trajectories

_DECISIONS = ("reward", "value", "next_value", "terminated", "truncated", "mask")


@dataclass(frozen=True)
class AcrossTurns:
    """An estimator over time, run on the policy's decisions alone.

    What the environment says between two turns is outside of the mask, where the estimators stop their trace. Here it takes no
    time: the last decision of a turn is followed by the first of the next. A reward outside of the mask does not count.

    Attributes:
        estimator: fills `advantage` and `returns` (`GAE`, `RewardToGo`).
    """

    estimator: Any = field(default_factory=GAE)

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill `advantage` and `returns`, both [N, T], 0 outside of the mask; no gradient."""
        order = torch.argsort(~batch.mask, dim=1, stable=True)
        packed = {name: batch[name].gather(1, order) for name in _DECISIONS if name in batch}
        found = self.estimator(Trajectories(packed), context)
        back = {
            name: torch.zeros_like(found[name]).scatter(1, order, torch.where(found.mask, found[name], 0.0))
            for name in ("advantage", "returns")
        }
        return batch.replace(**back)
