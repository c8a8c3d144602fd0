"""GBPO: the numbers of its card, on groups of answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vantage
from tests.harness import context, loss_of, random_batch
from tests.methods.toys import gain
from tests.reference import Case, cases
from vantage.core import Trajectories, UserError
from vantage.functions.groups import group_median
from vantage.methods.objectives.brrl_group import GroupTarget, TargetRatio
from vantage.regularizers.penalties import EntropyBonus, ReferenceKL


def group(scores: list[float], **settings: float) -> Trajectories:
    batch = random_batch(len(scores), 3, size=len(scores)).replace(score=torch.tensor(scores))
    return GroupTarget(**settings)(batch, context())


@cases("brrl-group", "credit")
def test_the_credit_is_the_authors(case: Case) -> None:
    score = case.tensor("score")
    batch = random_batch(len(score), 1).replace(score=score, group=case.tensor("group").long())
    found = vantage.method("brrl-group", **case.settings).advantage(batch, context())
    case.check("advantage", found.advantage[:, 0])
    case.check("target", found.target_ratio)


@cases("brrl-group", "loss")
def test_the_loss_is_the_authors(case: Case) -> None:
    method = vantage.method("brrl-group", **case.settings)
    columns = {name: case.tensor(name) for name in ("mask", "score", "logp_old", "logp_ref")}
    batch = random_batch(*case.tensor("mask").shape).replace(**columns, group=case.tensor("group").long())
    logp = case.tensor("logp").requires_grad_()
    loss = loss_of(method, method.advantage(batch, context()), logp=logp, entropy=case.tensor("entropy"))
    loss.backward()
    case.check("loss", loss)
    case.check("grad", logp.grad)


def test_group_targets() -> None:
    found = group([1.0, 1.0, 1.0, 0.0])
    # Median 1: the right answers aim at the middle, the wrong one at the lower bound, as temper is near 0.
    assert found.target_ratio.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.7])
    soft = group([1.0, 1.0, 1.0, 0.0], eps_low=0.2, eps_high=0.2, temper=1.0)
    assert float(soft.target_ratio[3]) == pytest.approx(0.8 + 0.4 / (1 + 2.718281828 ** (1 / 0.5)), rel=1e-4)
    assert soft.advantage[:, 0].tolist() == pytest.approx([0.5, 0.5, 0.5, -1.5], rel=1e-4)
    wide = group([1.0, 1.0, 0.0, 0.0], eps_low=0.1, eps_high=0.5, temper=2.0)
    # Median 1/2, std 0.57735: T = +-0.4330.
    assert float(wide.target_ratio[0]) == pytest.approx(0.9 + 0.6 / (1 + 2.718281828**-0.4330127), rel=1e-4)
    alone = group([3.0], eps_low=0.2, eps_high=0.2, temper=1.0)
    assert float(alone.advantage[0, 0]) == pytest.approx(3.0, rel=1e-4)
    assert float(alone.target_ratio[0]) == pytest.approx(0.8 + 0.4 / (1 + 2.718281828**-3), rel=1e-4)


@pytest.mark.parametrize("eps", [0.2, 0.3])
def test_rounding_of_the_log_probabilities_changes_no_gradient(eps: float) -> None:
    method = vantage.method("brrl-group", eps_low=eps, eps_high=eps, beta=0.0, entropy=0.0)
    batch = random_batch(8, 6, dtype=torch.float32).replace(
        score=torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    )
    batch = method.advantage(batch, context())
    noise = torch.rand(batch.logp_old.shape, generator=torch.Generator().manual_seed(3)) - 0.5

    def gradient(logp_old: Tensor) -> Tensor:
        logp = batch.logp_old.clone().requires_grad_()
        loss_of(method, batch.replace(logp_old=logp_old), logp=logp).backward()
        assert logp.grad is not None
        return logp.grad

    exact = gradient(batch.logp_old)
    assert torch.equal(gradient(batch.logp_old + 4e-6 * noise.sign()), exact)
    # The answers at the median aim at ratio 1, where they are; the others are pulled.
    middle = torch.tensor([True, True, True, False, True, False, True, True])
    assert exact[middle].abs().max() == 0
    assert (exact[~middle][batch.mask[~middle]] != 0).all()
    # Beyond the noise the error is pulled back as ever.
    assert (gradient(batch.logp_old - 2e-4)[middle][batch.mask[middle]] > 0).all()


def test_medians_of_groups_of_any_size() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(40, generator=generator)
    key = torch.randint(9, (40,), generator=generator) * 7
    found = group_median(score, key)
    for row in range(40):
        assert float(found[row]) == pytest.approx(float(torch.quantile(score[key == key[row]], 0.5)))


def test_equal_rewards_teach_nothing_and_the_loss_is_a_token_mean() -> None:
    method = vantage.method("brrl-group", beta=0.0, entropy=0.0)
    batch = random_batch(8, 4, size=4)
    flat = method.advantage(batch.replace(score=torch.ones(8)), context())
    logp = (batch.logp_old + 0.1).requires_grad_()
    loss = loss_of(method, flat, logp=logp)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logp.grad.abs().max() == 0
    mixed = method.advantage(batch, context())
    ratio = (logp - batch.logp_old).exp()
    expected = ((ratio - mixed.target_ratio.unsqueeze(1)) * mixed.advantage).abs()[batch.mask].mean()
    torch.testing.assert_close(loss_of(method, mixed, logp=logp), expected)


def test_settings_out_of_range_are_refused() -> None:
    for settings, message in (
        ({"epochs": 0}, "epochs=0"),
        ({"lr": 0.0}, r"lr=0\.0"),
        ({"eps_low": 1.5}, r"GroupTarget\.eps_low=1\.5"),
        ({"eps_high": -0.1}, r"GroupTarget\.eps_high=-0\.1"),
        ({"temper": 0.0}, r"GroupTarget\.temper=0\.0"),
    ):
        with pytest.raises(UserError, match=message):
            vantage.method("brrl-group", **settings)


def test_it_is_grpo_with_another_credit_and_loss() -> None:
    made = vantage.method("brrl-group", eps_high=0.5, temperature=0.5)
    assert made.parent is not None
    assert made.parent.name == "grpo"
    assert made.objective == TargetRatio(0.5)
    assert made.advantage == GroupTarget(0.3, 0.5, 1e-4)
    assert (made.rollout.size, made.rollout.temperature) == (32, 0.5)
    assert made.regularizers == (ReferenceKL(0.001), EntropyBonus(0.005))
    assert vantage.method("brrl-group", beta=0.0, entropy=0.0).regularizers == ()


def test_it_learns() -> None:
    sizes = {"prompts": 6, "group_size": 8, "epochs": 2, "minibatches": 2}
    assert gain(vantage.method("brrl-group", **sizes, lr=1e-2, lr_schedule="constant", lr_warmup=0.0), 40) > 0.3


def test_rows_of_one_decision_have_a_target_per_decision() -> None:
    # A column [N, 1] would be per row and per decision at once.
    run = vantage.train(
        "brrl-group", "preference:arms=4", steps=2, settings={"prompts": 2, "group_size": 4}, evaluate_samples=0
    )
    assert run.outcome.step == 2
