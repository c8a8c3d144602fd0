"""Observation and action spaces of control policies, as plain data for configuration files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vantage.core.errors import UserError

SUPPORTED = "Box, Discrete, MultiDiscrete and MultiBinary"


@dataclass(frozen=True)
class Observations:
    """Space of the observations.

    Attributes:
        kind: 'vector' (numbers of any shape), 'image' (uint8, [C, H, W] or [H, W, C]) or 'discrete' (whole numbers,
            each one-hot in the network's input).
        shape: shape of one observation; () for a single whole number.
        sizes: number of values of each coordinate, for 'discrete'.
        start: smallest value of each coordinate, for 'discrete'.
    """

    kind: str
    shape: tuple[int, ...]
    sizes: tuple[int, ...] = ()
    start: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Number of inputs of the first layer."""
        return sum(self.sizes) if self.kind == "discrete" else math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        """numpy type of stored observations."""
        return {"vector": np.float32, "image": np.uint8, "discrete": np.int64}[self.kind]

    @classmethod
    def of(cls, space: Any) -> Observations:
        """Describe a Gymnasium space.

        Raises:
            UserError: the space is of a kind that no network supports.
        """
        kind = _kind(space)
        if kind == "Box":
            image = space.dtype == np.uint8 and len(space.shape) == 3
            return cls("image" if image else "vector", tuple(int(n) for n in space.shape))
        if kind == "Discrete":
            return cls("discrete", (), (int(space.n),), (int(space.start),))
        if kind == "MultiDiscrete" and len(space.shape) == 1:
            return cls("discrete", space.shape, tuple(map(int, space.nvec)), tuple(map(int, space.start)))
        if kind == "MultiBinary":
            return cls("vector", tuple(space.shape))
        raise UserError(
            f"observation space {space} is not supported: {SUPPORTED} are (wrap the environment in "
            "gymnasium.wrappers.FlattenObservation to make a Dict or Tuple one flat)"
        )


@dataclass(frozen=True)
class Actions:
    """Space of the actions.

    Attributes:
        kind: 'discrete', 'multidiscrete' or 'continuous'.
        shape: shape of one action as the environment takes it; () for a single whole number.
        sizes: number of values of each coordinate, for the discrete kinds.
        start: smallest value of each coordinate, for the discrete kinds.
        low: lower bounds, for 'continuous'; None for no bound.
        high: upper bounds, likewise.
    """

    kind: str
    shape: tuple[int, ...]
    sizes: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()

    @property
    def width(self) -> int:
        """Number of outputs of the actor's last layer (a mean per coordinate, or a logit per choice)."""
        return math.prod(self.shape) if self.kind == "continuous" else sum(self.sizes)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of one decision in the column `action`."""
        return () if self.kind == "discrete" else (len(self.sizes) or math.prod(self.shape),)

    @property
    def dtype(self) -> Any:
        """numpy type of stored decisions."""
        return np.float32 if self.kind == "continuous" else np.int64

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of a continuous action as flat float32 arrays, infinite where there is none."""
        low = np.array([-np.inf if b is None else b for b in self.low], dtype=np.float32)
        high = np.array([np.inf if b is None else b for b in self.high], dtype=np.float32)
        return low, high

    @cached_property
    def centre(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre and half width of a continuous action's box, [D] float32: 0 and 1 where a side has no bound."""
        low, high = (bound.astype(np.float64) for bound in self.bounds)
        finite = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(finite, low, -1.0), np.where(finite, high, 1.0)
        return ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)

    def stretch(self, unit: np.ndarray) -> np.ndarray:
        """Map numbers [..., D] in [-1, 1] to the box, linearly where both bounds are finite; float32.

        A coordinate without one of its bounds is unchanged. The result is clipped to the bounds, which it may exceed by
        rounding: in float32 -0.1 + 2 * 0.15 is above 0.2.
        """
        middle, half = self.centre
        low, high = self.bounds
        return np.clip(middle + half * unit.astype(np.float32, copy=False), low, high)

    @classmethod
    def of(cls, space: Any) -> Actions:
        """Describe a Gymnasium space.

        Raises:
            UserError: the space is of a kind that no distribution supports.
        """
        kind = _kind(space)
        shape = tuple(int(n) for n in space.shape or ())
        if kind == "Box" and np.issubdtype(space.dtype, np.floating):
            return cls("continuous", shape, low=_bounds(space.low), high=_bounds(space.high))
        if kind == "Discrete":
            return cls("discrete", (), (int(space.n),), (int(space.start),))
        if kind == "MultiDiscrete":
            sizes, start = np.asarray(space.nvec).ravel(), np.asarray(space.start).ravel()
            return cls("multidiscrete", shape, tuple(map(int, sizes)), tuple(map(int, start)))
        if kind == "MultiBinary":
            count = math.prod(shape)
            return cls("multidiscrete", shape, (2,) * count, (0,) * count)
        raise UserError(f"action space {space} is not supported: {SUPPORTED} are (Box with floating-point numbers)")


def to_plain(space: Observations | Actions) -> dict[str, Any]:
    """Return the space as JSON values."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(space).items()}


def observations(plain: Mapping[str, Any]) -> Observations:
    """Make the observation space of `to_plain`'s values."""
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    return Observations(**given)


def actions(plain: Mapping[str, Any]) -> Actions:
    """Make the action space of `to_plain`'s values."""
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    return Actions(**given)


def _bounds(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(v) if np.isfinite(v) else None for v in np.ravel(values))


def _kind(space: Any) -> str:
    # By name along the class's ancestry, so that nothing here imports gymnasium.
    for ancestor in type(space).__mro__:
        if ancestor.__name__ in ("Box", "Discrete", "MultiDiscrete", "MultiBinary"):
            return ancestor.__name__
    return type(space).__name__
