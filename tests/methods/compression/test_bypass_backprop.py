"""Bypass back-propagation: the identities of its card, and that it learns on the road."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vantage
from tests.fields.compression.tools import small
from tests.harness import context
from tests.reference import Case, cases
from vantage.core import Trajectories
from vantage.core.errors import UserError
from vantage.core.loss import backward
from vantage.fields.compression.policy import MaskPolicy
from vantage.fields.compression.task import PruningTask
from vantage.fields.compression.units import Registry, Units, masked
from vantage.methods.compression.bypass_backprop import MovingBaseline, OntoBudget, RootScale


def policy(means: list[float], keep: float = 1.0) -> MaskPolicy:
    return MaskPolicy(Registry((Units("0", ("1",), len(means)),)), keep, torch.tensor(means))


def masks(action: Tensor, losses: list[float]) -> Trajectories:
    score = -torch.tensor(losses)
    return Trajectories(
        {
            "action": action,
            "mask": torch.ones(action.shape, dtype=torch.bool),
            "length": torch.full((len(action),), action.shape[1]),
            "score": score,
            "group": torch.zeros(len(action), dtype=torch.long),
        }
    )


def gradient(acting: MaskPolicy, batch: Trajectories, baseline: MovingBaseline, penalty: float = 0.0) -> Tensor:
    """The gradient that the method's own parts give."""
    method = vantage.method("bypass-backprop", group_size=len(batch), penalty=penalty)
    place = context(method=method, policy=acting)
    credit = baseline(batch, place)
    acting.mean.grad = None
    backward(batch.replace(advantage=credit), place, None)
    RootScale(penalty)([acting.mean], place)
    assert acting.mean.grad is not None
    return acting.mean.grad.clone()


def by_hand(s: Tensor, action: Tensor, losses: Tensor, delta: float, penalty: float = 0.0) -> Tensor:
    eps = 1e-7
    centred = (action.double() - s) / ((s + eps) * (1 - s + eps)).sqrt()
    found = ((losses - delta).unsqueeze(-1) * centred).sum(0) / (len(losses) - 1)
    return found + penalty * ((1 - s + eps).log() - (s + eps).log())


def test_one_unit_by_hand() -> None:
    acting = policy([0.5])
    found = gradient(acting, masks(torch.tensor([[1], [0]]), [1.0, 3.0]), MovingBaseline())
    assert float(found) == pytest.approx(-2.0, rel=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 0.02])
def test_the_road_gives_the_cards_gradient(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(7, generator=generator)
    acting, baseline = policy(means.tolist()), MovingBaseline(window=5, size=4)
    delta = None
    for step in range(3):
        action = (torch.rand(4, 7, generator=generator) < means).long()
        losses = torch.rand(4, generator=generator, dtype=torch.float64) + step
        mean = float(losses.mean())
        delta = 0.8 * (mean if delta is None else delta) + 0.2 * mean
        found = gradient(acting, masks(action, losses.tolist()), baseline, penalty)
        wanted = by_hand(means.double(), action, losses, delta, penalty)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_certain_units_and_equal_losses_have_no_gradient() -> None:
    acting = policy([0.0, 1.0, 0.3])
    action = torch.tensor([[0, 1, 1], [0, 1, 0]])
    found = gradient(acting, masks(action, [1.0, 2.0]), MovingBaseline())
    assert found[:2].tolist() == [0.0, 0.0]
    assert float(found[2]) != 0
    same = gradient(acting, masks(action, [2.0, 2.0]), MovingBaseline())
    assert same.abs().max() == 0


def test_rows_without_a_loss_are_left_out() -> None:
    acting = policy([0.4, 0.6])
    action = torch.tensor([[1, 0], [0, 1], [1, 1]])
    baseline = MovingBaseline(size=3)
    found = gradient(acting, masks(action, [1.0, 3.0, float("nan")]), baseline)
    s = torch.tensor([0.4, 0.6], dtype=torch.float64)
    # Two rows are left of three; the sum is still divided by K - 1 = 2.
    wanted = by_hand(s, action[:2], torch.tensor([1.0, 3.0], dtype=torch.float64), 2.0) / 2
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    held = float(baseline.state_dict()["baseline"])
    nothing = gradient(acting, masks(action, [float("nan")] * 3), baseline)
    assert nothing.abs().max() == 0
    assert float(baseline.state_dict()["baseline"]) == held
    restored = MovingBaseline(size=3)
    restored.load_state_dict(baseline.state_dict())
    assert float(restored.state_dict()["baseline"]) == held


@cases("bypass-backprop", "steps")
def test_the_means_move_as_the_authors(case: Case) -> None:
    baseline = MovingBaseline(case.settings["window"], len(case.inputs["masks"][0]))
    means, found = case.inputs["means"], []
    for drawn, losses, rate in zip(case.inputs["masks"], case.inputs["losses"], case.inputs["rates"], strict=True):
        moved = gradient(policy(means), masks(torch.tensor(drawn), losses), baseline, case.settings["penalty"])
        means = (torch.tensor(means) - rate * moved).tolist()
        found.append(means)
    case.check("means", torch.tensor(found))


@cases("bypass-backprop", "budget")
def test_the_budget_is_the_authors(case: Case) -> None:
    case.check("means", policy(case.inputs["means"], case.settings["keep"]).mean)


def test_the_means_go_back_onto_the_budget() -> None:
    acting = policy([0.9, 0.8, 0.1], keep=1 / 3)
    torch.testing.assert_close(acting.mean.detach(), torch.tensor([0.55, 0.45, 0.0]))
    with torch.no_grad():
        acting.mean.add_(torch.tensor([0.3, 0.0, 0.0]))
    OntoBudget()(context(policy=acting))
    torch.testing.assert_close(acting.mean.detach(), torch.tensor([0.7, 0.3, 0.0]))


def test_one_mask_and_another_kind_of_policy_are_refused() -> None:
    with pytest.raises(UserError, match="group_size=1"):
        vantage.method("bypass-backprop", group_size=1)
    other: Any = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match="which Linear is not"):
        OntoBudget()(context(policy=other))


def test_it_finds_the_units_that_matter() -> None:
    """Half of a hidden layer is noise that the network would be better off without: the policy finds out by forward passes."""
    network = small((6, 12, 3), rows=200, seed=1)
    with torch.no_grad():
        network.model[2].weight.mul_(8)  # type: ignore[index, operator, union-attr]
        network.model[2].weight[:, 1::2] = 3 * torch.randn(3, 6, generator=torch.Generator().manual_seed(2))  # type: ignore[index, operator]
        clean = network.copy()
        clean.model[2].weight[:, 1::2] = 0  # type: ignore[index, operator]
        labels = clean.model(network.train[0]).argmax(-1)
    network.train[1].copy_(labels)
    network.held[1].copy_(clean.model(network.held[0]).argmax(-1))
    task = PruningTask(network, keep=0.5, batch=100, initial="even")
    acting = task.make_policy(seed=0)
    before = task.evaluate(acting, samples=1, seed=0)
    run = vantage.train(
        "bypass-backprop", task, steps=80, settings={"lr": 0.1, "group_size": 4}, evaluate_samples=0, policy=acting
    )
    assert run.outcome.status == "finished"
    after = task.evaluate(acting, samples=1, seed=0)
    assert after["kept"] == 0.5
    assert after["loss"] < 0.6 * before["loss"]
    chance = []
    for seed in range(20):
        kept = torch.rand(12, generator=torch.Generator().manual_seed(seed)).argsort() < 6
        with masked(network.model, task.registry, kept.float()):
            chance.append(network.evaluate()["loss"])
    assert after["loss"] < min(chance)
