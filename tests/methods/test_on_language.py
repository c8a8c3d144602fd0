"""What some pages ask of a real language model and its engine: hints, windows, continuations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vantage
from vantage.core import Schedule, Trainer
from vantage.methods.sampling.scaf_grpo import HintLadder
from vantage.rollouts.templates import Template
from vantage.tasks.language.loading import task_from_spec
from vantage.tasks.language.problem import Problem
from vantage.tasks.language.problems import problem_set
from vantage.tasks.language.task import LanguageTask

pytest.importorskip("transformers")


def trainer(method: vantage.Method, task: LanguageTask, steps: int) -> Trainer:
    torch.manual_seed(0)
    policy = task.make_policy(seed=0)
    return Trainer(method, task, policy, task.make_engine(policy), Schedule(steps), seed=1, micro_batch=4)


def few(**options: Any) -> LanguageTask:
    """Eight problems and a tiny model with random weights, whose answers stop at eight tokens."""
    return task_from_spec("modular:length=1,modulus=2", options={"max_new_tokens": 8, "evaluated": 4, **options})


class Hinted:
    """Additions whose data tells the answer."""

    def __init__(self) -> None:
        self.inner = problem_set("addition:digits=1")
        self.name, self.description = self.inner.name, self.inner.description
        self.size, self.score = self.inner.size, self.inner.score

    def problem(self, split: str, index: int) -> Problem:
        found = self.inner.problem(split, index)
        return Problem(found.prompt, found.answer, found.solution, {"hints": {"solution": [found.answer]}})


def test_hints_of_the_data_reach_the_prompt() -> None:
    task = LanguageTask(Hinted(), max_new_tokens=4, evaluated=4)
    ladder = HintLadder(("solution",), 1, Template("{hint};{prompt}"))
    method = vantage.method("scaf-grpo", prompts=2, group_size=2, warmup=0).adapt("rollout", ladder=ladder)
    run = trainer(method, task, 1)
    engine = run.context.engine
    asked: list[Any] = []
    sample = engine.sample

    def watch(prompts: Any, *arguments: Any, **settings: Any) -> Any:
        asked.append(list(prompts.items))
        return sample(prompts, *arguments, **settings)

    engine.sample = watch  # type: ignore[method-assign]
    batch = run.context.method.rollout(run.context)
    assert len(batch) == 4
    bare, hinted = asked
    assert len(hinted) == len(bare) == 2  # an untrained model solves neither
    for prompt, with_hint in zip(bare, hinted, strict=True):
        first, _, second = prompt[:-1].partition("+")
        assert with_hint == f"{int(first) + int(second)};{prompt}"


def test_windows_resume_answers_of_a_language_model_where_they_stopped() -> None:
    run = trainer(vantage.method("t-ppo", rows=5, window=3, lr=1e-4), few(), 3)
    where = run.context
    first = where.method.rollout(where)
    held = first.select(~first.ended)
    assert len(held)
    second = where.method.rollout(where)
    for row in range(len(held)):
        size = int(held.length[row])
        assert second.action[row, :size].tolist() == held.action[row, :size].tolist()
        assert second.logp_old[row, :size].tolist() == held.logp_old[row, :size].tolist()
        assert not second.mask[row, :size].any()
        assert 0 < int(second.mask[row].sum()) <= 3
    # The policy that acted gives new tokens the log-probabilities that the engine recorded.
    torch.testing.assert_close(where.evaluate(second)[second.mask], second.logp_old[second.mask], rtol=1e-3, atol=1e-3)


def test_continuations_of_a_language_model_start_at_step_boundaries() -> None:
    run = trainer(
        vantage.method("vineppo", prompts=2, group_size=2, count=3, steps="tokens", unfinished=None), few(), 1
    )
    where = run.context
    batch = where.verify(where.method.rollout(where))
    batch = where.method.rewards[0](batch, where)
    seen: list[Any] = []
    resume = where.engine.resume

    def watch(rows: Any, which: Any, places: Any, count: int, *arguments: Any, **settings: Any) -> Any:
        found = resume(rows, which, places, count, *arguments, **settings)
        seen.append((which, places, found))
        return found

    where.engine.resume = watch  # type: ignore[attr-defined]
    batch = where.method.values(batch, where)
    ((which, places, found),) = seen
    for state in range(len(which)):
        tails = found.select(found.group == state)
        size = int(places[state])
        assert len(tails) == 3
        assert (tails.action[:, :size] == batch.action[which[state], :size]).all()
        assert not tails.mask[:, :size].any()
    credit = where.method.advantage(batch, where)
    torch.testing.assert_close(
        credit.gather(1, torch.zeros_like(batch.length).unsqueeze(1))[:, 0],
        (batch.next_value - batch.value)[:, 0] + batch.score * (batch.length == 1),
    )
