"""The frozen lake: its two halves, the best policy by dynamic programming, and the column that a second critic reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

import vantage
from tests.harness import context, reader
from vantage.core.errors import UserError
from vantage.tasks.control.lake import LIMIT, Ice, Lake
from vantage.tasks.registry import make_task

LEFT, DOWN, RIGHT, UP = range(4)


def test_the_known_half_is_the_cell_aimed_at() -> None:
    ice = Ice()
    assert ice.aimed[0].tolist() == [0, 4, 1, 0]
    assert ice.aimed[6].tolist() == [5, 10, 7, 2]
    assert ice.aimed[15].tolist() == [14, 15, 15, 11]
    # Never more states between the halves than pairs of state and move; here four pairs share one.
    assert len(ice.aimed.unique()) == 16 < ice.aimed.numel()
    assert sorted(map(tuple, (ice.aimed == 10).nonzero().tolist())) == [(6, DOWN), (9, RIGHT), (11, LEFT), (14, UP)]


def test_the_random_half_slides_from_the_cell_aimed_at() -> None:
    ice = Ice(slip=0.4)
    torch.testing.assert_close(ice.chance.sum(1), torch.ones(16).double())
    # Aimed at cell 1: it stays with 0.6, and with 0.1 each it slides to 0, 5 (a hole), 2, or against the edge.
    expected = torch.zeros(16).double()
    expected[[0, 1, 2, 5]] = torch.tensor([0.1, 0.7, 0.1, 0.1]).double()
    torch.testing.assert_close(ice.chance[1], expected)
    for end in (5, 7, 11, 12, 15):
        assert float(ice.chance[end, end]) == 1.0
    assert torch.equal(Ice(slip=0.0).chance, torch.eye(16).double())


def test_without_slipping_the_way_is_six_moves_long() -> None:
    ice = Ice(slip=0.0)
    assert float(ice.best(6)[0]) == 1.0
    assert float(ice.best(5)[0]) == 0.0
    assert float(Ice(8, 0.0).best(14)[0]) == 1.0
    assert float(Ice(8, 0.0).best(13)[0]) == 0.0


def transitions(ice: Ice) -> np.ndarray:
    """P(s' | s, a) [16, 4, 16], written anew from the rules: no table of `Ice` is read."""
    lake = ["SFFF", "FHFH", "FFFH", "HFFG"]
    moves = {LEFT: (0, -1), DOWN: (1, 0), RIGHT: (0, 1), UP: (-1, 0)}

    def moved(row: int, column: int, move: int) -> tuple[int, int]:
        down, right = moves[move]
        return min(max(row + down, 0), 3), min(max(column + right, 0), 3)

    found = np.zeros((16, 4, 16))
    for state in range(16):
        for action in range(4):
            if lake[state // 4][state % 4] in "HG":
                found[state, action, state] = 1
                continue
            row, column = moved(state // 4, state % 4, action)
            if lake[row][column] in "HG":
                found[state, action, row * 4 + column] = 1
                continue
            found[state, action, row * 4 + column] += 1 - ice.slip
            for slide in range(4):
                other, place = moved(row, column, slide)
                found[state, action, other * 4 + place] += ice.slip / 4
    return found


def test_the_optimum_against_policy_iteration_on_the_rules() -> None:
    """The best chance without a limit, by linear equations for each policy, is what many moves come to."""
    ice = Ice()
    moves, goal = transitions(ice), np.eye(16)[15]
    held = [cell for cell in range(16) if ice.cells[cell] not in "HG"]
    policy = np.array([DOWN, RIGHT, DOWN, LEFT, DOWN, 0, DOWN, 0, RIGHT, DOWN, DOWN, 0, 0, RIGHT, RIGHT, 0])
    for _ in range(20):
        step = moves[np.arange(16), policy]
        value = goal.copy()
        value[held] = np.linalg.solve(np.eye(len(held)) - step[np.ix_(held, held)], step[held, 15])
        ahead = moves @ value
        better = ahead.max(1) > value + 1e-12
        if not better[held].any():
            break
        policy = np.where(better, ahead.argmax(1), policy)
    np.testing.assert_allclose(ice.best(3000).numpy(), value, atol=1e-9)
    assert value[0] == pytest.approx(41 / 49)
    assert float(ice.best(LIMIT)[0]) == pytest.approx(0.836722, abs=1e-6)
    assert float(Ice(slip=1.0).best(3000)[0]) == pytest.approx(5 / 9)


def test_episodes_arrive_as_often_as_the_equations_say() -> None:
    ice = Ice(slip=0.3)
    generator = torch.Generator().manual_seed(0)
    policy = torch.rand(16, 4, generator=generator) + torch.tensor([0.0, 2.0, 2.0, 0.0])
    policy = policy / policy.sum(1, keepdim=True)
    expected = float(ice.value(policy, LIMIT)[0])
    env, random = Lake(slip=0.3), np.random.default_rng(0)
    env.reset(seed=0)
    arrived = 0.0
    for _ in range(4000):
        cell, over = env.reset()[0], False
        while not over:
            chances = policy[cell].double().numpy()
            cell, paid, over, _, _ = env.step(random.choice(4, p=chances / chances.sum()))
            arrived += paid
    assert 0.05 < expected < 0.95
    assert arrived / 4000 == pytest.approx(expected, abs=3.5 * (expected * (1 - expected) / 4000) ** 0.5)


def test_the_rollout_leaves_the_cells_between_the_halves() -> None:
    settings = {"rows": 6, "length": 30, "epochs": 2}
    task = make_task("lake:slip=1.0", options={"hidden": [8]})
    run = vantage.train("pdppo", task, steps=2 * 180, settings=settings, evaluate_samples=4)
    assert run.outcome.step == 2
    fitted = [line for line in run.outcome.history if "loss/policy" in line]
    assert all({"error/value", "error/value_post"} <= set(line) for line in fitted)
    engine = task.make_engine(run.policy, seed=3)
    where = context(policy=run.policy, method=reader())
    batch = engine.advance(6, 200, where)
    torch.testing.assert_close(batch["post_observation"], task.ice.aimed[batch.observation, batch.action])
    # What aims at the goal arrives there; what arrives by sliding was not sure to.
    sure = task.ice.goal[batch["post_observation"]].float() * batch.mask
    torch.testing.assert_close(batch["post_reward"], sure)
    assert bool((batch["post_reward"] <= batch.reward).all())
    assert 0 < float(sure.sum()) < float(batch.reward.sum())
    # With slip = 1 the walker never stays where it aimed, but it comes to a neighbour of it, or against the edge.
    before, post, after = batch.observation[:, :-1], batch["post_observation"][:, :-1], batch.observation[:, 1:]
    going = ~(batch.terminated | batch.truncated)[:, :-1]
    assert int(going.sum()) > 200
    assert bool((task.ice.chance[post, after] > 0)[going].all())
    assert bool((before[:, 1:][~going[:, :-1]] == 0).all())
    assert bool(batch.terminated[batch.reward > 0].all())


def test_the_judgement_is_exact() -> None:
    task = make_task("lake:slip=0.0")
    policy = task.make_policy(seed=0)
    judged = task.evaluate(policy, samples=3, seed=0)
    drawn = policy.distribution_of(torch.arange(16)).log_probs.exp().detach()
    assert judged["success"] == pytest.approx(float(task.ice.value(drawn, LIMIT)[0]))
    assert judged["gap"] == pytest.approx(1.0 - judged["success"])
    assert judged["return"] == judged["success_greedy"]


def test_state_is_kept_and_options_are_checked() -> None:
    env = Lake(slip=1.0)
    env.reset(seed=1)
    env.step(RIGHT)
    held = env.state_dict()
    walked = [env.step(move)[0] for move in (RIGHT, LEFT, RIGHT)]
    env.load_state_dict(held)
    assert [env.step(move)[0] for move in (RIGHT, LEFT, RIGHT)] == walked
    for bad, what in (("lake:size=5", "size"), ("lake:slip=1.5", "slip=1.5"), ("lake:slippery", "name=value")):
        with pytest.raises(UserError, match=what):
            make_task(bad)
