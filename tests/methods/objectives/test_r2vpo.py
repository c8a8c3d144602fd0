"""R2VPO: the numbers of its card."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import vantage
from tests.harness import context, loss_of, new_logp, random_batch
from tests.methods.toys import assert_resumes, gain, trainer
from tests.reference import Case, cases
from vantage.core import Trajectories, UserError
from vantage.methods.composition import differences
from vantage.regularizers.dual import DualAscent, Multiplier


def credited(rows: int = 8, seed: int = 0) -> Trajectories:
    batch = random_batch(rows, 5, seed=seed)
    advantage = torch.randn(rows, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return batch.replace(advantage=advantage * batch.mask)


def gradient(method: vantage.Method, batch: Trajectories, logp: torch.Tensor) -> torch.Tensor:
    logp = logp.detach().clone().requires_grad_()
    loss_of(method, batch, logp=logp).backward()
    assert logp.grad is not None
    return logp.grad


@cases("r2vpo", "gradient")
def test_the_gradient_is_the_public_implementations(case: Case) -> None:
    logits = case.tensor("logits").requires_grad_()
    action = case.tensor("action").long()
    logp = logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    ones = torch.ones_like(action, dtype=torch.bool)
    batch = random_batch(*action.shape).replace(
        mask=ones, logp_old=case.tensor("logp_old"), advantage=case.tensor("advantage").unsqueeze(1) * ones
    )
    loss_of(vantage.method("r2vpo", **case.settings), batch, logp=logp).backward()
    case.check("grad", logits.grad)


@pytest.mark.parametrize("lam", [0.0, 0.04, 2.5])
def test_gradient_has_the_closed_form(lam: float) -> None:
    batch = credited()
    method = vantage.method("r2vpo", mode="fixed", multiplier=lam)
    logp = new_logp(batch)
    ratio = (logp - batch.logp_old).exp().detach()
    expected = -ratio * (batch.advantage - 2 * lam * (ratio - 1)) * batch.mask / batch.mask.sum()
    torch.testing.assert_close(gradient(method, batch, logp), expected, rtol=1e-5, atol=1e-8)


def test_on_policy_the_gradient_is_grpos_for_any_multiplier() -> None:
    batch = credited()
    mine = gradient(vantage.method("r2vpo", multiplier=7.0), batch, batch.logp_old)
    plain = gradient(vantage.method("grpo", beta=0.0).replace(averaging="token-mean"), batch, batch.logp_old)
    torch.testing.assert_close(mine, plain)


def test_stationary_ratio_and_the_sign_beyond_it() -> None:
    method = vantage.method("r2vpo", mode="fixed", multiplier=2.5)
    batch = random_batch(1, 3, size=1).replace(
        mask=torch.ones(1, 3, dtype=torch.bool), advantage=torch.ones(1, 3, dtype=torch.float64)
    )
    logp = batch.logp_old + torch.tensor([[1.1, 1.2, 1.3]], dtype=torch.float64).log()
    found = gradient(method, batch, logp)[0]
    assert found[0] < 0 < found[2]
    assert float(found[1]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("mode", "start", "up", "down"), [("add", 0.5, 0.51, 0.5), ("log", 1.0, math.e, 1.0)])
def test_dual_steps_of_the_card(mode: str, start: float, up: float, down: float) -> None:
    held = Multiplier(start, bound=0.01, rate=1.0, mode=mode)
    ratio = torch.tensor([[1.2, 0.8, 1.0, 1.0, 9.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    # In two parts, as two micro-batches would bring it.
    held.measure((ratio - 1)[:, :2].square(), mask[:, :2])
    held.measure((ratio - 1)[:, 2:].square(), mask[:, 2:])
    mean = held.ascend()
    assert float(mean) == pytest.approx(0.02)
    assert float(held.value()) == pytest.approx(up)
    held.measure(torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool))
    held.ascend()
    assert float(held.value()) == pytest.approx(down)
    assert held.ascend() is None


def test_multiplier_keeps_its_bounds() -> None:
    low = Multiplier(0.005, bound=0.01, mode="add")
    low.measure(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    low.ascend()
    assert float(low.value()) == 0
    high = Multiplier(900.0, bound=0.01, limit=1e3)
    high.measure(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    high.ascend()
    assert float(high.value()) == 1e3
    with pytest.raises(UserError, match="mode='exp'"):
        Multiplier(mode="exp")
    with pytest.raises(UserError, match="bound=0"):
        Multiplier(bound=0.0)
    with pytest.raises(UserError, match=r"limit=0\.0"):
        vantage.method("r2vpo", limit=0.0)


def test_variance_is_twice_the_divergence_nearby() -> None:
    old, new = torch.tensor([0.5, 0.5]), torch.tensor([0.6, 0.4])
    ratio = new / old
    assert float((old * ratio).sum()) == pytest.approx(1)
    assert float((old * (ratio - 1).square()).sum()) == pytest.approx(0.04)
    assert float((old * (old / new).log()).sum()) == pytest.approx(0.020411, abs=1e-6)


def test_a_bandit_reaches_the_constrained_optimum_and_a_clip_does_not() -> None:
    """Exact expectations: the four arms are the batch, each weighing its old probability (here alike)."""
    advantage = torch.tensor([1.0, 0.3, -0.4, -0.9], dtype=torch.float64)
    delta = 0.02
    # ratio* = 1 + (A - mean A) / (2 lam), 2 lam = sqrt(Var A / delta)
    target = 1 + (advantage - advantage.mean()) / (advantage.var(correction=0) / delta).sqrt()
    batch = Trajectories(
        {
            "mask": torch.ones(4, 1, dtype=torch.bool),
            "logp_old": torch.full((4, 1), math.log(0.25), dtype=torch.float64),
            "advantage": advantage.unsqueeze(1),
            "group": torch.zeros(4, dtype=torch.int64),
        }
    )

    def solve(method: vantage.Method, steps: int) -> torch.Tensor:
        logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([logits], lr=0.5)
        where = context(method=method, device="cpu")
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(method, batch, logp=logits.log_softmax(0).unsqueeze(1)).backward()
            optimizer.step()
            for controller in method.controllers:
                controller(where)
        return 4 * logits.softmax(0).detach()

    found = solve(vantage.method("r2vpo", delta=delta, rate=0.1), 600)
    torch.testing.assert_close(found, target, rtol=0, atol=1e-3)
    clipped = solve(vantage.method("grpo", beta=0.0).replace(averaging="token-mean"), 600)
    assert (clipped - target).abs().max() > 0.02


def test_stale_rows_lose_their_influence_and_fresh_ones_keep_it() -> None:
    batch = random_batch(3, 1, size=3).replace(
        mask=torch.ones(3, 1, dtype=torch.bool), advantage=torch.ones(3, 1, dtype=torch.float64)
    )
    # A fresh row, and two that the policy has moved away from since, the last to A / (2 lam).
    logp = batch.logp_old + torch.tensor([[1.0], [1.1], [1.2]], dtype=torch.float64).log()
    held = gradient(vantage.method("r2vpo", mode="fixed", multiplier=2.5), batch, logp)
    free = gradient(vantage.method("r2vpo", mode="fixed", multiplier=0.0), batch, logp)
    assert (held / free)[:, 0].tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-9)


def test_replayed_rows_are_those_of_earlier_policies() -> None:
    trained = trainer(vantage.method("r2vpo", prompts=6, group_size=4, lr=3e-2, replay_share=0.5), 4)
    drifts: list[torch.Tensor] = []

    def watch(batch: Trajectories, where: Any) -> Trajectories:
        drift = torch.where(batch.mask, where.evaluate(batch) - batch.logp_old, 0.0).abs().amax(-1)
        assert drift[batch.age == 0].max() < 1e-5
        drifts.append(drift[batch.age > 0])
        return batch

    trained.context.method = trained.context.method.replace(selection=(watch,))
    trained.run()
    stale = torch.cat(drifts)
    assert len(stale)
    assert (stale > 1e-3).all()


def test_the_variance_settles_at_its_bound_where_no_penalty_leaves_it() -> None:
    settings: dict[str, Any] = {"prompts": 6, "group_size": 8, "lr": 3e-2, "epochs": 4, "minibatches": 2}

    def variance(method: vantage.Method) -> float:
        # While the toy is being learnt: later nothing moves, and the constraint is idle.
        history = trainer(method, 12).run().history[2:]
        return sum(line["constraint/ratio_variance"] for line in history) / len(history)

    held = variance(vantage.method("r2vpo", delta=0.02, rate=0.2, **settings))
    free = variance(vantage.method("r2vpo", delta=0.02, mode="fixed", multiplier=0.0, **settings))
    assert held == pytest.approx(0.02, rel=0.5)
    assert free > 1.5 * held


def test_it_learns_and_resumes(tmp_path) -> None:
    method = vantage.method("r2vpo", prompts=6, group_size=8, lr=3e-2, delta=0.1, replay_share=0.3)
    assert gain(method, 40) > 0.3
    assert_resumes(tmp_path, method)


def test_it_is_grpo_with_named_parts_replaced() -> None:
    method = vantage.method("r2vpo")
    assert method.parent is not None
    assert set(differences(method, method.parent)) == {"objective", "averaging", "controllers"}
    assert method.controllers == (DualAscent(),)
