from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vantage.core.errors import UserError
from vantage.fields.search.games import tictactoe
from vantage.fields.search.rules import best
from vantage.study.arenas import arena
from vantage.study.jobs import Job, Reporter
from vantage.study.results import Budget
from vantage.study.runs.search import against_the_best, run


def job(name: str, method: str, size: int, settings: dict[str, Any], **options: Any) -> Job:
    found = arena(name)
    small = replace(found, budget=Budget(found.budget.unit, size), options={**found.options, **options})
    small = replace(small, scoring=replace(small.scoring, points=1))
    return Job(method, settings, 0, small, found.function)


def test_perfect_play_has_the_best_score_and_any_play_less() -> None:
    game = tictactoe()
    legal = game.successor >= 0
    assert against_the_best(game, best(game.action_values, legal)) == pytest.approx(0.0, abs=1e-12)
    assert -1.3 < against_the_best(game, legal / legal.sum(-1, keepdim=True).clamp(min=1)) < -0.6


@pytest.mark.parametrize("method", ["uct", "alphazero-rule", "mcts-regularized"])
def test_more_simulations_choose_better(method: str) -> None:
    asked = job("bandit-tree", method, 64, {}, trees=200)
    report = Reporter("x", 0, 64)
    score = run(asked, report)
    assert [point.samples for point in report.curve] == [0, 1, 2, 4, 8, 16, 32, 64]
    assert report.curve[-1].score == score
    assert 0.4 < score <= 1.0
    assert report.curve[1].score < 0.3
    few = job("bandit-tree", method, 64, {}, trees=20)
    assert run(few, Reporter("x", 0, 64)) == run(few, Reporter("x", 0, 64))


@pytest.mark.parametrize("method", ["alphazero-rule", "mcts-regularized"])
def test_self_play_runs_within_its_budget(method: str) -> None:
    report = Reporter("x", 0, 2000)
    score = run(job("tictactoe-4", method, 2000, {}, games=32), report)
    assert 0 < report.curve[-1].samples <= 2000
    assert score == report.curve[-1].score < 0
    assert "prior_return" in report.run(score, ("score",)).diagnostics


def test_it_learns() -> None:
    report = Reporter("x", 0, 40_000)
    score = run(job("tictactoe-4", "mcts-regularized", 40_000, {}), report)
    assert score > report.curve[0].score + 0.3


def test_bad_arenas_are_refused() -> None:
    with pytest.raises(UserError, match="unknown game 'go'"):
        run(job("bandit-tree", "uct", 8, {}, game="go"), Reporter("x", 0, 8))
    with pytest.raises(UserError, match=r"unknown option 'tree'.*trees"):
        run(job("bandit-tree", "uct", 8, {}, tree=3), Reporter("x", 0, 8))
    with pytest.raises(UserError, match="no tree search"):
        run(job("bandit-tree", "softmax-pg", 8, {}), Reporter("x", 0, 8))
