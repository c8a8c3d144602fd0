"""Estimators of the divergence: their expectations, their gradients, and their bounds."""

from __future__ import annotations

import pytest
import torch

from vantage.core.errors import UserError
from vantage.functions.divergences import divergence, k3


def test_values() -> None:
    logp, reference = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -0.5, -2.0])
    assert divergence(logp, reference, "k1").tolist() == [0.0, -0.5, 1.0]
    assert divergence(logp, reference, "k2").tolist() == [0.0, 0.125, 0.5]
    assert divergence(logp, reference, "k3").tolist() == pytest.approx([0.0, 0.14872, 0.36788], abs=1e-5)
    with pytest.raises(UserError, match="estimator='k4'"):
        divergence(logp, reference, "k4")


def test_expectations_and_gradients_under_the_policy_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(-1)
    logp = logits.log_softmax(-1)
    weight = logp.detach().exp()
    forward = (logp.exp() * (logp - reference)).sum()
    for name in ("k1", "k3"):
        torch.testing.assert_close((weight * divergence(logp, reference, name)).sum(), forward)

    def slope(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    backward = (reference.exp() * (reference - logp)).sum()
    torch.testing.assert_close(slope((weight * divergence(logp, reference, "k1")).sum()), torch.zeros(6).double())
    torch.testing.assert_close(slope((weight * divergence(logp, reference, "k2")).sum()), slope(forward))
    torch.testing.assert_close(slope((weight * divergence(logp, reference, "k3")).sum()), slope(backward))


def test_bounds_are_verls_and_carry_no_gradient_beyond() -> None:
    for gap in (90.0, -90.0):
        logp = torch.zeros(3, requires_grad=True)
        found = divergence(logp, torch.full((3,), gap), "k3")
        found.sum().backward()
        assert found.tolist() == [10.0] * 3
        assert logp.grad.tolist() == [0.0] * 3
    assert divergence(torch.zeros(1), torch.full((1,), 90.0), "k3", limit=1e4).item() == 1e4
    # verl: kl in [-20, 20], exp(kl) - kl - 1, in [-10, 10]
    u = torch.linspace(-40, 40, 81, dtype=torch.float64)
    kl = u.clamp(-20, 20)
    peer = (kl.exp() - kl - 1).clamp(-10, 10)
    torch.testing.assert_close(divergence(torch.zeros(81).double(), u, "k3"), peer)
    assert k3(torch.tensor(90.0)).item() == pytest.approx(4.8516517e8, rel=1e-6)
    assert k3(torch.tensor(1e-6, dtype=torch.float64)).item() == pytest.approx(5e-13, rel=1e-3)
