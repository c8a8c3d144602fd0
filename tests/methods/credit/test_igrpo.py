"""iGRPO: the numbers of its card."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import ToyTask
from tests.harness import context, random_batch
from tests.methods.toys import assert_resumes, gain, trainer
from tests.reference import Case, cases
from vantage.core import Prompts, Trajectories, UserError
from vantage.core.checkpoint import load_tensors
from vantage.methods import registry
from vantage.methods.credit.igrpo import BestDraft


class Binary(ToyTask):
    """1 where the first symbol is the prompt's."""

    def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
        return {"right": ((batch.action[:, 0] == batch.prompt % 5) & batch.mask[:, 0]).float()}


def first_symbol(item: Any, draft: Any) -> Any:
    """The toy's prompt that says the draft's first symbol."""
    return (item, draft[0])


def method(**settings: Any) -> vantage.Method:
    made = vantage.method("igrpo", **{"prompts": 6, **settings})
    return made.adapt("rollout", template=first_symbol)


@pytest.mark.parametrize(("drafts", "expected"), [(1, 0.2), (4, 1 - 0.8**4)])
def test_the_best_draft_is_right_as_often_as_any_is(drafts: int, expected: float) -> None:
    run = trainer(method(prompts=3000, drafts=drafts, group_size=1), 1, task=Binary())
    with torch.no_grad():
        run.context.policy.head.zero_()
    run.context.method.rollout(run.context)
    metrics = run.context.metrics.collect()
    assert metrics["draft/best"] == pytest.approx(expected, abs=0.035)
    assert metrics["draft/mean"] == pytest.approx(0.2, abs=0.03)


def test_the_first_of_the_best_stands_in_the_prompt() -> None:
    scores = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    asked: list[Prompts] = []

    class Engine:
        max_length = 4
        resume = None

        def sample(self, prompts: Prompts, count: int, where: Any) -> Trajectories:
            asked.append(prompts)
            rows = len(prompts) * count
            return Trajectories({"mask": torch.ones(rows, 1, dtype=torch.bool), "number": torch.arange(rows)})

        def texts(self, batch: Trajectories) -> list[str]:
            return [f"draft {number}" for number in batch.number.tolist()]

    made = vantage.method("igrpo", prompts=2, drafts=3, template="{prompt} Before: {draft}")
    where: Any = context(
        method=made,
        engine=Engine(),
        next_prompts=lambda count: Prompts(torch.tensor([4, 9]), ["What?", "Why?"]),
        verify=lambda b: b.replace(rewards={"r": scores}, length=torch.ones(6).long(), reward=torch.zeros(6, 1)),
    )
    found = made.rollout(where)
    assert asked[0].items == ["What?", "Why?"]
    assert asked[1].items == ["What? Before: draft 1", "Why? Before: draft 3"]
    assert asked[1].ids.tolist() == [4, 9]
    # Drafts are no part of what is learnt from.
    assert len(found) == 8


def test_without_drafts_it_is_grpo(tmp_path) -> None:
    for name, made in (
        ("igrpo", method(drafts=0, group_size=8, lr=1e-2)),
        ("grpo", vantage.method("grpo", prompts=6, group_size=8, lr=1e-2, beta=0.0, parts={"advantage.eps": 0.0})),
    ):
        (tmp_path / name).mkdir()
        trainer(made, 4, tmp_path / name).run()
    left, right = (
        load_tensors(tmp_path / name / "checkpoints/step-00000004/policy.safetensors") for name in ("igrpo", "grpo")
    )
    assert all(torch.equal(left[key], right[key]) for key in right)


def test_advantages_have_no_eps_and_equal_scores_none() -> None:
    made = vantage.method("igrpo")
    batch = random_batch(4, 3, size=4).replace(score=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert made.advantage(batch, context())[:, 0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])
    assert made.advantage(batch.replace(score=torch.ones(4)), context()).abs().max() == 0


def test_rows_are_judged_under_the_prompt_with_the_draft() -> None:
    run = trainer(method(drafts=4, group_size=4), 1, task=Binary())
    where = run.context
    batch = where.method.rollout(where)
    assert len(batch) == 24
    assert (batch.observation >= 0).all()
    torch.testing.assert_close(where.evaluate(batch)[batch.mask], batch.logp_old[batch.mask])
    bare = where.evaluate(batch.replace(observation=torch.full((24,), -1)))
    assert (bare - batch.logp_old)[batch.mask].abs().max() > 0.1


def test_metrics_are_those_of_the_answers_and_those_of_the_drafts_stand_apart() -> None:
    class Scored(Binary):
        def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
            context.record("rows", float(len(batch)))
            # Answers, whose prompt says a symbol, score 10 more than drafts.
            return {"right": super().score(batch, context)["right"] + 10.0 * (batch.observation >= 0)}

    run = trainer(method(drafts=4, group_size=2), 1, task=Scored())
    metrics, _ = run.step()
    assert metrics["score"] >= 10
    assert metrics["reward/right"] == metrics["score"]
    assert metrics["rows"] == 12
    assert metrics["draft/score"] == metrics["draft/mean"] < 1
    assert metrics["draft/reward/right"] == metrics["draft/mean"]
    assert metrics["draft/rows"] == 24


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{prompt} Again.", "lacks {draft}"),
        ("{draft}", "lacks {prompt}"),
        ("{prompt} {draft} {hint[0]}", "names a field that is not given, {hint}"),
        ("{prompt} {draft} {}", "names a field that is not given, {}"),
        ("{prompt} {draft", "cannot be filled"),
    ],
)
def test_a_template_that_cannot_hold_the_draft_is_refused(template: str, message: str) -> None:
    with pytest.raises(UserError, match=f"BestDraft.template: .*{re.escape(message)}"):
        vantage.method("igrpo", template=template)


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(UserError, match=r"BestDraft\.drafts=-1"):
        BestDraft(drafts=-1)
    where: Any = SimpleNamespace(engine=object(), next_prompts=lambda count: Prompts(torch.arange(1), ["a"]))
    with pytest.raises(UserError, match="BestDraft needs an engine that can resume from a prefix"):
        BestDraft()(where)


def test_it_learns_and_resumes(tmp_path) -> None:
    assert gain(method(drafts=4, group_size=8, lr=3e-2), 60) > 0.2
    assert_resumes(tmp_path, method(drafts=2, lr=3e-2))


@cases("igrpo", "advantage")
def test_advantage_is_verls_without_its_epsilon(case: Case) -> None:
    mask = case.tensor("mask")
    columns = {"mask": mask, "score": case.tensor("scores"), "group": torch.tensor(case.inputs["group"])}
    found = registry.page("igrpo").make().advantage(Trajectories(columns), context())
    case.check("advantages", found)
