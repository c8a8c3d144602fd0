"""Policies that act by a flow or by diffusion: the cards' numbers, limits, and the road that they share with other policies."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vantage.core import Trajectories
from vantage.core.errors import UserError
from vantage.policies.diffusion import ETA, INNER, Diffusion
from vantage.policies.flow_control import LOSSES, Flow
from vantage.policies.generative import GenerativePolicy
from vantage.policies.processes import Networks
from vantage.policies.spaces import Actions, Observations

SEEN = Observations("vector", (3,))
DONE = Actions("continuous", (2,), low=(-2.0, 0.0), high=(2.0, 1.0))


class Constant(nn.Module):
    """A network whose output does not depend on its input."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, observation: Tensor) -> Tensor:
        return self.value.expand_as(x)


def networks(value: float = 0.0) -> Networks:
    net: object = Constant(value)
    return Networks(net)  # type: ignore[arg-type]


def decision(eps: float, t: float, action: float) -> Tensor:
    return torch.tensor([[eps, t, action]], dtype=torch.float64)


def test_losses_of_the_card() -> None:
    kept, seen = decision(-1.0, 0.4, 0.5), torch.zeros(1, 1, dtype=torch.float64)
    velocity, noise = Flow(draws=1, target="velocity"), Flow(draws=1)
    assert float(velocity.losses(networks(), seen, kept).detach()) == pytest.approx(2.25)
    assert float(noise.losses(networks(), seen, kept).detach()) == pytest.approx(0.81)


def test_the_noise_loss_is_the_velocity_loss_times_one_minus_t_squared() -> None:
    torch.manual_seed(0)
    kept, seen = torch.randn(50, 4 * 3 + 2, dtype=torch.float64), torch.zeros(50, 1, dtype=torch.float64)
    kept[:, 8:12] = torch.rand(50, 4).double()
    t = kept[:, 8:12]
    one, other = (Flow(draws=4, target=name).losses(networks(0.3), seen, kept) for name in ("noise", "velocity"))
    torch.testing.assert_close(one, (1 - t).square() * other)


def test_at_t_one_the_noise_loss_is_zero_and_teaches_nothing() -> None:
    held = networks(0.7)
    loss = Flow(draws=1).losses(held, torch.zeros(1, 1).double(), decision(0.3, 1.0, -0.8))
    (slope,) = torch.autograd.grad(loss.sum(), held.actor.parameters())
    assert float(loss) == float(slope) == 0.0


def test_euler_with_a_constant_velocity_is_exact_and_the_grid_is_the_solvers() -> None:
    flow = Flow(steps=5, draws=3)
    noise = torch.randn(4000, flow.noise_width(2), generator=torch.Generator().manual_seed(0)).double()
    kept = flow.sample(networks(0.25), torch.zeros(4000, 1).double(), noise)
    torch.testing.assert_close(kept[:, -2:], noise[:, :2] - 0.25)
    times = kept[:, 6:9]
    assert sorted(set(times.flatten().tolist())) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    counts = torch.stack([(times - k / 5).abs().lt(1e-9).double().mean() for k in range(1, 6)])
    assert float((counts - 0.2).abs().max()) < 0.02
    free = Flow(steps=5, draws=3, grid=False).sample(networks(), torch.zeros(4000, 1).double(), noise)[:, 6:9]
    assert float(free.mean()) == pytest.approx(0.5, abs=0.02)
    assert 0 < float(free.min()) < float(free.max()) < 1


def test_the_ratio_does_not_depend_on_the_solver() -> None:
    torch.manual_seed(0)
    policy = GenerativePolicy(SEEN, DONE, Flow(steps=10, draws=4))
    seen, kept = torch.randn(6, 3), torch.rand(6, policy.process.stored_width(2))
    same = [Flow(steps=n, draws=4).log_prob(policy.networks, seen, kept) for n in (1, 10, 50)]
    torch.testing.assert_close(same[0], same[1])
    torch.testing.assert_close(same[0], same[2])


