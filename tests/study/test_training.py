"""A run on the road spends its budget and no more, is the same however often it is judged, and a peer is judged alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from vantage.core import Prompts, Trajectories, UserError
from vantage.study.arenas import Arena, Scoring, arena
from vantage.study.contest import entrant
from vantage.study.jobs import Record, carry_out
from vantage.study.meter import BudgetSpent, Horizon, Meter
from vantage.study.results import Budget


class Engine:
    """Rows of `length` decisions."""

    def __init__(self, length: int = 3) -> None:
        self.length = length
        self.calls = 0

    def rows(self, count: int, length: int) -> Trajectories:
        self.calls += 1
        return Trajectories({"mask": torch.ones(count, length, dtype=torch.bool)})

    def sample(self, prompts: Prompts, count: int, context: Any, **settings: Any) -> Trajectories:
        return self.rows(len(prompts) * count, self.length)

    def advance(self, rows: int, steps: int, context: Any) -> Trajectories:
        return self.rows(rows, steps)

    def resume(
        self, batch: Any, rows: Any, positions: Any, count: int, context: Any, *, learn_prefix: bool = False
    ) -> Trajectories:
        found = self.rows(len(rows) * count, self.length)
        kept = torch.arange(self.length) < positions.repeat_interleave(count).unsqueeze(-1)
        return found if learn_prefix else found.replace(mask=found.mask & ~kept)

    def respond(self, batch: Trajectories, texts: Any, context: Any) -> Trajectories:
        return self.rows(len(batch), self.length + 2)

    def encode(self, text: str) -> str:
        return text


PROMPTS = Prompts(torch.arange(4), ["a", "b", "c", "d"])


def test_samples_are_counted_whether_learnt_from_or_not_and_refused_beforehand() -> None:
    engine = Engine()
    meter = Meter(engine, "samples", 30)
    meter.sample(PROMPTS, 5, None, greedy=True)
    meter.resume(None, torch.arange(2), torch.tensor([1, 2]), 4, None)
    assert meter.spent == 28
    with pytest.raises(BudgetSpent):
        meter.sample(PROMPTS, 1, None)
    assert (engine.calls, meter.spent) == (2, 28)
    assert meter.encode("x") == "x"


def test_tokens_are_those_that_were_drawn() -> None:
    meter = Meter(Engine(), "tokens", 1000)
    batch = meter.sample(PROMPTS, 2, None)
    assert meter.spent == 24
    # Of 3 tokens, 1 and 2 were there already: 4 x (2 + 1) are new, whether the kept ones are learnt from or not.
    for learn in (False, True):
        before = meter.spent
        meter.resume(batch, torch.arange(2), torch.tensor([1, 2]), 4, None, learn_prefix=learn)
        assert meter.spent - before == 12
    before = meter.spent
    meter.respond(batch, ["t"] * 8, None)
    assert meter.spent - before == 8 * 2
    turns = Meter(Engine(), "samples", 1000)
    turns.respond(batch, ["t"] * 8, None)
    assert turns.spent == 0


def test_environment_steps_are_refused_beforehand_where_they_are_known() -> None:
    engine = Engine(length=10)
    meter = Meter(engine, "environment steps", 100)
    meter.advance(4, 20, None)
    assert meter.spent == 80
    with pytest.raises(BudgetSpent):
        meter.advance(4, 20, None)
    assert engine.calls == 1
    # Episodes' lengths are known when they are over.
    with pytest.raises(BudgetSpent):
        meter.sample(PROMPTS, 1, None)
    assert engine.calls == 2


def test_the_horizon_is_exact_where_steps_cost_the_same_and_follows_where_they_do_not() -> None:
    even = Horizon(100_000, 512)
    assert even.at_start() == 195
    assert even.after(1, 512) == 195
    assert even.after(2, 1024) == 195
    odd = Horizon(1000, None)
    assert odd.after(1, 100) == 10
    assert odd.after(2, 300) == 2 + round(700 * 2 / 300)
    # As long as something is left, one more step is tried.
    assert odd.after(3, 999) == 4
    with pytest.raises(UserError, match="less than one step"):
        Horizon(100, 512)


# real runs -------------------------------------------------------------------------------------------------------------

gymnasium = pytest.importorskip("gymnasium", reason="the control extra is not installed")
SMALL = {"rows": 2, "length": 32, "epochs": 2, "minibatches": 2}


def poles(size: float = 300, points: int = 2) -> Arena:
    return Arena(
        "poles",
        "control",
        Budget("environment steps", size),
        Scoring("return", samples=2, points=points),
        task="cartpole",
    )


def ran(where: Arena, method: str, settings: dict[str, Any], seed: int = 0) -> Record:
    return carry_out(entrant(where, method, settings).job(where, seed), method)


def test_a_run_spends_its_budget_and_is_the_same_however_often_it_is_judged() -> None:
    record = ran(poles(), "ppo", SMALL)
    # 4 steps of 64; a fifth would be beyond 300.
    assert [point.samples for point in record.run.curve] == [0, 192, 256]
    assert record.run.score == record.run.curve[-1].score
    assert {"entropy", "gradient_norm", "clip_fraction", "length"} <= set(record.run.diagnostics)
    rates = [rate for _, rate in record.run.diagnostics["lr"]]
    assert rates == pytest.approx([3e-4, 2.25e-4, 1.5e-4, 0.75e-4])
    often = ran(poles(points=4), "ppo", SMALL)
    assert [point.samples for point in often.run.curve] == [0, 128, 192, 256]
    assert often.run.score == record.run.score
    assert often.run.diagnostics["gradient_norm"] == record.run.diagnostics["gradient_norm"]
    assert (
        ran(poles(), "ppo", SMALL, seed=1).run.diagnostics["gradient_norm"] != record.run.diagnostics["gradient_norm"]
    )


def test_episodes_of_unknown_length_end_within_the_budget() -> None:
    record = ran(poles(1000), "reinforce", {"episodes": 4})
    assert 0 < record.run.curve[-1].samples <= 1000


def test_a_budget_below_one_step_and_an_unknown_metric_are_told() -> None:
    with pytest.raises(UserError, match="less than one step"):
        ran(poles(60), "ppo", SMALL)
    with pytest.raises(UserError, match="less than one step"):
        ran(poles(5), "reinforce", {"episodes": 4})
    where = poles()
    with pytest.raises(UserError, match="did you mean return"):
        ran(replace(where, scoring=replace(where.scoring, metric="returns")), "ppo", SMALL)


@pytest.mark.peers
def test_a_peer_runs_in_the_same_arena_and_is_judged_alike() -> None:
    pytest.importorskip("stable_baselines3", reason="the peers extra is not installed")
    settings = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 2, "anneal": True}
    record = ran(poles(), "sb3-ppo", settings)
    assert [point.samples for point in record.run.curve] == [0, 192, 256]
    assert all(point.score > 0 for point in record.run.curve)
    normalised = replace(poles(), task="pendulum")
    assert ran(normalised, "sb3-ppo", {**settings, "normalize": True}).run.score < 0
    with pytest.raises(UserError, match="less than one rollout"):
        ran(poles(60), "sb3-ppo", settings)


def test_a_language_run_spends_its_samples_and_keeps_completions_to_read() -> None:
    pytest.importorskip("transformers", reason="the language extra is not installed")
    where = arena("arithmetic")
    where = replace(
        where,
        budget=Budget("samples", 70),
        scoring=replace(where.scoring, samples=2, points=1),
        options={**where.options, "evaluated": 8},
        defaults={"prompts": 4, "group_size": 4},
    )
    record = ran(where, "remax", {})
    # 4 x 4 and 4 greedy ones a step: three steps.
    assert record.run.curve[-1].samples == 60
    assert len(record.samples) == 8
    assert record.samples[0].prompt.endswith("=")
    assert record.samples[0].reward in (0.0, 1.0)
    assert {"gradient_norm", "pass@2", "length"} <= set(record.run.diagnostics)
