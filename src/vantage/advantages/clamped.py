"""Advantages kept within bounds."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from torch import Tensor

from vantage.advantages.groups import GroupStandardized
from vantage.core import above, component
from vantage.core.context import Context
from vantage.core.trajectories import Trajectories


@component
class Clamped:
    """The inner component's advantage, cut to [-limit, limit].

    Attributes:
        inner: `(batch, context) -> Tensor`.
        limit: above 0.
    """

    inner: Any = field(default_factory=GroupStandardized)
    limit: Annotated[float, above(0)] = 5.0

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage, of the inner one's shape."""
        found: Tensor = self.inner(batch, context)
        return found.clamp(-self.limit, self.limit)
