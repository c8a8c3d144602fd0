"""REINFORCE++: equality with OpenRLHF, verl and TRL, standardising over the batch, and where the divergence is paid."""

from __future__ import annotations

import pytest
import torch

import vantage
from tests.harness import context, random_batch
from tests.methods.family import batch_of, check_against_trl, check_loss
from tests.reference import Case, cases
from vantage.core import Method, UserError
from vantage.tasks.language.problems import problem_set
from vantage.tasks.language.task import LanguageTask


@pytest.mark.peers
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_equal_trl(seed: int) -> None:
    check_against_trl(vantage.method("reinforce-plus-plus"), "bnpo", seed, low=0.2, high=0.2)


def test_it_standardises_over_the_batch_and_pays_the_divergence_by_token() -> None:
    method = vantage.method("reinforce-plus-plus", beta=0.5)
    batch = random_batch(6, 5, size=1)
    place = context(method=method)
    batch = batch.replace(reward=torch.zeros(6, 5, dtype=torch.float64))
    batch.reward[torch.arange(6), batch.length - 1] = batch.score
    penalised = method.rewards[-1](batch, place)
    advantage = method.advantage(penalised, place).advantage
    raw = batch.reward - 0.5 * (batch.logp_old - batch.logp_ref) * batch.mask
    returns = raw.flip(1).cumsum(1).flip(1)[batch.mask]
    expected = (returns - returns.mean()) / returns.std(correction=0)
    torch.testing.assert_close(advantage[batch.mask].double(), expected, rtol=1e-4, atol=1e-5)


def check_credit(case: Case, method: Method) -> None:
    """Rewards and advantage of the method, in their order, give the advantages of the case."""
    batch, place = batch_of(case), context(method=method)
    for reward in method.rewards[1:]:
        batch = reward(batch, place)
    batch = method.advantage(batch, place)
    case.check("advantage", torch.where(batch.mask, batch.advantage, 0.0))


@cases("reinforce-plus-plus", "advantage plain")
def test_advantages_of_the_plain_form(case: Case) -> None:
    settings = {"beta": case.settings["init_coef"], "score_limit": case.settings["clip_range"]}
    check_credit(case, vantage.method("reinforce-plus-plus", **settings))


@cases("reinforce-plus-plus", "advantage baseline")
def test_advantages_of_the_baseline_form(case: Case) -> None:
    check_credit(case, vantage.method("reinforce-plus-plus", baseline=True, group_size=4))


@cases("reinforce-plus-plus", "advantage verl")
def test_advantages_of_verl_have_the_sample_deviation(case: Case) -> None:
    method = vantage.method("reinforce-plus-plus", beta=case.settings["kl_coef"])
    check_credit(case, method.adapt("advantage", ddof=1))


@cases("reinforce-plus-plus", "loss")
def test_loss_and_gradient_of_the_baseline_form(case: Case) -> None:
    settings = {"baseline": True, "group_size": 4, "beta": case.settings["init_coef"]}
    check_loss(case, vantage.method("reinforce-plus-plus", **settings))


def test_the_forms_have_their_own_place_and_weight_of_the_divergence() -> None:
    plain = vantage.method("reinforce-plus-plus")
    assert ([part.coefficient for part in plain.rewards[1:]], plain.regularizers) == ([1e-4], ())
    based = vantage.method("reinforce-plus-plus", baseline=True, group_size=8, prompts=128, minibatches=1)
    assert [(term.coefficient, term.estimator) for term in based.regularizers] == [(1e-5, "k2")]
    assert [type(part).__name__ for part in based.rewards] == ["Total", "GroupCentred"]
    assert (based.rollout.groups, based.rollout.plan.size) == (128, 8)
    assert "logp_ref" not in vantage.method("reinforce-plus-plus", beta=0.0).declared("columns")


def test_a_baseline_of_one_answer_is_refused() -> None:
    with pytest.raises(UserError, match=r"baseline=True with group_size=1 leaves every advantage 0.*set group_size=8"):
        vantage.method("reinforce-plus-plus", baseline=True)


def test_the_rate_falls_to_a_tenth_after_the_warm_up() -> None:
    update = vantage.method("reinforce-plus-plus").update
    assert update.optimizer_steps == 8
    assert [update.schedule(step, 100) for step in (0, 2, 3)] == pytest.approx([1 / 3, 1.0, 1.0])
    assert update.schedule(99, 100) == pytest.approx(0.1, abs=1e-3)
    assert vantage.method("reinforce-plus-plus", lr_schedule="constant", lr_warmup=0).update.schedule(99, 100) == 1.0


@pytest.mark.parametrize("score", [0.7, 1.0])
def test_with_all_rewards_equal_and_no_divergence_the_gradient_is_zero(score: float) -> None:
    task = LanguageTask(problem_set("addition:digits=1"), lambda problem, completion: score, max_new_tokens=4)
    run = vantage.train(
        "reinforce-plus-plus", task, steps=1, settings={"prompts": 8, "beta": 0.0, "minibatches": 1}, evaluate_samples=0
    )
    (step,) = [line for line in run.outcome.history if "grad_norm" in line]
    assert step["score"] == pytest.approx(score)
    assert step["grad_norm"] == 0.0
