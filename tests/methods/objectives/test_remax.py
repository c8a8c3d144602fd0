"""ReMax: the numbers of the authors' code, and the identities of its card."""

from __future__ import annotations

import pytest
import torch

import vantage
from tests.core.toy import ToyEngine, ToyPolicy, ToyTask
from tests.harness import context, loss_of, random_batch
from tests.methods.family import batch_of, check_advantage
from tests.reference import Case, cases
from vantage.core import Schedule, Trainer


@cases("remax", "advantage")
def test_returns_with_rewards_beyond_the_bound(case: Case) -> None:
    check_advantage(case, vantage.method("remax"))


@cases("remax", "loss")
def test_every_row_counts_the_same(case: Case) -> None:
    logp = case.tensor("logp").requires_grad_()
    batch = batch_of(case)
    loss = loss_of(vantage.method("remax"), batch.replace(advantage=batch.credit), logp=logp)
    loss.backward()
    case.check("loss", loss)
    case.check("grad", logp.grad)


def test_returns_are_discounted_once_at_the_last_token_and_carry_their_own_divergence() -> None:
    method = vantage.method("remax", gamma=0.9, kl_coefficient=0.1)
    batch = random_batch(1, 4, size=1).replace(
        length=torch.tensor([3]),
        mask=torch.tensor([[True, True, True, False]]),
        score=torch.tensor([1.0]),
        baseline=torch.tensor([0.25]),
        logp_old=torch.tensor([[-1.0, -2.0, -3.0, 0.0]]),
        logp_ref=torch.tensor([[-1.5, -2.0, -2.0, 0.0]]),
    )
    found = method.advantage(batch, context(method=method))
    expected = [0.75 * 0.9**3 - 0.1 * 0.5, 0.75 * 0.9**2, 0.75 * 0.9 + 0.1 * 1.0, 0.0]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_reward_difference_is_clipped_and_equal_answers_give_no_gradient() -> None:
    method = vantage.method("remax", gamma=1.0, kl_coefficient=0.0)
    batch = random_batch(2, 3, size=1).replace(score=torch.tensor([9.0, 1.0]), baseline=torch.tensor([0.0, 1.0]))
    advantage = method.advantage(batch, context(method=method))
    assert advantage[0, 0] == 5.0
    assert advantage[1].abs().max() == 0
    logp = batch.logp_old.clone().requires_grad_()
    loss_of(method, batch.replace(advantage=advantage), logp=logp).backward()
    assert logp.grad[1].abs().max() == 0
    assert logp.grad[0].abs().max() > 0


def test_two_armed_bandit_has_the_exact_expected_gradient() -> None:
    # pi = (0.8, 0.2), r = (0, 1): the greedy arm scores 0; the expectation is pi_1 pi_2 (r_1 - r_2) = (-0.16, 0.16).
    probs = torch.tensor([0.8, 0.2])
    logits = probs.log().requires_grad_()
    method = vantage.method("remax", gamma=1.0, kl_coefficient=0.0)
    total = torch.zeros(2)
    for arm, reward in enumerate((0.0, 1.0)):
        batch = random_batch(1, 1, size=1).replace(
            score=torch.tensor([reward]),
            baseline=torch.tensor([0.0]),
            mask=torch.ones(1, 1, dtype=torch.bool),
            length=torch.ones(1),
        )
        batch = batch.replace(advantage=method.advantage(batch, context(method=method)))
        logp = logits.log_softmax(0)[arm].view(1, 1)
        (gradient,) = torch.autograd.grad(-loss_of(method, batch, logp=logp), logits)
        total += probs[arm] * gradient
    assert total.tolist() == pytest.approx([-0.16, 0.16], abs=1e-6)


def test_greedy_companions_are_scored_and_not_learnt_from() -> None:
    method = vantage.method("remax", prompts=3, group_size=2, lr=1e-2, kl_coefficient=0.0)
    policy = ToyPolicy()
    engine = ToyEngine(policy)
    trainer = Trainer(method, ToyTask(), policy, engine, Schedule(2))
    batch = trainer.context.method.rollout(trainer.context)
    assert len(batch) == 6
    assert engine.calls == 2
    greedy = engine.sample(ToyTask().prompts(batch.prompt[::2]), 1, trainer.context, greedy=True)
    score = ToyTask().score(greedy, None)["right"]
    torch.testing.assert_close(batch.baseline, score.repeat_interleave(2))
    metrics, _ = trainer.step()
    assert metrics["greedy/reward/right"] == pytest.approx(metrics["baseline/greedy"])
    assert metrics["reward/right"] == pytest.approx(metrics["score"])


def test_it_learns_on_the_toy() -> None:
    method = vantage.method(
        "remax",
        prompts=6,
        group_size=8,
        lr=3e-2,
        gamma=1.0,
        kl_coefficient=0.0,
        weight_decay=0.0,
        lr_schedule="constant",
    )
    policy = ToyPolicy()
    history = Trainer(method, ToyTask(), policy, ToyEngine(policy), Schedule(60, evaluate_samples=1)).run().history
    assert history[-1]["eval/right"] > history[0]["eval/right"] + 0.3


def test_the_defaults_compose_what_the_page_states() -> None:
    method = vantage.method("remax")
    advantage, update = method.advantage, method.update
    assert (advantage.gamma, advantage.limit, advantage.kl_coefficient) == (0.99, 5.0, 0.05)
    assert (update.optimizer.lr, update.optimizer.weight_decay, update.epochs, update.minibatches) == (1e-6, 0.1, 1, 1)
    assert (method.rollout.prompts, method.rollout.size, method.averaging, method.regularizers) == (
        16,
        1,
        "seq-mean-token-mean",
        (),
    )
