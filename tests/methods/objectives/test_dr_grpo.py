"""Dr. GRPO: equality with the authors' code and TRL, a constant length, and an advantage that is not divided by a deviation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import vantage
from tests.harness import context, loss_of, random_batch
from tests.methods.family import batch_of, check_advantage, check_against_trl, check_groups, credited, worked_case
from tests.reference import Case, cases
from vantage.core import Schedule, Trainer
from vantage.core.walk import prepare


@pytest.mark.peers
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_equal_trl(seed: int) -> None:
    check_against_trl(vantage.method("dr-grpo", max_length=9), "dr_grpo", seed, low=0.2, high=0.2, max_length=9)


def test_advantages_are_centred_alone() -> None:
    assert worked_case(vantage.method("dr-grpo")) == pytest.approx([0.75, -0.25, -0.25, -0.25])
    check_groups(vantage.method("dr-grpo"))


def test_advantages_scale_with_the_scores() -> None:
    batch = random_batch(8, 4, size=4)
    once, thrice = (credited(vantage.method("dr-grpo"), batch.replace(score=k * batch.score)).advantage for k in (1, 3))
    torch.testing.assert_close(thrice, 3 * once)


@cases("dr-grpo", "advantage")
def test_advantages(case: Case) -> None:
    check_advantage(case, vantage.method("dr-grpo"))


@cases("dr-grpo", "loss")
def test_loss_and_gradient_from_the_scores_on(case: Case) -> None:
    method = vantage.method("dr-grpo", max_length=case.settings["generate_max_length"])
    logp = case.tensor("logp").requires_grad_()
    loss = loss_of(method, credited(method, batch_of(case)), logp=logp)
    loss.backward()
    case.check("loss", loss)
    case.check("grad", logp.grad)


@pytest.mark.parametrize(("engine", "length"), [({"max_decisions": 30}, 30), ({"max_length": 40}, 40), ({}, 4)])
def test_the_constant_is_the_limit_of_the_engine(engine: dict[str, int], length: int) -> None:
    """Whatever the longest row of a minibatch; only an engine without a limit leaves that."""
    averaging = vantage.method("dr-grpo").averaging
    prepare(averaging, SimpleNamespace(engine=SimpleNamespace(**engine)))
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    torch.testing.assert_close(averaging(mask), mask / (2 * length))
    assert float(averaging(mask[:, :2]).sum()) == pytest.approx(3 / (2 * (length if engine else 2)))


def test_a_run_reads_the_limit_before_its_first_step() -> None:
    task = vantage.task("addition:digits=1")
    policy = task.make_policy(seed=0)
    method = vantage.method("dr-grpo", prompts=2, group_size=2, minibatches=1)
    trainer = Trainer(method, task, policy, task.make_engine(policy), Schedule(1, evaluate_samples=0))
    trainer.step()
    averaging, limit = trainer.context.method.averaging, trainer.context.engine.max_decisions
    assert averaging(torch.ones(2, 2, dtype=torch.bool)).tolist() == [[pytest.approx(1 / (2 * limit))] * 2] * 2
    assert limit > 2


def test_an_answer_that_was_cut_scores_nothing() -> None:
    batch = random_batch(4, 4).replace(score=torch.tensor([1.0, 1.0, float("nan"), -1.0]))
    last = torch.arange(4) == batch.length.unsqueeze(1) - 1
    cut = torch.tensor([False, True, True, True]).unsqueeze(1) & last
    batch = batch.replace(truncated=cut, reward=torch.nan_to_num(batch.score).unsqueeze(1) * last)
    named = batch.replace(rewards={"correct": batch.score})
    (zero,) = vantage.method("dr-grpo").rewards[1:]
    found = zero(named, context())
    assert found.score.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert found.reward.sum(1).tolist() == [1.0, 0.0, 0.0, 0.0]
    # The rewards of an environment stay: that its time was up is no failure.
    assert zero(batch, context()).reward.sum(1).tolist() == [1.0, 1.0, 0.0, -1.0]
    assert len(vantage.method("dr-grpo", truncated_score=None).rewards) == 1


def test_eight_updates_a_batch() -> None:
    assert vantage.method("dr-grpo").update.optimizer_steps == 8
