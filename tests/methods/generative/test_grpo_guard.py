"""GRPO-Guard: the numbers of its card."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vantage
from tests.harness import context
from tests.methods.generative.flows import (
    assert_resumes,
    check_advantages,
    credited,
    loss_and_gradient,
    loss_of_case,
    moved,
    trainer,
)
from tests.reference import Case, cases
from vantage.core import Evaluation, Trajectories, UserError
from vantage.methods import registry
from vantage.objectives.denoising import GuardedClip
from vantage.policies.flow import normal_logp

SMALL = {"prompts": 3, "group_size": 4, "lr": 1e-3, "steps": 5}


def steps(shift: torch.Tensor, noise: torch.Tensor, std: torch.Tensor, length: float = 0.25) -> Trajectories:
    """Rows of one decision: mu_old = 0, x' = std noise, and a sampler with these standard deviations [N]."""
    rows = len(std)
    one = torch.ones(rows, 1, dtype=torch.float64)
    seen = {"time": one, "next_time": one - length, "sigma": (std / length**0.5).unsqueeze(1)}
    return Trajectories(
        {
            "observation": seen,
            "action": (std.unsqueeze(1) * noise).unsqueeze(1),
            "mean_old": torch.zeros_like(noise).unsqueeze(1),
            "mask": one.bool(),
            "advantage": -one,
        }
    )


