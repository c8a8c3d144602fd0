"""Distributions against torch's, closed forms and quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as peers

from vantage.policies.distributions import Categorical, Gaussian, MultiCategorical, SquashedGaussian

DRAW = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_categorical_equals_torch() -> None:
    logits, other, action = randn(3, 5, 4), randn(3, 5, 4) * 2 + 1, torch.randint(4, (3, 5), generator=DRAW)
    ours, peer = Categorical(logits), peers.Categorical(logits=logits)
    torch.testing.assert_close(ours.log_prob(action), peer.log_prob(action))
    torch.testing.assert_close(ours.entropy(), peer.entropy())
    expected = peers.kl_divergence(peer, peers.Categorical(logits=other))
    torch.testing.assert_close(ours.kl(Categorical(other)), expected)
    assert torch.equal(ours.mode, logits.argmax(-1))


def test_categorical_reads_everything_off_one_log_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    import vantage.policies.distributions as module

    calls = []
    original = module.F.log_softmax
    monkeypatch.setattr(module.F, "log_softmax", lambda *given: calls.append(1) or original(*given))
    head = Categorical(randn(2, 3))
    head.log_prob(torch.tensor([0, 1])), head.entropy(), head.mode
    assert len(calls) == 1


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 5, 2), (4,)])
def test_multicategorical_is_a_product(sizes: tuple[int, ...]) -> None:
    logits, other = randn(6, sum(sizes)).requires_grad_(), randn(6, sum(sizes)) + 1
    ours, against = MultiCategorical(logits, sizes), MultiCategorical(other, sizes)
    parts = [Categorical(part) for part in logits.split(sizes, -1)]
    others = [Categorical(part) for part in other.split(sizes, -1)]
    action = torch.stack([torch.randint(size, (6,), generator=DRAW) for size in sizes], -1)
    expected = sum(part.log_prob(action[:, k]) for k, part in enumerate(parts))
    torch.testing.assert_close(ours.log_prob(action), expected)
    torch.testing.assert_close(ours.entropy(), sum(part.entropy() for part in parts))
    torch.testing.assert_close(ours.kl(against), sum(p.kl(q) for p, q in zip(parts, others, strict=True)))
    assert torch.equal(ours.mode, torch.stack([part.mode for part in parts], -1))
    (gradient,) = torch.autograd.grad((ours.entropy() + ours.log_prob(action)).sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(sum(p.entropy() for p in parts).sum() + expected.sum(), logits)
    torch.testing.assert_close(gradient, wanted)
    drawn = MultiCategorical(logits.detach().expand(200, 6, -1), sizes).sample(DRAW)
    assert (drawn >= 0).all()
    assert (drawn < torch.tensor(sizes)).all()


def test_gaussian_equals_torch() -> None:
    mean, log_std, action = randn(4, 7, 3), randn(3) * 0.5, randn(4, 7, 3) * 2
    ours, peer = Gaussian(mean, log_std), peers.Independent(peers.Normal(mean, log_std.exp()), 1)
    torch.testing.assert_close(ours.log_prob(action), peer.log_prob(action))
    torch.testing.assert_close(ours.entropy(), peer.entropy())
    assert ours.entropy().shape == (4, 7)
    other_mean, other_std = mean + 0.3, log_std - 0.2
    expected = peers.kl_divergence(peer, peers.Independent(peers.Normal(other_mean, other_std.exp()), 1))
    torch.testing.assert_close(ours.kl(Gaussian(other_mean, other_std)), expected)


def test_squashed_gaussian_has_the_density_of_tanh() -> None:
    mean, log_std, raw = randn(5, 2), randn(5, 2) * 0.3, randn(5, 2)
    peer = peers.TransformedDistribution(
        peers.Independent(peers.Normal(mean, log_std.exp()), 1), [peers.TanhTransform(cache_size=1)]
    )
    torch.testing.assert_close(SquashedGaussian(mean, log_std).log_prob(raw), peer.log_prob(raw.tanh()))
    far = SquashedGaussian(torch.zeros(1, 1), torch.zeros(1)).log_prob(torch.full((1, 1), 40.0))
    # log N(40) - log(4 exp(-80)) : exact where 1 - tanh^2 itself is 0 in floating point.
    assert float(far) == pytest.approx(-0.5 * 1600 - 0.5 * math.log(2 * math.pi) - math.log(4) + 80, rel=1e-6)


@pytest.mark.parametrize(("mean", "log_std", "within"), [(0.0, 0.0, 1e-4), (1.5, -1.0, 1e-4), (0.3, 1.0, 1e-2)])
def test_squashed_entropy_equals_the_integral(mean: float, log_std: float, within: float) -> None:
    grid = torch.linspace(mean - 12 * math.exp(log_std), mean + 12 * math.exp(log_std), 400_001, dtype=torch.float64)
    head = SquashedGaussian(
        torch.full((1, 1), mean, dtype=torch.float64), torch.full((1,), log_std, dtype=torch.float64)
    )
    plain = Gaussian(head.mean, head.log_std).log_prob(grid[:, None])
    expected = torch.trapezoid(-plain.exp() * head.log_prob(grid[:, None]), grid)
    assert float(head.entropy()) == pytest.approx(float(expected), abs=within)


def test_kl_has_the_fisher_matrix_as_its_second_derivative() -> None:
    # Bernoulli with logit z: F = p (1 - p); by double back-propagation, as a trust region takes it.
    z = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    logits = torch.stack([torch.zeros_like(z), z])
    divergence = Categorical(logits.detach()).kl(Categorical(logits))
    (first,) = torch.autograd.grad(divergence, z, create_graph=True)
    (second,) = torch.autograd.grad(first, z)
    p = 1 / (1 + math.exp(-0.7))
    assert float(divergence.detach()) == pytest.approx(0.0, abs=1e-15)
    assert float(first.detach()) == pytest.approx(0.0, abs=1e-15)
    assert float(second.detach()) == pytest.approx(p * (1 - p))
    # Gaussian: F of the mean is 1 / std^2, of the log standard deviation 2.
    mean, log_std = torch.zeros(1, dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    mean.requires_grad_(), log_std.requires_grad_()
    divergence = Gaussian(mean.detach(), log_std.detach()).kl(Gaussian(mean, log_std))
    gradients = torch.autograd.grad(divergence, (mean, log_std), create_graph=True)
    assert float(torch.autograd.grad(gradients[0], mean, retain_graph=True)[0]) == pytest.approx(math.exp(-0.8))
    assert float(torch.autograd.grad(gradients[1], log_std)[0]) == pytest.approx(2.0)


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0])
    drawn = Categorical(logits.expand(60_000, 3)).sample(torch.Generator().manual_seed(1))
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(shares, logits.softmax(-1), atol=0.008, rtol=0)
    values = Gaussian(torch.full((60_000, 1), 2.0), torch.tensor([-1.0])).sample(torch.Generator().manual_seed(1))
    assert float(values.mean()) == pytest.approx(2.0, abs=0.01)
    assert float(values.std()) == pytest.approx(math.exp(-1), abs=0.01)
