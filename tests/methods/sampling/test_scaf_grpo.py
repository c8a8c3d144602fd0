"""Scaf-GRPO: the numbers of its card."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import ToyEngine, ToyTask
from tests.harness import context, loss_of, random_batch
from tests.methods.toys import assert_resumes, trainer
from tests.reference import Case, cases
from vantage.core import Prompts, Trajectories, UserError
from vantage.core.checkpoint import load_tensors
from vantage.methods.sampling.scaf_grpo import HintLadder

SEARCHED = 3
"""The symbol that solves every prompt."""


class Hard(ToyTask):
    """1 where the first symbol is the one searched for; the policy of the tests never finds it unaided."""

    def score(self, batch: Trajectories, where: Any) -> dict[str, torch.Tensor]:
        return {"right": ((batch.action[:, 0] == SEARCHED) & batch.mask[:, 0]).float()}

    def fields(self, ids: torch.Tensor) -> list[dict[str, Any]]:
        # Prompt 5 has no hints.
        return [{"levels": [] if number == 5 else [1, 2, SEARCHED, 4, SEARCHED]} for number in ids.tolist()]

    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        return {"right": float(policy.logits(torch.arange(5), 1)[0].softmax(-1)[:, 0, SEARCHED].mean().detach())}


def ladder(item: Any, fields: Any) -> list[Any]:
    """Hints of the toy are symbols that the prompt says."""
    return [(item, symbol) for symbol in fields["levels"]]


class Obedient(ToyEngine):
    """Begins with the symbol that a prompt says, and counts prompts with hints; unaided it never begins with the right one."""

    never = True

    def sample(self, prompts: Prompts, count: int, where: Any, **options: Any) -> Trajectories:
        self.hinted = getattr(self, "hinted", 0) + sum(isinstance(item, tuple) for item in prompts.items) * count
        batch = super().sample(prompts, count, where, **options)
        first = torch.where(batch.observation >= 0, batch.observation, batch.action[:, 0])
        if self.never:
            first = torch.where((batch.observation < 0) & (first == SEARCHED), 1, first)
        action = batch.action.clone()
        action[:, 0] = first
        batch = batch.replace(action=action, mask=torch.ones_like(batch.mask), length=torch.full_like(batch.length, 4))
        return batch.replace(logp_old=where.evaluate(batch))


def method(**settings: Any) -> vantage.Method:
    made = vantage.method("scaf-grpo", **{"prompts": 6, "warmup": 0, "minibatches": 1, **settings})
    return made.adapt("rollout", ladder=ladder)


def start(made: vantage.Method, steps: int = 1, engine: Any = Obedient) -> Any:
    run = trainer(made, steps, task=Hard())
    run.context.engine = engine(run.context.policy)
    return run


@cases("scaf-grpo", "prompts")
def test_the_prompts_are_the_authors(case: Case) -> None:
    made = vantage.method("scaf-grpo", stages=tuple(case.settings["stages"])).rollout.ladder
    asked = [{stage: one[stage] for stage in ("knowledge", "planning", "solution")} for one in case.inputs["problems"]]
    found = [made(one["question"], {"hints": hints}) for one, hints in zip(case.inputs["problems"], asked, strict=True)]
    assert found == case.outputs["prompts"]


@cases("scaf-grpo", "rescue")
def test_the_level_and_the_row_that_are_replaced_are_the_authors(case: Case) -> None:
    class Told(Hard):
        def fields(self, ids: torch.Tensor) -> list[dict[str, Any]]:
            return [
                {"levels": [SEARCHED if won else 1 for won in case.inputs["won"][number]]} for number in ids.tolist()
            ]

    run = start(method(**case.settings))
    run.context.task = Told()
    batch = run.context.method.rollout(run.context)
    prompts = batch.prompt.view(6, -1)[:, 0]
    case.check("hint", batch.hint.view(6, -1)[prompts.argsort()])


@cases("scaf-grpo", "advantage")
def test_the_advantages_are_the_authors(case: Case) -> None:
    score = case.tensor("score")
    batch = random_batch(len(score), 1, size=8).replace(score=score, group=case.tensor("group").long())
    case.check("advantage", vantage.method("scaf-grpo").advantage(batch, context())[:, 0])


@cases("scaf-grpo", "loss")
def test_the_loss_is_the_authors(case: Case) -> None:
    columns = {name: case.tensor(name) for name in ("mask", "logp_old", "advantage")}
    logp = case.tensor("logp").requires_grad_()
    batch = random_batch(*case.tensor("mask").shape).replace(**columns)
    loss = loss_of(vantage.method("scaf-grpo"), batch, logp=logp)
    loss.backward()
    case.check("loss", loss)
    case.check("grad", logp.grad)


def test_the_weakest_success_takes_the_place_of_the_first_failure() -> None:
    run = start(method())
    batch = run.context.method.rollout(run.context)
    assert run.context.engine.hinted == 5 * 5  # failed groups with hints, times levels
    assert len(batch) == 48
    for group in range(6):
        part = batch.select(batch.group == group)
        prompt = int(part.prompt[0])
        assert len(torch.unique(part.prompt)) == 1
        assert part.hint[1:].tolist() == [-1] * 7
        assert (part.observation[1:] == -1).all()
        # Levels 2 and 4 succeed: the lower one is taken.
        assert int(part.hint[0]) == (-1 if prompt == 5 else 2)
        assert float(part.rewards["right"].sum()) == (0 if prompt == 5 else 1)
        assert int(part.observation[0]) == (-1 if prompt == 5 else SEARCHED)
    metrics = run.context.metrics.collect()
    assert metrics["rescue/failed"] == 1
    assert metrics["rescue/saved"] == pytest.approx(5 / 6)
    # What the hinted answers score, two levels of five, is no part of what the policy scores unaided.
    assert metrics["drawn/reward/right"] == 0
    assert "reward/right" not in metrics
    assert metrics["rescue/reward/right"] == pytest.approx(2 / 5)


def test_advantages_of_a_rescued_group() -> None:
    made = method()
    batch = random_batch(8, 3, size=8).replace(score=torch.tensor([1.0] + [0.0] * 7))
    found = made.advantage(batch, context())[:, 0]
    assert found.tolist() == pytest.approx([2.474867] + [-0.353552] * 7, abs=2e-6)
    assert float(found.sum()) == pytest.approx(0, abs=1e-5)


def test_a_rescued_row_is_on_policy_under_its_own_prompt_alone() -> None:
    run = start(method())
    batch = run.context.method.rollout(run.context)
    saved = batch.select(batch.hint >= 0)
    ratio = (run.context.evaluate(saved) - saved.logp_old).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio))
    bare = run.context.evaluate(saved.replace(observation=torch.full((len(saved),), -1)))
    assert (bare - saved.logp_old).abs().max() > 0.1


def test_where_every_hint_fails_nothing_changes() -> None:
    made = vantage.method("scaf-grpo", prompts=6, warmup=0).adapt(
        "rollout", ladder=lambda item, fields: [(item, 1), (item, 2)]
    )
    run = start(made)
    batch = run.context.method.rollout(run.context)
    assert (batch.hint == -1).all()
    assert batch.rewards["right"].sum() == 0
    assert run.context.metrics.collect()["rescue/saved"] == 0
    run.step()
    before = {name: value.clone() for name, value in run.context.policy.state_dict().items()}
    run.step()
    assert all(torch.equal(before[name], value) for name, value in run.context.policy.state_dict().items())


def test_in_the_warm_up_it_is_grpo_bit_for_bit(tmp_path) -> None:
    same: dict[str, Any] = {"prompts": 6, "group_size": 8, "lr": 1e-2}
    for name, made in (
        ("scaf", method(warmup=50, **same)),
        (
            "grpo",
            vantage.method("grpo", beta=0.0, parts={"advantage.eps": 1e-6}, **same).replace(averaging="token-mean"),
        ),
    ):
        (tmp_path / name).mkdir()
        trainer(made, 4, tmp_path / name, task=Hard()).run()
    left, right = (
        load_tensors(tmp_path / name / "checkpoints/step-00000004/policy.safetensors") for name in ("scaf", "grpo")
    )
    assert all(torch.equal(left[key], right[key]) for key in right)
    run = start(method(warmup=1))
    run.context.method.rollout(run.context)
    assert run.context.engine.hinted == 0
    run.context.step = 1
    run.context.method.rollout(run.context)
    assert run.context.engine.hinted == 25


def test_groups_that_are_not_all_wrong_are_left_alone() -> None:
    class Able(Obedient):
        never = False

    run = start(method(group_size=3), engine=Able)
    with torch.no_grad():
        run.context.policy.head.zero_()
        run.context.policy.embed.zero_()
    batch = run.context.method.rollout(run.context)
    for group in range(6):
        part = batch.select(batch.group == group)
        if (part.hint >= 0).any():
            assert float(part.rewards["right"].sum()) == 1
    assert 0 < int((batch.hint >= 0).sum()) < 6


def test_prompts_of_the_ladder() -> None:
    hints = {"knowledge": ["Carry.", "It is 1."], "solution": ["So 12."]}
    found = HintLadder(parts=3)("5+7=", {"hints": hints})
    knowledge = [
        f"Question: 5+7=\nKnowledge Hints: {text}" for text in ("Carry.", "Carry. It is 1.", "Carry. It is 1.")
    ]
    assert found == [*knowledge, *["Question: 5+7=\nSolution Hints: So 12."] * 3]
    chat = HintLadder(("planning",), 1)([{"role": "user", "content": "Q"}], {"hints": {"planning": ["P"]}})
    assert chat == [[{"role": "user", "content": "Question: Q\nPlanning Hints: P"}]]
    assert HintLadder()("x", {}) == []
    assert HintLadder()("x", {"hints": None}) == HintLadder()("x", {"hints": {"knowledge": [], "planning": None}}) == []
    # An empty stage is asked with its label, where another has parts.
    assert (
        HintLadder(parts=1)("x", {"hints": {"knowledge": [], "solution": ["y"]}})[0] == "Question: x\nKnowledge Hints: "
    )
    # A ladder may leave out stages of the paper, as the authors' trainer does.
    assert len(HintLadder(("solution",), 2)("5+7=", {"hints": hints})) == 2


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        (
            {"knowledge": "Carry."},
            r"problem '5\+7=' have 'Carry\.' in the stage 'knowledge'.* write one hint as \[hint\]",
        ),
        ({"planning": ["Add.", 3]}, r"\['Add\.', 3\] in the stage 'planning'.* list of texts"),
        ({"planning": 3}, "have 3 in the stage 'planning'"),
        ({"Knowledge": ["Carry."]}, "a stage 'Knowledge'; did you mean knowledge.* rename it in the data"),
        ({"knowledge": ["Carry."], "last": ["So 12."]}, r"a stage 'last'.*known: knowledge, planning, solution"),
        ("Carry.", r"'5\+7=' are 'Carry\.'; they must be \{stage: \[part, \.\.\]\}"),
        (["Carry."], "they must be"),
    ],
)
def test_hints_of_another_form_are_refused(hints: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        HintLadder()("5+7=", {"hints": hints})


def test_tasks_and_settings_that_cannot_are_refused() -> None:
    run = start(method())
    run.context.task = ToyTask()
    run.context.task.score = Hard().score  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the task 'toy' has no fields, so no hints"):
        run.step()
    with pytest.raises(UserError, match=r"Scaffolded\.warmup=-1"):
        vantage.method("scaf-grpo", warmup=-1)


def test_hints_teach_what_is_never_found_unaided_and_the_run_resumes(tmp_path) -> None:
    def probability(made: vantage.Method) -> float:
        run = start(made, 40)
        run.run()
        return run.context.task.evaluate(run.context.policy, samples=1, seed=0)["right"]

    helped = probability(method(lr=3e-2))
    alone = probability(vantage.method("grpo", prompts=6, group_size=8, lr=3e-2, beta=0.0))
    assert helped > alone + 0.2
    assert_resumes(tmp_path, method(lr=3e-2), task=Hard())
