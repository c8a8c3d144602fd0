"""Spaces as plain data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vantage.core.errors import UserError
from vantage.policies import spaces
from vantage.policies.spaces import Actions, Observations

gym = pytest.importorskip("gymnasium.spaces")


@pytest.mark.parametrize(
    ("space", "expected", "width"),
    [
        (gym.Box(-1, 1, (3,)), Observations("vector", (3,)), 3),
        (gym.Box(-1, 1, (2, 2), np.float64), Observations("vector", (2, 2)), 4),
        (gym.Box(0, 255, (84, 84, 3), np.uint8), Observations("image", (84, 84, 3)), 21168),
        (gym.Box(0, 255, (128,), np.uint8), Observations("vector", (128,)), 128),
        (gym.Discrete(5, start=-2), Observations("discrete", (), (5,), (-2,)), 5),
        (gym.MultiDiscrete([3, 4]), Observations("discrete", (2,), (3, 4), (0, 0)), 7),
        (gym.MultiBinary(4), Observations("vector", (4,)), 4),
    ],
)
def test_observations(space: object, expected: Observations, width: int) -> None:
    described = Observations.of(space)
    assert described == expected
    assert described.width == width
    assert spaces.observations(json.loads(json.dumps(spaces.to_plain(described)))) == described


@pytest.mark.parametrize(
    ("space", "expected", "width", "stored"),
    [
        (gym.Discrete(3, start=1), Actions("discrete", (), (3,), (1,)), 3, ()),
        (gym.MultiDiscrete([2, 5]), Actions("multidiscrete", (2,), (2, 5), (0, 0)), 7, (2,)),
        (gym.MultiBinary((2, 2)), Actions("multidiscrete", (2, 2), (2,) * 4, (0,) * 4), 8, (4,)),
        (
            gym.Box(np.array([-1.0, -np.inf]), np.array([2.0, np.inf])),
            Actions("continuous", (2,), low=(-1.0, None), high=(2.0, None)),
            2,
            (2,),
        ),
    ],
)
def test_actions(space: object, expected: Actions, width: int, stored: tuple[int, ...]) -> None:
    described = Actions.of(space)
    assert described == expected
    assert described.width == width
    assert described.stored_shape == stored
    text = json.dumps(spaces.to_plain(described), allow_nan=False)
    assert spaces.actions(json.loads(text)) == described


def test_bounds_are_infinite_where_there_are_none() -> None:
    low, high = Actions("continuous", (2,), low=(-1.0, None), high=(None, 2.0)).bounds
    assert low.tolist() == [-1.0, -np.inf]
    assert high.tolist() == [np.inf, 2.0]


def test_other_spaces_are_refused_with_a_remedy() -> None:
    with pytest.raises(UserError, match=r"observation space Dict.*FlattenObservation"):
        Observations.of(gym.Dict({"a": gym.Discrete(2)}))
    with pytest.raises(UserError, match=r"action space Tuple.* is not supported: Box, Discrete"):
        Actions.of(gym.Tuple((gym.Discrete(2),)))
    with pytest.raises(UserError, match="floating-point"):
        Actions.of(gym.Box(0, 5, (2,), np.int64))
