from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vantage.core.errors import UserError
from vantage.study.arenas import arena
from vantage.study.jobs import Job, Reporter
from vantage.study.results import Budget
from vantage.study.runs.tabular import make_world, run


def job(name: str, method: str, size: int, settings: dict[str, Any], **options: Any) -> Job:
    found = arena(name)
    small = replace(found, budget=Budget(found.budget.unit, size), options={**found.options, "replicas": 2, **options})
    return Job(method, settings, 0, small, found.function)


@pytest.mark.parametrize(
    ("name", "method", "size"),
    [
        ("layered-stochastic", "bobw-po", 90),
        ("layered-switching", "bobw-po", 90),
        ("riverswim-tabular", "ucbvi", 120),
        ("riverswim-tabular", "softmax-pg", 12 * 32 * 3),
        ("stopping-4", "softmax-pg", 4 * 32 * 5),
        ("stopping-8", "dynamic-pg", 36 * 32 * 3),
    ],
)
def test_every_arena_runs(name: str, method: str, size: int) -> None:
    asked = job(name, method, size, {})
    report = Reporter("x", 0, size)
    score = run(asked, report)
    assert report.curve[0].samples == 0
    assert report.curve[-1].samples <= size
    assert report.curve[-1].score == score > 0
    assert [a.samples < b.samples for a, b in zip(report.curve, report.curve[1:])].count(False) == 0
    figures = report.run(score, ("score",)).diagnostics
    assert ("half_ratio" in figures) == (asked.arena.scoring.metric == "mean_regret")
    again = Reporter("x", 0, size)
    assert run(asked, again) == score


def test_what_an_arena_may_say() -> None:
    assert make_world(arena("layered-switching").options, 50).order.shape == (50,)
    assert make_world({"problem": "random", "arguments": {"horizon": 2, "states": 3, "actions": 2}}, 1).mdp.shape == (
        2,
        3,
        2,
    )
    with pytest.raises(UserError, match=r"unknown problem 'riverswin'.*riverswim"):
        make_world({"problem": "riverswin"}, 1)
    with pytest.raises(UserError, match=r"unknown option 'replica'.*replicas"):
        make_world({"replica": 3}, 1)
    with pytest.raises(UserError, match="goes with problem"):
        make_world({"problem": "riverswim", "adversary": {"growth": 2.0, "shift": 0.1}}, 1)
    bad = job("stopping-4", "softmax-pg", 1000, {})
    bad = replace(bad, arena=replace(bad.arena, scoring=replace(bad.arena.scoring, metric="regret")))
    with pytest.raises(UserError, match="unknown metric 'regret'"):
        run(bad, Reporter("x", 0, 1000))
    with pytest.raises(UserError, match="begins some at a later step"):
        run(job("riverswim-tabular", "dynamic-pg", 12 * 13 * 32, {}), Reporter("x", 0, 12 * 13 * 32))