def test_noise_levels_of_the_card() -> None:
    process = Diffusion(steps=20, tuned=10, noise=1e-6)
    table = process.schedule
    f = [math.cos((j / 20 + 0.008) / 1.008 * math.pi / 2) ** 2 for j in range(21)]
    kept = 1.0
    for t in range(20):
        beta = min(1 - f[t + 1] / f[t], 0.999)
        before, kept = kept, kept * (1 - beta)
        expected = [
            kept**-0.5,
            (1 / kept - 1) ** 0.5,
            beta * before**0.5 / (1 - kept),
            (1 - before) * (1 - beta) ** 0.5 / (1 - kept),
            max((beta * (1 - before) / (1 - kept)) ** 0.5, 1e-6),
        ]
        assert table[t, :5].tolist() == pytest.approx(expected)
    assert float(table[0, 2]) == pytest.approx(1.0)
    assert float(table[0, 3]) == 0.0


def test_a_perfect_denoiser_ends_at_the_action() -> None:
    """With x0 known, eps = (x - sqrt(abar) x0) / sqrt(1 - abar): the chain ends within the last step's noise of x0."""
    process = Diffusion(steps=10, tuned=10, noise=1e-3)
    target = torch.tensor([0.6, -0.3], dtype=torch.float64)

    class Perfect(nn.Module):
        t = 10

        def forward(self, x: Tensor, time: Tensor, observation: Tensor) -> Tensor:
            self.t -= 1
            kept = process.schedule[self.t, -1]
            return (x - kept.sqrt() * target) / (1 - kept).sqrt()

    held: object = Perfect()
    noise = torch.randn(200, process.noise_width(2), generator=torch.Generator().manual_seed(0)).double()
    chain = process.sample(Networks(held), torch.zeros(200, 1).double(), noise)  # type: ignore[arg-type]
    assert float((chain[:, -2:] - target).abs().max()) < 3.001e-3


def test_one_step_without_clamps_is_a_gaussian_policy() -> None:
    process = Diffusion(steps=1, tuned=1, noise=0.3, exact=True)
    policy = GenerativePolicy(SEEN, DONE, process, seed=1).double()
    torch.manual_seed(0)
    seen = torch.randn(7, 3).double()
    noise = torch.randn(7, 4).double()
    chain = process.sample(policy.networks, seen, noise)
    mean, std = process.step(policy.networks, seen, noise[:, :2], torch.zeros(7, dtype=torch.long))
    torch.testing.assert_close(chain[:, 2:], mean + 0.3 * noise[:, 2:])
    normal = torch.distributions.Normal(mean, 0.3)
    torch.testing.assert_close(process.log_prob(policy.networks, seen, chain), normal.log_prob(chain[:, 2:]).mean(-1))
    assert float(std.max()) == pytest.approx(0.3)


def test_the_ratio_is_the_geometric_mean_over_coordinates() -> None:
    process = Diffusion(steps=4, tuned=4, exact=True)
    one, other = (GenerativePolicy(SEEN, DONE, process, seed=seed).double() for seed in (0, 1))
    torch.manual_seed(0)
    seen, pair, inner = torch.randn(5, 3).double(), torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 3, 3])
    logs, joint = [], []
    for policy in (one, other):
        logs.append(process.log_prob_of_step(policy.networks, seen, pair, inner))
        mean, std = process.step(policy.networks, seen, pair[:, :2], 3 - inner)
        joint.append(torch.distributions.Normal(mean, std).log_prob(pair[:, 2:]).sum(-1))
    torch.testing.assert_close(2 * (logs[0] - logs[1]), joint[0] - joint[1])


