"""Advantages kept within bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vantage.advantages.groups import GroupStandardized
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories


@dataclass(frozen=True)
class Clamped:
    """The inner component's advantage, cut to [-limit, limit].

    Attributes:
        inner: `(batch, context) -> Tensor`.
        limit: above 0.
    """

    inner: Any = field(default_factory=GroupStandardized)
    limit: float = 5.0

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise UserError(f"Clamped.limit={self.limit} is out of range: above 0")

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage, of the inner one's shape."""
        found: Tensor = self.inner(batch, context)
        return found.clamp(-self.limit, self.limit)
