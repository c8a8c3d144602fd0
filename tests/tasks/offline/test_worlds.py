"""Worlds: the pendulum is Gymnasium's, the wall is a wall, and the controllers are good."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from vantage.tasks.offline.worlds import WORLDS, Pendulum, Point, play, references


def test_pendulum_is_gymnasiums() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("Pendulum-v1")
    env.reset(seed=0)
    state = torch.tensor([[2.0, -0.5]])
    env.unwrapped.state = np.array([2.0, -0.5])
    world = Pendulum()
    for step in range(120):
        action = torch.tensor([[math.sin(step / 7)]])
        state, reward, terminated = world.step(state, action)
        seen, wanted, _, _, _ = env.step((2 * action[0]).numpy())
        np.testing.assert_allclose(world.observe(state)[0].numpy(), seen, atol=2e-3)
        assert float(reward) == pytest.approx(float(wanted), abs=2e-2)
        assert not bool(terminated)


def test_nothing_walks_through_the_wall() -> None:
    world, generator = Point(), torch.Generator().manual_seed(0)
    state = world.reset(2000, generator)
    for _ in range(50):
        action = 2 * torch.rand(2000, 2, generator=generator) - 1
        after, reward, there = world.step(state, action)
        crossed = (state[:, 0] < 0.5) != (after[:, 0] < 0.5)
        assert (after[crossed, 1] >= world.wall).all()
        assert ((after >= 0) & (after <= 1)).all()
        assert torch.equal(reward == 0, there)
        state = after


def test_play_stops_counting_at_the_end() -> None:
    world = Point()
    near = torch.tensor([[0.85, 0.27], [0.1, 0.1]])
    returns, lengths = play(world, lambda state: torch.tensor([[0.0, -1.0]]).expand(len(state), 2), near)
    assert lengths.tolist() == [1, 100]
    assert returns.tolist() == [0, -100]


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_the_controller_is_far_better_than_chance(name: str) -> None:
    low, high = references(name)
    world = WORLDS[name]()
    far, _ = play(world, world.controller, world.reset(64, torch.Generator().manual_seed(1), far=True))
    assert high > low
    assert float(far.mean()) > low + 0.5 * (high - low)
    assert all(a < b for a, b in pairwise([low, high]))