def log_ratio(shift: torch.Tensor, noise: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """The exponent of the page's ratio [N]: with A = -1 and no clip the loss is the ratio."""
    batch = steps(shift, noise, std)
    part = GuardedClip(1e9, by_length=False)
    return part(Evaluation(extras={"mean": shift.unsqueeze(1)}), batch, context()).log()[:, 0]


def test_worked_step() -> None:
    std = torch.tensor([0.5], dtype=torch.float64)
    shift, noise = torch.tensor([[0.1]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    raw = normal_logp(std * noise, shift, std) - normal_logp(std * noise, torch.zeros_like(shift), std)
    assert float(raw) == pytest.approx(0.18)
    assert float(log_ratio(shift, noise, std)) == pytest.approx(0.1)
    assert float(log_ratio(shift, noise, std).exp()) == pytest.approx(1.10517, abs=1e-5)


def test_it_is_the_released_form_and_free_of_the_noise_level() -> None:
    generator = torch.Generator().manual_seed(0)
    shift, noise = torch.randn(2, 6, 7, generator=generator, dtype=torch.float64) * 0.1
    found = []
    for scale in (0.3, 0.9):
        std = torch.full((6,), scale, dtype=torch.float64)
        action = std.unsqueeze(1) * noise
        raw = (normal_logp(action, shift, std) - normal_logp(action, torch.zeros_like(shift), std)) / 7
        bias = shift.square().mean(-1) / (2 * std**2)
        found.append(log_ratio(shift, noise, std))
        torch.testing.assert_close(found[-1], (raw + bias) * std)
        torch.testing.assert_close(found[-1], (shift * noise).mean(-1))
    torch.testing.assert_close(found[0], found[1])


def test_the_exponent_is_centred_where_the_plain_log_ratio_is_shifted() -> None:
    generator = torch.Generator().manual_seed(1)
    shift = torch.randn(1, 8, generator=generator, dtype=torch.float64).expand(20_000, -1) * 0.2
    noise = torch.randn(20_000, 8, generator=generator, dtype=torch.float64)
    std = torch.full((20_000,), 0.4, dtype=torch.float64)
    exponent = log_ratio(shift, noise, std)
    raw = exponent / std - shift.square().mean(-1) / (2 * std**2)
    square = float(shift[0].square().mean())
    assert float(exponent.mean()) == pytest.approx(0, abs=4 * (square / 8 / 20_000) ** 0.5)
    assert float(exponent.var()) == pytest.approx(square / 8, rel=0.05)
    assert float(raw.mean()) == pytest.approx(-square / (2 * 0.16), rel=0.1)
    above = (exponent > 0).double().mean()
    assert float(above) == pytest.approx(0.5, abs=0.015)
    assert float((raw > 0).double().mean()) < 0.4


def test_at_the_old_policy_the_gradient_of_the_mean_is_the_noise_over_the_length() -> None:
    noise = torch.tensor([[0.4, -1.2]], dtype=torch.float64)
    std = torch.tensor([0.3], dtype=torch.float64)
    batch = steps(noise, noise, std)
    mean = torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True)
    loss = GuardedClip()(Evaluation(extras={"mean": mean}), batch.replace(advantage=torch.full((1, 1), 2.0)), context())
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(-2.0 / 0.25)
    assert mean.grad.flatten().tolist() == pytest.approx((-2.0 * noise / 2 / 0.25).flatten().tolist())


def test_every_step_below_time_1_moves_the_velocity_alike() -> None:
    where = trainer(vantage.method("grpo-guard", **SMALL, trained=1.0))
    batch = credited(where)
    batch = batch.replace(mask=torch.ones_like(batch.mask))
    v = torch.zeros(len(batch), 5, 2, requires_grad=True)
    from vantage.policies.flow import transition

    seen = batch.observation
    mean, std = transition(seen["x"], v, seen["time"], seen["next_time"], seen["sigma"])
    eps = (batch.action - batch["mean_old"]) / std.unsqueeze(-1)
    # Mean of the old policy with the velocity's own gradient: the ratio is 1.
    mean = mean - mean.detach() + batch["mean_old"]
    ones = batch.replace(advantage=torch.ones_like(batch.advantage))
    GuardedClip()(Evaluation(extras={"mean": mean}), ones, context()).sum().backward()
    slope = v.grad / (eps / 2)
    torch.testing.assert_close(slope[:, 1:], torch.full_like(slope[:, 1:], 1.245), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(slope[:, 0], torch.ones_like(slope[:, 0]), rtol=1e-3, atol=1e-3)


def test_the_first_nine_steps_are_trained_in_order() -> None:
    batch = credited(trainer(vantage.method("grpo-guard", **{**SMALL, "steps": 10})))
    assert torch.equal(batch.mask, (torch.arange(10) < 9).expand(12, -1))


@cases("grpo-guard", "loss")
def test_the_loss_is_the_authors(case: Case) -> None:
    """One micro-batch: there means are taken over the samples of a device, step by step."""
    settings = {"steps": case.settings["T"], **{k: case.settings[k] for k in ("eps", "beta", "shared_bias")}}
    for name, found in loss_of_case(case, registry.page("grpo-guard").make(settings)).items():
        if name in case.outputs:
            case.check(name, found)


@cases("grpo-guard", "advantages")
def test_the_advantages_are_the_authors_and_zeros_are_dropped(case: Case) -> None:
    check_advantages(case, registry.page("grpo-guard").make())


def test_the_loss_is_the_mean_over_samples_and_their_trained_steps() -> None:
    where = trainer(vantage.method("grpo-guard", **SMALL))
    batch, policy = credited(where), moved(where)
    _, found = loss_and_gradient(where, batch, policy)
    part, want = where.context.method.objective, where.context.method.wants
    mean = part(policy.evaluate(batch, want), batch, where.context)[batch.mask].mean()
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(mean, list(policy.parameters()))])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


def test_a_minibatch_holds_whole_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    where = trainer(vantage.method("grpo-guard", **SMALL))
    update, seen = where.context.method.update, []
    monkeypatch.setattr(type(update), "step", lambda self, part, run: seen.append(part))
    where.step()
    assert [part.mask.shape for part in seen] == [(6, 5), (6, 5)]
    assert all(part.mask.sum(1).tolist() == [4] * 6 for part in seen)


def test_without_its_three_changes_it_is_flow_grpo() -> None:
    where = trainer(vantage.method("grpo-guard", **SMALL))
    batch, policy = credited(where), moved(where)
    std = batch.observation["sigma"] * (batch.observation["time"] - batch.observation["next_time"]).sqrt()
    found = policy.evaluate(batch, frozenset({"mean", "logp"}))
    gap = (found.extras["mean"] - batch["mean_old"]).square().mean(-1)
    raw = (found.logp - batch.logp_old) / 2
    noise = (batch.action - batch["mean_old"]) / std.unsqueeze(-1)
    exponent = ((found.extras["mean"] - batch["mean_old"]) * noise).mean(-1)
    torch.testing.assert_close(exponent / std - gap / (2 * std**2), raw, rtol=1e-3, atol=1e-4)
    loss, _ = loss_and_gradient(where, batch, policy)
    ratio, length = exponent.exp(), std.square() / batch.observation["sigma"].square()
    expected = torch.maximum(-batch.advantage * ratio, -batch.advantage * ratio.clamp(1 - 2e-6, 1 + 2e-6)) / length
    torch.testing.assert_close(loss[batch.mask], expected[batch.mask], rtol=1e-4, atol=1e-4)


def test_the_step_is_metered_on_both_sides_and_the_run_resumes(tmp_path: Path) -> None:
    where = trainer(vantage.method("grpo-guard", **SMALL, minibatches=3, eps=1e-6))
    metrics, _ = where.step()
    assert 0 < metrics["clip_fraction/positive"] <= 1
    assert 0 < metrics["clip_fraction/negative"] <= 1
    assert where.context.method.averaging == "token-mean"
    with pytest.raises(UserError, match="eps=-1"):
        GuardedClip(-1.0)
    assert_resumes(tmp_path, vantage.method("grpo-guard", **SMALL))
