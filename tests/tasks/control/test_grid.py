"""The grid: its rules, and that the vector version is the single one many times."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gymnasium")
import gymnasium

from vantage.tasks.control import grid

grid.register()
UP, RIGHT, DOWN, LEFT = range(4)


def test_rules() -> None:
    env = grid.Grid(size=3)
    seen, _ = env.reset(seed=0)
    assert seen in (0, 1, 2)
    env.row, env.column = 0, 0
    path = [(UP, 0), (LEFT, 0), (RIGHT, 1), (DOWN, 4), (RIGHT, 5), (RIGHT, 5)]
    for action, expected in path:
        seen, reward, terminated, truncated, _ = env.step(action)
        assert (seen, reward, terminated, truncated) == (expected, 0.0, False, False)
    assert env.step(DOWN)[:3] == (8, 1.0, True)


def test_starts_are_spread_over_the_top_row() -> None:
    env = grid.Grid(size=4)
    starts = [env.reset(seed=seed)[0] for seed in range(200)]
    assert set(starts) == {0, 1, 2, 3}


def test_slipping_takes_random_moves() -> None:
    env = grid.Grid(size=50, slip=1.0)
    env.reset(seed=0)
    moves = set()
    for _ in range(100):
        env.row = env.column = 25
        seen = env.step(UP)[0]
        moves.add((seen // 50 - 25, seen % 50 - 25))
    assert moves == {(-1, 0), (0, 1), (1, 0), (0, -1)}


def test_an_episode_is_cut_after_100_steps() -> None:
    env = gymnasium.make(grid.ENV_ID)
    env.reset(seed=0)
    ends = [env.step(UP)[2:4] for _ in range(100)]
    assert ends == [(False, False)] * 99 + [(False, True)]


@pytest.mark.parametrize("limit", [100, 6])
def test_the_vector_version_equals_single_ones(limit: int) -> None:
    count = 12
    vector = gymnasium.make_vec(
        grid.ENV_ID, count, vectorization_mode="vector_entry_point", size=3, max_episode_steps=limit
    )
    seen, _ = vector.reset(seed=1)
    singles = [grid.Grid(size=3) for _ in range(count)]
    clocks, over = np.zeros(count, int), np.zeros(count, bool)
    for env, cell in zip(singles, seen, strict=True):
        env.reset(seed=0)
        env.row, env.column = divmod(int(cell), 3)
    random, ended = np.random.default_rng(0), 0
    for _ in range(60):
        actions = random.integers(4, size=count)
        seen, reward, terminated, truncated, _ = vector.step(actions)
        for i, env in enumerate(singles):
            if over[i]:
                assert seen[i] < 3
                assert (reward[i], terminated[i], truncated[i]) == (0, False, False)
                env.row, env.column, clocks[i] = 0, int(seen[i]), 0
                over[i] = False
                continue
            clocks[i] += 1
            cell, paid, found, *_ = env.step(actions[i])
            assert (seen[i], reward[i], terminated[i]) == (cell, paid, found)
            assert truncated[i] == (clocks[i] >= limit)
            over[i] = found or clocks[i] >= limit
            ended += int(over[i])
    assert ended > 20


def test_gymnasiums_own_check_passes() -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(grid.Grid(), skip_render_check=True)
