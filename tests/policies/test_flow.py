"""The flow policy: densities of its steps, the SDE that keeps the flow's marginals, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vantage.core import Trajectories, UserError
from vantage.policies.flow import FlowPolicy, normal_logp, transition
from vantage.rollouts.denoising import Sampler


class Exact(torch.nn.Module):
    """The velocity of a normal with this mean and standard deviation, in closed form."""

    shape, classes = (1,), 0

    def __init__(self, mean: float = 1.5, std: float = 0.5) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - t) * self.mean, (1 - t) ** 2 * self.std**2 + t**2

    def forward(self, x: Tensor, time: Tensor, label: Any = None) -> Tensor:
        t = time.unsqueeze(-1)
        mean, variance = self.marginal(t)
        return (t - (1 - t) * self.std**2) / variance * (x - mean) - self.mean


def moments(sampler: Sampler) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of the sampler's state at every time: its steps are affine in x, so they propagate exactly."""
    network = Exact()
    times, sigmas = sampler.times().double(), sampler.sigmas().double()
    mean, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    means, variances = [mean], [variance]
    for i in range(sampler.steps):
        points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        now, then, sigma = (value.expand(2) for value in (times[i], times[i + 1], sigmas[i]))
        after, std = transition(points, network(points, now), now, then, sigma)
        slope = (after[1] - after[0]).squeeze()
        mean = slope * mean + after[0].squeeze()
        variance = slope**2 * variance + std[0] ** 2
        means.append(mean)
        variances.append(variance)
    return times, torch.stack(means), torch.stack(variances)


def errors(sampler: Sampler) -> tuple[Tensor, Tensor]:
    """How far mean and variance are from the flow's, at every time."""
    times, mean, variance = moments(sampler)
    true_mean, true_variance = Exact().marginal(times)
    return mean - true_mean, variance - true_variance


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.7])
def test_the_sde_keeps_the_marginals_of_the_ode(noise: float) -> None:
    found = []
    for steps in (100, 400):
        mean, variance = errors(Sampler(steps, noise, "constant"))
        found.append(max(float(mean.abs().max()), float(variance.abs().max())))
    # First order in the step, as Euler's method is.
    assert found[1] < 5e-3
    assert found[1] == pytest.approx(found[0] / 4, rel=0.1)


@pytest.mark.parametrize("noise", [0.3, 0.7])
def test_the_ratio_sampler_keeps_the_mean_and_all_but_its_first_steps_the_variance(noise: float) -> None:
    mean, fine = errors(Sampler(400, noise))
    assert mean.abs().max() < 5e-3
    # sigma^2 (-dt) of the first step is a^2 however short the step is: it ends with variance (1 - a^2 / 2)^2 + a^2.
    assert float(fine[1]) == pytest.approx(noise**4 / 4, abs=0.02)
    # Later steps forget it.
    assert abs(float(fine[-1])) < 2e-3


def test_log_density_of_a_step_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    mean, action = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    std = torch.rand(5, generator=generator, dtype=torch.float64) + 0.1
    found = normal_logp(action.unsqueeze(0), mean.unsqueeze(0), std.unsqueeze(0))[0]
    expected = stats.norm.logpdf(action.numpy(), mean.numpy(), std.numpy()[:, None, None]).sum((1, 2))
    torch.testing.assert_close(found, torch.from_numpy(expected))


def test_a_step_without_noise_is_the_odes_and_has_log_density_0() -> None:
    x, v = torch.randn(2, 4, 3)
    now, then = torch.full((4,), 0.6), torch.full((4,), 0.5)
    mean, std = transition(x, v, now, then, torch.zeros(4))
    torch.testing.assert_close(mean, x - 0.1 * v)
    mean.requires_grad_()
    logp = normal_logp(x, mean, std)
    logp.sum().backward()
    assert logp.abs().max() == 0
    assert mean.grad.abs().max() == 0


def test_slope_of_the_mean_in_the_velocity_is_the_same_at_every_time_below_1() -> None:
    sampler = Sampler(10, 0.7)
    times, sigmas = sampler.times().double(), sampler.sigmas().double()
    v = torch.zeros(10, 1, dtype=torch.float64, requires_grad=True)
    mean, _ = transition(torch.ones(10, 1, dtype=torch.float64), v, times[:-1], times[1:], sigmas)
    mean.sum().backward()
    slope = v.grad[:, 0] / (times[1:] - times[:-1])
    assert slope[1:].tolist() == pytest.approx([1.245] * 9, abs=1e-6)
    assert float(slope[0]) == pytest.approx(1.0, abs=1e-6)


