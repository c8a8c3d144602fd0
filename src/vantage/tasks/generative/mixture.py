"""Mixtures of normals in the plane: data with a known density, and rewards whose maximisation departs from it."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from vantage.core import above, at_least, between, component, one_of
from vantage.core.errors import out_of_range

SHAPES = ("ring", "grid")
REWARDS = ("mode", "region", "proxy")


@component(label="task 'flow2d'")
class Mixture:
    """Equal normals on a ring or a grid; data are points [n, 2].

    Rewards, with d the distance to the target mode, r the distance to the origin, in units of the radius:

        mode     exp(-2 d^2)                                     in (0, 1], highest on the target mode
        region   1 within three standard deviations of the target mode, else 0
        proxy    mode + bonus * max(r - 1, 0)                    a flawed reward: it grows with r, where there is no data

    Attributes:
        shape: "ring" or "grid".
        modes: on the ring, 2 to 64; on the grid along each side, 2 to 8.
        radius: of the ring, half the side of the grid; above 0.
        std: of each normal, above 0.
        reward: "mode", "region" or "proxy".
        target: number of the target mode, from 0.
        bonus: slope of the proxy's second term, at least 0.
    """

    shape: Annotated[str, one_of(SHAPES)] = "ring"
    modes: Annotated[int, between(2, 64)] = 8
    radius: Annotated[float, above(0)] = 2.0
    std: Annotated[float, above(0)] = 0.3
    reward: Annotated[str, one_of(REWARDS)] = "mode"
    target: Annotated[int, at_least(0)] = 0
    bonus: Annotated[float, at_least(0)] = 0.75

    classes = 0
    sample_shape = (2,)

    def __post_init__(self) -> None:
        if self.shape == "grid" and self.modes > 8:
            raise out_of_range("task 'flow2d': modes", self.modes, "2 to 8 in a grid")
        if self.target >= len(self.means()):
            raise out_of_range("task 'flow2d': target", self.target, f"0 to {len(self.means()) - 1}")

    def means(self) -> Tensor:
        """Return the means of the modes [K, 2]."""
        if self.shape == "ring":
            angle = 2 * math.pi * torch.arange(self.modes) / self.modes
            return self.radius * torch.stack([angle.cos(), angle.sin()], -1)
        side = torch.linspace(-self.radius, self.radius, self.modes)
        return torch.cartesian_prod(side, side)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, None]:
        """Sample `count` points [count, 2]; there are no labels."""
        means = self.means()
        which = torch.randint(len(means), (count,), generator=generator)
        return means[which] + self.std * torch.randn(count, 2, generator=generator), None

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p(x) [n] of points [n, 2]."""
        means = self.means().to(x)
        squares = (x.unsqueeze(1) - means).square().sum(-1) / self.std**2
        return torch.logsumexp(-0.5 * squares, 1) - math.log(2 * math.pi * self.std**2 * len(means))

    def rewards(self, x: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        """Return the reward [n] of points [n, 2], under its name."""
        away = (x - self.means()[self.target].to(x)).square().sum(-1)
        if self.reward == "region":
            return {"region": (away < (3 * self.std) ** 2).float()}
        near = torch.exp(-2 * away / self.radius**2)
        if self.reward == "mode":
            return {"mode": near}
        return {"proxy": near + self.bonus * (x.norm(dim=-1) / self.radius - 1).clamp(min=0)}

    def measure(self, x: Tensor, label: Tensor | None) -> dict[str, float]:
        """Return `gold`, the mean log-density under the data, and `kept`, the share within three std of some mode."""
        nearest = torch.cdist(x, self.means().to(x)).amin(1)
        return {
            "gold": float(self.log_density(x).double().mean()),
            "kept": float((nearest < 3 * self.std).double().mean()),
        }
