"""What a step costs is said by the plan, and a run of environment steps takes as many as were asked for."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vantage
from tests.core.test_composition import classes
from vantage.core import Schedule, Trainer, UserError
from vantage.core.costs import Budget, Cost, cost
from vantage.core.runlog import read_metrics
from vantage.methods.credit.igrpo import BestDraft
from vantage.methods.credit.t_ppo import Windows
from vantage.methods.generative.branchgrpo import Tree
from vantage.methods.objectives.remax import GreedyCompanion
from vantage.methods.operations.poppy import Population
from vantage.methods.sampling.repo_replay import PromptReplay
from vantage.methods.sampling.scaf_grpo import Scaffolded
from vantage.progress import outlook
from vantage.rollouts.denoising import Denoise, Sampler
from vantage.rollouts.offline import Transitions
from vantage.rollouts.pairs import Duels, PairsAndFresh, StoredPairs
from vantage.rollouts.plans import Groups, Refill, Steps
from vantage.rollouts.replay import RecentReplay
from vantage.rollouts.routing import MultiStart
from vantage.rollouts.trees import Trees
from vantage.updates.gradient import GradientUpdate
from vantage.updates.targets import Every

pytest.importorskip("gymnasium")

COSTS: list[tuple[Any, Cost]] = [
    (Groups(3, 4), Cost(12, 12)),
    (Steps(4, 128), Cost(4, 4, 512, 512)),
    (Transitions(256), Cost(256, 256, 256)),
    (StoredPairs(5), Cost(10, 10)),
    (PairsAndFresh(2, 3, 4), Cost(16, 16)),
    (Duels(3, 2), Cost(6, 12)),
    (GreedyCompanion(3, 4), Cost(12, 15)),
    (BestDraft(3, 4, drafts=2), Cost(12, 18)),
    (Scaffolded(3, 4), Cost(12)),
    (Trees(3, 4, first=(2, 4)), Cost(12)),
    (Windows(6, 2), Cost(6, 6)),
    (MultiStart(3, 5), Cost(15, 15)),
    (MultiStart(3), Cost()),
    (Population(3, 5, agents=2), Cost(30, 30)),
    (Population(3, 5, agents=2, warm=0.5), Cost()),
    (Denoise(3, 4, Sampler(10)), Cost(12, 12, 120, 120)),
    (Tree(3, (0, 2)), Cost(12)),
    (Refill(Groups(3, 4)), Cost()),
    (RecentReplay(Groups(3, 4), 0.0), Cost(12, 12)),
    (RecentReplay(Groups(3, 4), 0.5), Cost(12)),
    (PromptReplay(Groups(3, 4)), Cost(None, 12)),
    (PromptReplay(RecentReplay(Groups(3, 4), 0.5)), Cost()),
    (SimpleNamespace(), Cost()),
]


@pytest.mark.parametrize(
    ("plan", "expected"), COSTS, ids=[f"{type(plan).__name__}-{i}" for i, (plan, _) in enumerate(COSTS)]
)
def test_what_a_step_costs(plan: Any, expected: Cost) -> None:
    assert cost(plan) == expected


def test_units_and_episodes_that_all_have_as_many_decisions() -> None:
    found = cost(PromptReplay(Groups(3, 4)), episode=50)
    assert [found.of(unit) for unit in ("rows", "samples", "tokens", "environment steps")] == [None, 12, 600, 600]


def test_every_plan_says_what_it_costs_or_is_known_not_to() -> None:
    silent = set()
    for cls in classes():
        call = cls.__dict__.get("__call__")
        if call is None or not cls.__module__.startswith(("vantage.rollouts", "vantage.methods", "vantage.tasks")):
            continue
        if list(inspect.signature(call).parameters) == ["self", "context"] and "Trajectories" in str(
            call.__annotations__
        ):
            silent |= {cls.__name__} if not hasattr(cls, "cost") else set()
    assert silent == {"Refill"}


def control(method: Any, steps: int, folder: Path | None = None, task: str = "cartpole") -> Trainer:
    made = vantage.task(task)
    policy = method.policy_for(made, seed=0)
    schedule = Schedule(steps, unit=made.unit, save_every=1)
    return Trainer(method, made, policy, made.make_engine(policy, seed=0), schedule, seed=3, folder=folder)


@pytest.mark.parametrize(
    ("steps", "rows", "length", "last", "taken"),
    [(600, 4, 64, 22, 600), (512, 4, 64, 64, 512), (601, 4, 64, 23, 604), (10, 4, 64, 3, 12)],
)
def test_a_plan_of_steps_meets_its_budget_by_a_shorter_last_batch(
    steps: int, rows: int, length: int, last: int, taken: int
) -> None:
    run = control(vantage.method("ppo", rows=rows, length=length, epochs=1, minibatches=2), steps)
    lengths: list[int] = []
    run.listeners.append(lambda told: lengths.append(told.batch.steps) if told.batch is not None else None)
    assert run.context.total_steps == -(-steps // (rows * length))
    outcome = run.run()
    assert outcome.step == run.context.total_steps == len(lengths)
    assert lengths[-1] == last
    assert set(lengths[:-1]) <= {length}
    assert run.context.budget is not None
    assert run.context.budget.taken == taken
    assert run.context.progress == 1.0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("grpo", {"prompts": 4, "group_size": 4}),
        ("dapo", {"prompts": 4, "group_size": 4, "minibatches": 1}),
        ("dapo", {"minibatches": 1}),
        ("remix", {"prompts": 4, "group_size": 4}),
        ("repo-replay", {"prompts": 4, "group_size": 4, "least": 2, "take": 2, "capacity": 4}),
    ],
)
def test_groups_of_episodes_end_with_the_prompt_that_spends_the_budget(name: str, settings: dict[str, Any]) -> None:
    run = control(vantage.method(name, lr=1e-3, **settings), 2000)
    counted = run.run()
    budget = run.context.budget
    assert budget is not None
    assert 2000 <= budget.taken < 2000 + 16 * 200
    assert counted.history[-1]["environment_steps"] == budget.taken
    ended = sum(line["episode/count"] * line["episode/length"] for line in counted.history[1:])
    assert ended == pytest.approx(budget.taken)
    assert counted.status == "finished"
    if "prompts" in settings:
        assert budget.taken < 2000 + 4 * 500
        assert counted.step > 1


def test_episodes_of_one_length_are_counted_before_the_first_step() -> None:
    run = control(vantage.method("grpo", prompts=2, group_size=3, lr=1e-3), 1000, task="inventory:periods=50")
    assert run.context.budget is not None
    assert run.context.budget.each == 300
    assert run.context.total_steps == 4
    assert run.run().step == 4
    # The fourth step has one prompt instead of two: 100 periods are left.
    assert run.context.budget.taken == 1050


@pytest.mark.parametrize("name", ["ppo", "dapo"])
def test_a_resumed_run_does_the_same_steps(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"minibatches": 1, "prompts": 3, "group_size": 4}
    if name == "ppo":
        settings = {"minibatches": 2, "rows": 4, "length": 64, "epochs": 1}
    method = vantage.method(name, **settings)
    for folder in ("whole", "part"):
        (tmp_path / folder).mkdir()
    whole = control(method, 1800, tmp_path / "whole")
    outcome = whole.run()
    part = control(method, 1800, tmp_path / "part")

    def stop(told: Any) -> None:
        part._interrupted = told.step == 2

    part.listeners.append(stop)
    assert part.run().status == "interrupted"
    again = control(method, 1800, tmp_path / "part")
    assert again.restore() == 2
    assert again.run().step == outcome.step
    assert read_metrics(tmp_path / "part") == read_metrics(tmp_path / "whole")
    assert again.context.budget is not None
    assert whole.context.budget is not None
    assert again.context.budget.taken == whole.context.budget.taken


def test_a_budget_counts_on_from_what_the_engine_has_taken() -> None:
    engine = SimpleNamespace(taken=0)
    even, odd = Budget(100_000, engine, 512), Budget(1000, engine, None)
    assert (even.steps(0), odd.steps(0)) == (196, 100)
    with pytest.raises(UserError, match="1 steps have taken no environment step"):
        odd.steps(1)
    with pytest.raises(UserError, match="object does not count environment steps"):
        Budget(10, object(), None)
    engine.taken = 300
    assert odd.steps(2) == 2 + 5  # 150 a step
    engine.taken = 99_999
    assert even.steps(195) == 196
    even.before = 1
    assert (even.left, even.steps(196)) == (0, 196)


def test_routing_methods_on_other_tasks_say_so() -> None:
    for task in ("inventory:periods=50", "cartpole"):
        with pytest.raises(UserError, match="pomo needs a policy that builds tours"):
            vantage.train("pomo", task, steps=1000, settings={"prompts": 2})


def test_what_is_printed_before_the_first_step() -> None:
    ppo = control(vantage.method("ppo", rows=8, length=256, epochs=10, minibatches=32), 60_000)
    assert outlook(ppo.context) == (
        "60,000 environment steps: 30 steps of 2,048 (the last of 608), 9,600 optimiser steps"
    )
    dapo = control(vantage.method("dapo", prompts=4, group_size=4, minibatches=2), 2000)
    assert outlook(dapo.context) == "2,000 environment steps, in an unknown number of steps, 2 optimiser steps a step"
    grpo = control(vantage.method("grpo", prompts=4, group_size=4), 2000)
    assert "16 episodes a step" in outlook(grpo.context)
    said: list[str] = []
    vantage.train(
        "ppo",
        "cartpole",
        steps=64,
        settings={"rows": 4, "length": 16, "epochs": 1, "minibatches": 1},
        evaluate_samples=0,
        report=said.append,
    )
    assert said == ["64 environment steps: 1 step of 64, 1 optimiser step"]
    assert Every(3, GradientUpdate(epochs=2, minibatches=3)).optimizer_steps == 2


def test_metrics_of_a_run_with_a_folder_are_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vantage.core.trainer.REMEMBERED", 3)
    settings = {"rows": 2, "length": 8, "epochs": 1, "minibatches": 1}
    run = vantage.train("ppo", "cartpole", steps=16 * 8, settings=settings, evaluate_samples=0, out=tmp_path / "run")
    assert [line["step"] for line in run.outcome.history] == [6, 7, 8]
    assert [line["step"] for line in run.metrics] == list(range(9))
    kept = vantage.train("ppo", "cartpole", steps=16 * 8, settings=settings, evaluate_samples=0)
    assert len(kept.metrics) == 9
