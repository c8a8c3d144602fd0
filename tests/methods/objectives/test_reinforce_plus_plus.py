"""REINFORCE++: equality with TRL, standardising over the batch, and the divergence paid by token."""

from __future__ import annotations

import pytest
import torch

import vantage
from tests.harness import context, random_batch
from tests.methods.family import check_against_trl
from vantage.tasks.language.problems import problem_set
from vantage.tasks.language.task import LanguageTask

pytestmark = pytest.mark.peers


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
    expected = (returns - returns.mean()) / (returns.std() + 1e-8)
    torch.testing.assert_close(advantage[batch.mask].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("score", [0.7, 1.0])
def test_with_all_rewards_equal_and_no_divergence_the_gradient_is_zero(score: float) -> None:
    task = LanguageTask(problem_set("addition:digits=1"), lambda problem, completion: score, max_new_tokens=4)
    run = vantage.train("reinforce-plus-plus", task, steps=1, settings={"prompts": 8, "beta": 0.0}, evaluate_samples=0)
    (step,) = [line for line in run.outcome.history if "grad_norm" in line]
    assert step["score"] == pytest.approx(score)
    assert step["grad_norm"] == 0.0
