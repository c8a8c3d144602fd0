"""The two planes: their rules, what they count, and the demonstrations."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from vantage.tasks.control.point import Detour, TwoGoals, distance_to_routes


def test_two_goals() -> None:
    env = TwoGoals()
    seen, _ = env.reset(seed=0)
    assert seen.tolist() == [0, 0]
    for k in range(3):
        seen, reward, over, cut, _ = env.step([1.0, 0.0])
        assert (reward, over, cut) == (0.0, False, False)
        assert seen[0] == pytest.approx(0.2 * (k + 1))
    assert env.step([1.0, 0.0])[1:4] == (1.0, True, False)
    env.reset()
    while not env.step([-7.0, 0.0])[2]:
        pass
    env.reset()
    ends = [env.step([0.0, 1.0])[2:4] for _ in range(50)]
    assert ends == [(False, False)] * 49 + [(False, True)]
    assert env.tally == {"episodes": 3, "right": 1, "left": 1, "late": 1}


def test_the_obstacle_ends_an_episode() -> None:
    env = Detour(chunk=1)
    env.reset(seed=0)
    over = False
    while not over:
        _, paid, over, _, _ = env.step([1.0, 0.0])
    assert paid == pytest.approx(-0.005)
    assert env.tally["crash"] == env.tally["episodes"] == 1


def test_following_a_route_arrives_and_does_not_stray() -> None:
    env = Detour(chunk=1)
    for side in (1, -1):
        seen, _ = env.reset(seed=1)
        targets = [np.array([x, side * y]) for x, y in Detour.waypoints[1:]]
        over = False
        while not over:
            ahead = targets[0] - seen
            if np.hypot(*ahead) < 0.08 and len(targets) > 1:
                targets.pop(0)
                continue
            seen, _, over, cut, _ = env.step(ahead / max(np.hypot(*ahead), 0.1))
            assert not cut
    assert env.tally["above"] == env.tally["below"] == 1
    assert env.tally["success"] == 2
    assert env.tally["strayed"] == 0


def test_distance_to_the_routes() -> None:
    assert distance_to_routes(np.array([0.0, 0.6])) == pytest.approx(0)
    assert distance_to_routes(np.array([0.0, -0.7])) == pytest.approx(0.1)
    assert distance_to_routes(np.array([-1.3, 0.0])) == pytest.approx(0.3)
    assert distance_to_routes(np.array([0.0, 0.0])) > 0.5


def test_demonstrations_take_both_routes_by_chunks() -> None:
    env = Detour(chunk=3)
    seen, done = env.demonstrations(20, seed=0)
    assert done.shape == (len(seen), 6)
    assert np.abs(done).max() <= 1
    middle = seen[np.abs(seen[:, 0]) < 0.2]
    assert (middle[:, 1] > 0.4).sum() > 10 < (middle[:, 1] < -0.4).sum()
    again, _ = env.demonstrations(20, seed=0)
    np.testing.assert_array_equal(seen, again)
    strayed = [distance_to_routes(place) > 0.1 for place in seen]
    assert np.mean(strayed) < 0.05


def test_state_is_kept() -> None:
    env = Detour()
    env.reset(seed=3)
    env.step(np.ones(8))
    state = env.state_dict()
    other = Detour()
    other.reset(seed=9)
    other.load_state_dict(state)
    action = np.array([0.3, 0.9] * 4)
    for one, two in zip(env.step(action), other.step(action), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])
