"""GRPO and its near relatives: equality with TRL's losses on random inputs, and the identities of the papers."""

from __future__ import annotations

import pytest
import torch

import vantage
from tests.harness import context, loss_of, new_logp, random_batch
from tests.peers import trl_loss, trl_rloo_loss
from vantage.core import Trajectories
from vantage.core.method import differences

pytestmark = pytest.mark.peers


def credited(method: vantage.Method, batch: Trajectories) -> Trajectories:
    credit = method.advantage(batch, context(method=method))
    return credit if isinstance(credit, Trajectories) else batch.replace(advantage=credit)


@pytest.mark.parametrize(
    ("name", "settings", "peer"),
    [
        ("grpo", {"beta": 0.0}, {"kind": "grpo", "low": 0.2, "high": 0.2}),
        ("grpo", {"beta": 0.04}, {"kind": "grpo", "low": 0.2, "high": 0.2, "beta": 0.04}),
        ("dr-grpo", {"max_length": 9}, {"kind": "dr_grpo", "low": 0.2, "high": 0.2, "max_length": 9}),
        ("dapo", {}, {"kind": "dapo", "low": 0.2, "high": 0.28}),
        ("gspo", {"eps_low": 0.05, "eps_high": 0.1}, {"kind": "grpo", "low": 0.05, "high": 0.1, "level": "sequence"}),
        ("reinforce-plus-plus", {}, {"kind": "bnpo", "low": 0.2, "high": 0.2}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_equal_trl(name: str, settings: dict, peer: dict, seed: int) -> None:
    method = vantage.method(name, **settings)
    batch = random_batch(16, 7, seed=seed, size=4)
    advantage = torch.randn(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    batch = batch.replace(advantage=advantage.unsqueeze(1) * batch.mask)
    ours, theirs = new_logp(batch, seed), new_logp(batch, seed)
    mine = loss_of(method, batch, logp=ours)
    kind = peer.pop("kind")
    beta = peer.get("beta", 0.0)
    their = trl_loss(kind, theirs, batch.logp_old, advantage, batch.mask, ref=batch.logp_ref if beta else None, **peer)
    peer["kind"] = kind
    assert float(mine.detach()) == pytest.approx(float(their.detach()), rel=1e-6)
    mine.backward()
    their.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)
    assert (ours.grad[~batch.mask] == 0).all()


def test_rloo_gradient_equals_trl_on_policy() -> None:
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


def test_group_advantages_of_a_worked_case() -> None:
    batch = random_batch(4, 3, size=4).replace(score=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    standard = credited(vantage.method("grpo"), batch).advantage
    # mean 0.25, sample std 0.5, eps 1e-4
    assert standard[:, 0].tolist() == pytest.approx([1.4997, -0.4999, -0.4999, -0.4999], abs=1e-4)
    centred = credited(vantage.method("dr-grpo"), batch).advantage
    assert centred[:, 0].tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])
    others = credited(vantage.method("rloo"), batch).advantage
    assert others[:, 0].tolist() == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    # RLOO's advantage is the centred one times G / (G - 1).
    torch.testing.assert_close(others, centred * 4 / 3)


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "rloo", "dapo", "gspo"])
def test_equal_scores_teach_nothing_and_groups_sum_to_zero(name: str) -> None:
    method = vantage.method(name)
    batch = random_batch(8, 4, size=4)
    assert credited(method, batch.replace(score=torch.ones(8))).advantage.abs().max() == 0
    row = credited(method, batch).advantage[:, 0]
    assert row.view(2, 4).sum(1).abs().max() < 1e-5


def test_reinforce_plus_plus_standardises_over_the_batch_and_pays_the_divergence_by_token() -> None:
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


def test_dapo_is_grpo_with_four_parts_replaced() -> None:
    changed = differences(vantage.method("dapo", overlong_buffer=4), vantage.method("dapo").parent)
    assert set(changed) == {"rollout", "rewards", "objective", "averaging"}


def test_gspo_ratio_is_the_geometric_mean() -> None:
    batch = random_batch(4, 5, size=4)
    logp = new_logp(batch)
    mean = ((logp - batch.logp_old) * batch.mask).sum(1) / batch.mask.sum(1)
    batch = batch.replace(advantage=torch.ones(4, 1) * batch.mask)
    loss = loss_of(vantage.method("gspo", eps_low=10.0, eps_high=10.0), batch, logp=logp)
    assert float(loss) == pytest.approx(-float(mean.exp().mean()), rel=1e-6)
