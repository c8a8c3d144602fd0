"""Quantiles of scores: of each segment, and tracked over the run by stochastic approximation. No gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.functions.quantiles import quantiles, tracked_quantiles

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True)
class QuantileTracker:
    """Estimates of quantiles of a score whose distribution moves with the policy.

        first batch:  q_a = empirical quantile (linear interpolation)
        then:         q_a <- q_a + rate * (a - share of the batch's scores below q_a)

    whose fixed point is P(score < q_a) = a.

    Attributes:
        rate: of the steps, in units of the score, above 0 to 1.
        levels: a, each in (0, 1).
    """

    rate: float = 0.1
    levels: tuple[float, ...] = LEVELS
    _memory: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UserError(f"QuantileTracker.rate={self.rate} is out of range: above 0 to 1")

    @property
    def started(self) -> bool:
        """Whether a batch was seen."""
        return "estimates" in self._memory

    def read(self, level: float) -> Tensor:
        """Return the estimate of the level nearest to `level`, a scalar."""
        nearest = min(range(len(self.levels)), key=lambda place: abs(self.levels[place] - level))
        return self._memory["estimates"][nearest]

    @torch.no_grad()
    def update(self, scores: Tensor) -> None:
        """Take in a batch of scores [M]; missing ones (NaN) are left out."""
        levels = torch.tensor(self.levels, device=scores.device)
        held = self._memory.get("estimates")
        self._memory["estimates"] = (
            quantiles(scores, levels)
            if held is None
            else tracked_quantiles(held.to(scores.device), scores, levels, self.rate)
        )

    def state_dict(self) -> dict[str, Any]:
        """The estimates."""
        return dict(self._memory)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._memory.clear()
        self._memory.update(state)