def some(policy: FlowPolicy, rows: int = 3, steps: int = 4, sampler: Sampler | None = None) -> Trajectories:
    sampler = sampler or Sampler(steps)
    times = sampler.times()
    seen = {
        "x": torch.randn(rows, steps, *policy.shape),
        "time": times[:-1].expand(rows, -1),
        "next_time": times[1:].expand(rows, -1),
        "sigma": sampler.sigmas().expand(rows, -1),
    }
    if policy.classes:
        seen["label"] = (torch.arange(rows) % policy.classes).unsqueeze(1).expand(-1, steps)
    return Trajectories(
        {
            "observation": seen,
            "action": torch.randn(rows, steps, *policy.shape),
            "mask": torch.ones(rows, steps, dtype=torch.bool),
        }
    )


@pytest.mark.parametrize(("shape", "classes"), [((2,), 0), ((2, 3), 5)])
def test_decisions_are_judged_alike_in_rows_and_alone(shape: tuple[int, ...], classes: int) -> None:
    torch.manual_seed(0)
    policy = FlowPolicy.new(shape, classes, hidden=(16,), seed=1)
    batch = some(policy)
    want = frozenset({"logp", "mean", "velocity", "entropy"})
    whole, alone = policy.evaluate(batch, want), policy.evaluate(batch.flatten(), want)
    assert not whole.proxy
    assert whole.logp.shape == (3, 4)
    assert whole.extras["mean"].shape == (3, 4, *shape)
    torch.testing.assert_close(alone.logp.reshape(3, 4), whole.logp)
    torch.testing.assert_close(alone.extras["mean"].reshape(3, 4, *shape), whole.extras["mean"])
    normal = torch.distributions.Normal(
        whole.extras["mean"], Sampler(4).sigmas().reshape(1, 4, *[1] * len(shape)) * 0.5
    )
    torch.testing.assert_close(whole.logp, normal.log_prob(batch.action).flatten(2).sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.entropy, normal.entropy().flatten(2).sum(-1))


def test_the_label_decides_the_velocity() -> None:
    policy = FlowPolicy.new((2,), 3, hidden=(16,))
    x, time = torch.ones(3, 2), torch.full((3,), 0.5)
    found = policy.velocity(x, time, torch.arange(3))
    assert not torch.allclose(found[0], found[1])


def test_pairs_have_a_proxy() -> None:
    policy = FlowPolicy.new((2,), hidden=(16,))
    batch = some(policy, steps=1)
    table = {name: batch.observation[name] for name in ("x", "time")}
    found = policy.evaluate(batch.replace(observation=table), frozenset({"logp"}))
    assert found.proxy
    velocity = policy.velocity(batch.observation["x"], batch.observation["time"])
    torch.testing.assert_close(found.logp, -(velocity - batch.action).square().mean(-1))


def test_half_precision_judges_in_single() -> None:
    policy = FlowPolicy.new((2,), hidden=(16,)).to(torch.bfloat16)
    batch = some(policy)
    table = batch.observation.replace(**{name: batch.observation[name].bfloat16() for name in ("x", "time")})
    found = policy.evaluate(batch.replace(observation=table), frozenset({"logp"}))
    assert found.logp.dtype == torch.float32
    assert found.logp.isfinite().all()


def test_files_round_trip(tmp_path: Path) -> None:
    policy = FlowPolicy.new((2,), 4, hidden=(8, 8), frequencies=2, activation="tanh", seed=5)
    policy.save(tmp_path / "flow")
    again = FlowPolicy.load(tmp_path / "flow")
    assert (again.shape, again.classes, again.config) == ((2,), 4, policy.config)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert sorted(path.name for path in (tmp_path / "flow").iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(UserError, match="holds no flow policy"):
        FlowPolicy.load(tmp_path)
    own = FlowPolicy(Exact())
    own.save(tmp_path / "own")
    with pytest.raises(UserError, match="network of the user's own"):
        FlowPolicy.load(tmp_path / "own")
    assert FlowPolicy.load(tmp_path / "own", Exact()).shape == (1,)
    with pytest.raises(UserError, match="out of range"):
        FlowPolicy.new((2,), hidden=())


def test_a_frozen_copy_does_not_learn() -> None:
    policy = FlowPolicy.new((2,), hidden=(8,))
    frozen = policy.frozen()
    assert not any(p.requires_grad for p in frozen.parameters())
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)
    assert not torch.equal(next(policy.parameters()), next(frozen.parameters()))
