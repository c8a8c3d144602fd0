"""The arena of perturbed starts: its world, its data, its scale, and a short run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import vantage
from vantage.core import UserError
from vantage.study.arenas import arena
from vantage.study.claims import stated
from vantage.study.jobs import Job, Reporter
from vantage.study.runs.offline import Corner, CornerTask, Options, options_of, perturbed
from vantage.tasks.offline.worlds import play

SMALL = {"steps": 2000, "good": 10, "hidden": 16}


def test_starts_are_in_the_corner_and_perturbed_ones_around_it() -> None:
    world, generator = Corner(spread=0.3), torch.Generator().manual_seed(0)
    near, far = world.reset(2000, generator), world.reset(2000, generator, far=True)
    assert bool(((near >= 0.05) & (near <= 0.15)).all())
    assert bool(((far >= 0) & (far <= 0.45)).all())
    # Before they are held in the square each coordinate is uniform on [0.05, 0.15] plus uniform on [-0.3, 0.3].
    assert float((far == 0).float().mean()) == pytest.approx(1 / 3, abs=0.03)
    assert float((far > 0.15).float().mean()) == pytest.approx(5 / 12, abs=0.03)
    still = Corner(spread=0.0).reset(100, generator, far=True)
    assert bool(((still >= 0.05) & (still <= 0.15)).all())


def test_the_data_begin_in_the_corner_and_so_many_episodes_are_good() -> None:
    task = CornerTask(Options(**SMALL), seed=4)
    episodes = task.data.episodes
    assert len(episodes) == 20
    starts = (task.data.observation[[begin for begin, _ in episodes]] + 1) / 2
    assert bool(((starts > 0.049) & (starts < 0.151)).all())
    reached = [bool(task.data.terminated[end - 1]) for _, end in episodes]
    assert all(reached[:10])
    assert sum(reached[10:]) <= 5
    assert not torch.equal(task.data.reward, CornerTask(Options(**SMALL), seed=5).data.reward[: task.size])
    table: Any = task.make_engine(task.make_policy()).table
    torch.testing.assert_close(table.observation.mean((0, 1)), torch.zeros(2), atol=1e-4, rtol=0)
    scaled: Any = CornerTask(Options(**SMALL, scale=3.0, shift=0.5), seed=4)
    torch.testing.assert_close(scaled.make_engine(scaled.make_policy()).table.reward, 3 * table.reward + 0.5)


def test_the_controller_has_100_from_either_start_and_a_policy_that_stays_0() -> None:
    task = CornerTask(Options(**SMALL), seed=0)
    world = task.world
    assert world is not None

    class Acts:
        mean = torch.zeros(2)

        def __init__(self, by: Any) -> None:
            self.by = by

        def act(self, observation: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.by((observation + 1) / 2)
            return found

    good: Any = Acts(world.controller)
    found = task.evaluate(good, samples=32, seed=1)
    assert found["score"] == pytest.approx(100, abs=1e-3)
    assert found["score_perturbed"] == pytest.approx(100, abs=1e-3)
    assert found["fall"] == pytest.approx(0, abs=1e-3)
    stays: Any = Acts(torch.zeros_like)
    found = task.evaluate(stays, samples=32, seed=1)
    # Random actions hardly reach the goal in time either.
    assert -20 < found["score"] <= 0
    generator = torch.Generator().manual_seed(0)
    returns, _ = play(world, world.controller, world.reset(64, generator))
    assert -21 < float(returns.mean()) < -18


def a_job(method: str, size: int, **settings: Any) -> Job:
    held = arena("offline-perturbed")
    held = dataclasses.replace(held, options=SMALL, budget=dataclasses.replace(held.budget, size=size))
    return Job(method=method, settings=settings, seed=0, arena=held, function=held.function, model="")


def test_a_run_reports_its_figures_and_is_the_same_twice() -> None:
    def once() -> Any:
        job = a_job("odice", 640, rows=32)
        report = Reporter("odice", 0, 640, lambda message: None)
        score = perturbed(job, report)
        return score, report.run(score, job.arena.scoring.tasks)

    score, run = once()
    again, other = once()
    assert score == again
    assert run.diagnostics == other.diagnostics
    assert [(point.samples, point.score) for point in run.curve] == [(p.samples, p.score) for p in other.curve]
    # Twenty steps of 32 rows, eight marks.
    assert [point.samples for point in run.curve] == [0, 96, 160, 256, 320, 416, 480, 576, 640]
    assert {"score_perturbed", "fall", "dice/cosine", "weight/positive"} <= set(run.diagnostics)
    last = {name: points[-1][1] for name, points in run.diagnostics.items()}
    assert last["fall"] == pytest.approx(score - last["score_perturbed"], abs=1e-4)


def test_the_claim_on_perturbed_starts_is_stated() -> None:
    found = {one.claim.label: one for one in stated("odice")}
    claim = found["perturbed-starts"]
    assert claim.arena.name == "offline-perturbed"
    ours, theirs = claim.sides
    assert ours.job(claim.arena, 0).function == "vantage.study.runs.offline:perturbed"
    assert theirs.job(claim.arena, 0).settings["gradient"] == "semi"


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="did you mean spread"):
        options_of({"spred": 0.1})
    for given in ({"good": 500}, {"spread": 2.0}, {"steps": 0}):
        with pytest.raises(UserError, match=next(iter(given))):
            options_of(given)
    report = Reporter("x", 0, 640, lambda message: None)
    with pytest.raises(UserError, match="less than one step of 256"):
        perturbed(a_job("odice", 100), report)
    with pytest.raises(UserError, match="ppo does not learn from recorded transitions"):
        perturbed(a_job("ppo", 640), report)
    assert vantage.method("odice").rollout.rows == 256