def test_bounds_of_noise_likelihood_and_prediction() -> None:
    process = Diffusion(steps=3, tuned=3, noise=0.1)
    policy = GenerativePolicy(SEEN, DONE, process)
    seen, wild = torch.zeros(2, 3), torch.full((2, process.noise_width(2)), 50.0)
    chain = process.sample(policy.networks, seen, wild).unflatten(-1, (4, 2))
    for t, (x, after) in zip((2, 1, 0), zip(chain[:, :-1].unbind(1), chain[:, 1:].unbind(1), strict=True), strict=True):
        mean, std = process.step(policy.networks, seen, x, torch.full((2,), t))
        torch.testing.assert_close(after, mean + 3 * std)
    mean, _ = process.step(policy.networks, seen, torch.full((2, 2), 1e4), torch.zeros(2, dtype=torch.long))
    assert float(mean.abs().max()) <= 1.0
    pair = torch.tensor([[0.0, 0.0, 90.0, 90.0]])
    assert float(process.log_prob_of_step(policy.networks, seen[:1], pair, torch.tensor([2]))) == -5.0


@pytest.mark.parametrize("steps", [2, 3, 10])
def test_ddim_with_eta_one_is_the_posterior_of_the_forward_process(steps: int) -> None:
    """Bayes: the prior N(sqrt(b) x0, 1 - b) of the next state times the likelihood N(sqrt(a / b) x', 1 - a / b) of this one."""
    table = Diffusion(steps=20, tuned=1, noise=1e-9, ddim_steps=steps).schedule
    kept = table[:, -1]
    expected = Diffusion(steps=20, tuned=1).levels[[j * (20 // steps) for j in range(steps)]]
    torch.testing.assert_close(kept, expected)
    for j in range(1, steps):
        a, b = float(kept[j]), float(kept[j - 1])
        precision = 1 / (1 - b) + (a / b) / (1 - a / b)
        from_x0, from_x = b**0.5 / (1 - b) / precision, (a / b) ** 0.5 / (1 - a / b) / precision
        assert table[j, 2:5].tolist() == pytest.approx([from_x0, from_x, precision**-0.5])


def test_ddim_with_all_steps_and_eta_one_is_ddpm() -> None:
    plain = Diffusion(steps=8, tuned=5, noise=0.1)
    other = replace(plain, ddim_steps=8, eta=1.0)
    torch.testing.assert_close(other.schedule, plain.schedule, atol=1e-9, rtol=0)
    policy = GenerativePolicy(SEEN, DONE, plain).double()
    torch.manual_seed(0)
    # Far from [-1, 1] the clamp of x0 is at work too.
    seen, noise = torch.randn(50, 3).double(), 2 * torch.randn(50, plain.noise_width(2)).double()
    chains = [process.sample(policy.networks, seen, noise) for process in (plain, other)]
    torch.testing.assert_close(chains[0], chains[1])
    logs = [process.log_prob(policy.networks, seen, chains[0]) for process in (plain, other)]
    torch.testing.assert_close(logs[0], logs[1])


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_keeps_the_marginals_whatever_eta(eta: float) -> None:
    """From x = sqrt(a) x0 + sqrt(1 - a) e with e known, the next state has mean sqrt(b) x0 and variance 1 - b."""
    table = Diffusion(steps=12, tuned=1, noise=0.0, ddim_steps=6, eta=eta).schedule
    kept, before = table[1:, -1], table[:-1, -1]
    _, _, from_x0, from_x, std, _ = table[1:].unbind(-1)
    torch.testing.assert_close(from_x0 + from_x * kept.sqrt(), before.sqrt())
    torch.testing.assert_close(from_x.square() * (1 - kept) + std.square(), 1 - before)


def test_ddim_with_eta_zero_is_deterministic() -> None:
    process = Diffusion(steps=10, tuned=5, noise=0.0, ddim_steps=5, eta=0.0)
    policy = GenerativePolicy(SEEN, DONE, process)
    torch.manual_seed(0)
    seen, noise = torch.randn(20, 3), torch.randn(20, process.noise_width(2))
    other = torch.cat([noise[:, :2], torch.randn(20, process.noise_width(2) - 2)], -1)
    first = process.sample(policy.networks, seen, noise)
    assert torch.equal(first, process.sample(policy.networks, seen, other))
    assert float(process.schedule[:, 4].abs().max()) == 0.0
    noisy = replace(process, eta=0.5)
    assert not torch.equal(noisy.sample(policy.networks, seen, noise), noisy.sample(policy.networks, seen, other))
    with pytest.raises(UserError, match="noise=0"):
        process.log_prob(policy.networks, seen, first)


@pytest.mark.parametrize("learnt", [False, True])
def test_log_probabilities_of_ddim_are_gaussian_densities(learnt: bool) -> None:
    process = Diffusion(10, 4, 0.05, exact=True, ddim_steps=5, eta=0.7, learn_eta=learnt)
    policy = GenerativePolicy(SEEN, DONE, process).double()
    torch.manual_seed(0)
    seen, pair = torch.randn(30, 3).double(), torch.randn(30, 4).double()
    inner = torch.arange(30) % 4
    found = process.log_prob_of_step(policy.networks, seen, pair, inner)
    for n in range(30):
        place = 3 - int(inner[n])
        t = place * 2
        a, b = float(process.levels[t]), float(process.levels[t - 2]) if place else 1.0
        angles = torch.tensor(float(t)).double() * 1e4 ** (-torch.arange(8).double() / 7)
        features = torch.cat([angles.sin(), angles.cos()])
        eps = policy.actor(pair[n, :2], features, seen[n])
        x0 = (pair[n, :2] - (1 - a) ** 0.5 * eps) / a**0.5
        sig = 0.7 * ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
        mean = b**0.5 * x0 + max(1 - b - sig**2, 0.0) ** 0.5 * eps
        density = torch.distributions.Normal(mean, max(sig, 0.05)).log_prob(pair[n, 2:])
        assert float(found[n].detach()) == pytest.approx(float(density.mean().detach()), abs=1e-6)


def test_a_learnt_eta_begins_where_it_should_stays_in_its_bounds_and_learns(tmp_path: Path) -> None:
    process = Diffusion(8, 3, 0.02, exact=True, ddim_steps=4, eta=0.6, learn_eta=True, least_eta=0.1, most_eta=1.0)
    policy = GenerativePolicy(SEEN, DONE, process).double()
    assert float(process.eta_of(policy.networks).detach()) == pytest.approx(0.6)
    for number, bound in ((-50.0, 0.1), (50.0, 1.0)):
        with torch.no_grad():
            policy.actor.own.fill_(number)
        assert float(process.eta_of(policy.networks).detach()) == pytest.approx(bound)
    torch.manual_seed(0)
    seen, pair, inner = torch.randn(40, 3).double(), torch.randn(40, 4).double(), torch.arange(40) % 3

    def mean_at(number: float) -> torch.Tensor:
        with torch.no_grad():
            policy.actor.own.fill_(number)
        return process.log_prob_of_step(policy.networks, seen, pair, inner).mean()

    (slope,) = torch.autograd.grad(mean_at(0.2), policy.actor.own)
    with torch.no_grad():
        finite = float(mean_at(0.2 + 1e-5) - mean_at(0.2 - 1e-5)) / 2e-5
    assert abs(finite) > 1e-3
    assert float(slope) == pytest.approx(finite, rel=1e-5)
    names = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert "actor.own" in names
    assert "early.own" not in names
    policy = policy.float()
    policy.save(tmp_path)
    again = GenerativePolicy.load(tmp_path)
    assert again.process == process
    assert torch.equal(again.actor.own, policy.actor.own)
    batch = Trajectories({"observation": torch.zeros(1, 2, 3), "action": torch.zeros(1, 2, 8)})
    told = again.evaluate(batch, frozenset({"logp", ETA})).extras[ETA]
    assert told.shape == (1, 2)
    assert told.requires_grad


def test_frozen_steps_neither_learn_nor_move_until_settled() -> None:
    policy = GenerativePolicy(SEEN, DONE, Diffusion(steps=4, tuned=2))
    assert policy.early is not None
    assert not any(p.requires_grad for p in policy.early.parameters())
    chain = policy.process.sample(policy.networks, torch.randn(3, 3), torch.randn(3, 10))
    policy.process.log_prob(policy.networks, torch.randn(3, 3), chain).sum().backward()
    assert all(p.grad is None for p in policy.early.parameters())
    with torch.no_grad():
        policy.actor.mlp.linears[0].weight.add_(1.0)
    assert not torch.equal(policy.early.mlp.linears[0].weight, policy.actor.mlp.linears[0].weight)
    policy.settle()
    assert torch.equal(policy.early.mlp.linears[0].weight, policy.actor.mlp.linears[0].weight)


def test_a_chain_counts_the_sum_of_its_steps() -> None:
    process = Diffusion(steps=5, tuned=3)
    policy = GenerativePolicy(SEEN, DONE, process)
    torch.manual_seed(0)
    seen = torch.randn(2, 4, 3)
    chain = process.sample(policy.networks, seen.flatten(0, 1), torch.randn(8, 12)).unflatten(0, (2, 4))
    whole = policy.evaluate(Trajectories({"observation": seen, "action": chain}), frozenset({"logp"})).logp
    pairs = process.pairs(chain).flatten(1, 2)
    columns = {
        "observation": seen.repeat_interleave(3, 1),
        "action": pairs,
        INNER: torch.arange(3).repeat(2, 4),
    }
    steps = policy.evaluate(Trajectories(columns), frozenset({"logp"})).logp
    torch.testing.assert_close(whole, steps.unflatten(1, (4, 3)).sum(-1))


@pytest.mark.parametrize("process", [Flow(steps=3, draws=2), Diffusion(steps=4, tuned=2)])
def test_imitation_learns_two_actions_and_the_folder_gives_the_policy_back(process: object, tmp_path: Path) -> None:
    policy = GenerativePolicy(SEEN, DONE, process, hidden=(32,))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(256, 3, generator=generator)
    done = torch.where(torch.rand(256, 1, generator=generator) < 0.5, 1.0, -1.0) * torch.tensor(
        [1.0, 0.1]
    ) + torch.tensor([0, 0.5])
    optimizer = torch.optim.Adam(policy.actor_parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = policy.imitation_loss(seen, done, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:5])
    policy.save(tmp_path)
    again = GenerativePolicy.load(tmp_path)
    raw = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    action = policy.act(raw, deterministic=False, generator=torch.Generator().manual_seed(3))
    np.testing.assert_array_equal(
        action, again.act(raw, deterministic=False, generator=torch.Generator().manual_seed(3))
    )
    assert action.shape == (5, 2)
    assert (action >= [-2, 0]).all()
    assert (action <= [2, 1]).all()


def test_what_a_flow_tells_is_marked_as_a_proxy() -> None:
    policy = GenerativePolicy(SEEN, DONE, Flow(steps=2, draws=3))
    batch = Trajectories({"observation": torch.randn(2, 3, 3), "action": torch.rand(2, 3, 11)})
    found = policy.evaluate(batch, frozenset({"logp", LOSSES}))
    assert found.proxy
    torch.testing.assert_close(found.logp, -found.extras[LOSSES].mean(-1))


def test_refusals() -> None:
    with pytest.raises(UserError, match="continuous"):
        GenerativePolicy(SEEN, Actions("discrete", (), (2,), (0,)), Flow())
    with pytest.raises(UserError, match="tuned=3"):
        Diffusion(steps=2, tuned=3)
    for wrong, said in (
        ({"ddim_steps": 9}, "ddim_steps=9"),
        ({"ddim_steps": 2, "tuned": 3}, "1 to ddim_steps=2"),
        ({"eta": 0.5}, "DDIM"),
        ({"learn_eta": True}, "DDIM"),
        ({"noise": 0.0}, "noise=0"),
        ({"ddim_steps": 4, "eta": -1.0}, "eta=-1"),
        ({"ddim_steps": 4, "eta": 0.1, "learn_eta": True}, "least_eta"),
    ):
        with pytest.raises(UserError, match=said):
            Diffusion(**{"steps": 8, "tuned": 2, **wrong})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="entropy"):
        GenerativePolicy(SEEN, DONE, Flow()).evaluate(
            Trajectories({"observation": torch.zeros(1, 1, 3)}), frozenset({"entropy"})
        )
