"""Quantiles of scores: of each segment, and tracked over the run by stochastic approximation. No gradient."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from vantage.core import above, at_most, between, component, memory
from vantage.functions.quantiles import quantiles, tracked_quantiles

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@component
class QuantileTracker:
    """Estimates of quantiles of a score whose distribution moves with the policy.

        first batch:  q_a = empirical quantile (linear interpolation)
        then:         q_a <- q_a + rate * (a - share of the batch's scores below q_a)

    whose fixed point is P(score < q_a) = a.

    Attributes:
        rate: of the steps, in units of the score, above 0 to 1.
        levels: a, each in (0, 1).
    """

    rate: Annotated[float, above(0), at_most(1)] = 0.1
    levels: tuple[Annotated[float, between(0, 1)], ...] = LEVELS
    _memory: dict[str, Tensor] = memory()

    @property
    def started(self) -> bool:
        """Whether a batch was seen."""
        return "estimates" in self._memory

    def read(self, level: float) -> Tensor:
        """Return the estimate of the tracked level nearest to `level`, a scalar."""
        nearest = min(range(len(self.levels)), key=lambda place: abs(self.levels[place] - level))
        return self._memory["estimates"][nearest]

    @torch.no_grad()
    def update(self, scores: Tensor) -> None:
        """Update with a batch of scores [M]; missing ones (NaN) are left out."""
        if bool(torch.isnan(scores).all()):
            return
        levels = torch.tensor(self.levels, device=scores.device)
        held = self._memory.get("estimates")
        self._memory["estimates"] = (
            quantiles(scores, levels)
            if held is None
            else tracked_quantiles(held.to(scores.device), scores, levels, self.rate)
        )
