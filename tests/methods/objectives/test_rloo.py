"""RLOO: the gradient of TRL's trainer, on-policy and off, verl's advantages, and the mean of the others as baseline."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

import vantage
from tests.harness import context, loss_of, random_batch
from tests.methods.family import batch_of, check_groups, check_loss, credited, worked_case
from tests.peers import trl_rloo_loss
from tests.reference import Case, cases
from vantage.core import UserError
from vantage.core.walk import prepare


@pytest.mark.peers
def test_gradient_equals_trl_on_policy() -> None:
    batch = random_batch(8, 6, size=4)
    method = vantage.method("rloo", beta=0.0)
    batch = credited(method, batch)
    ours = batch.logp_old.clone().requires_grad_()
    theirs = batch.logp_old.clone().requires_grad_()
    loss_of(method, batch, logp=ours).backward()
    row = (batch.advantage * batch.mask).sum(1) / batch.mask.sum(1)
    trl_rloo_loss(theirs, batch.logp_old, row.to(torch.float64), batch.mask, low=0.2, high=0.2).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)
    assert ours.grad.abs().sum() > 0


def test_advantage_is_the_centred_score_times_g_over_g_minus_one() -> None:
    others = worked_case(vantage.method("rloo"))
    assert others == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    assert others == pytest.approx([4 / 3 * value for value in worked_case(vantage.method("dr-grpo"))])
    check_groups(vantage.method("rloo"))


def test_the_divergence_is_taken_off_the_score_and_the_defaults_are_as_stated() -> None:
    method = vantage.method("rloo")
    assert [reward.coefficient for reward in method.rewards[1:]] == [0.03]
    assert len(vantage.method("rloo", beta=0.0).rewards) == 1
    assert (method.rollout.prompts, method.rollout.size) == (128, 4)
    assert (method.averaging, method.regularizers) == ("seq-mean-token-sum", ())


@cases("rloo", "advantage")
def test_advantages(case: Case) -> None:
    method = vantage.method("rloo", beta=case.settings.get("kl_coef", 0.0))
    batch = batch_of(case)
    for reward in method.rewards[1:]:
        batch = reward(batch, context())
    case.check("advantage", credited(method, batch).advantage)


@cases("rloo", "loss stale")
def test_several_steps_a_batch_clip_the_ratio_of_whole_answers(case: Case) -> None:
    for steps in ({"minibatches": 2}, {"epochs": 3}):
        check_loss(case, vantage.method("rloo", **steps))


@cases("rloo", "loss fresh")
@pytest.mark.parametrize("minibatches", [1, 4])
def test_on_policy_both_forms_have_the_same_gradient(case: Case, minibatches: int) -> None:
    logp = case.tensor("logp").requires_grad_()
    loss_of(vantage.method("rloo", minibatches=minibatches), batch_of(case), logp=logp).backward()
    case.check("grad", logp.grad)


def test_without_another_score_in_the_group_there_is_no_advantage() -> None:
    batch = random_batch(6, 3, size=2).replace(
        score=torch.tensor([1.0, 0.0, 1.0, float("nan"), float("nan"), float("nan")])
    )
    found = vantage.method("rloo").advantage(batch, context()) * batch.mask
    assert found[:, 0].tolist() == [1.0, -1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"rloo\.group_size=1"):
        vantage.method("rloo", group_size=1)


def test_stale_gradients_that_a_component_setting_asks_for_are_warned_of() -> None:
    """The setting `minibatches` changes the loss; `update.minibatches`, set afterwards, cannot."""
    place = SimpleNamespace(method=vantage.method("rloo", **{"update.minibatches": 4}))
    with pytest.warns(UserWarning, match=r"PolicyGradient has no ratio, and the update takes 4 optimiser steps"):
        prepare(place.method.objective, place)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for settings in ({}, {"minibatches": 4}):
            place = SimpleNamespace(method=vantage.method("rloo", **settings))
            prepare(place.method.objective, place)
