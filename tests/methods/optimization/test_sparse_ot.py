"""Sparse optimal transport: the identities of its card, POT, and the linear program."""

from __future__ import annotations

import pytest
import torch

from tests.reference import Case, cases
from vantage.core.errors import UserError
from vantage.fields.solvers.transport import Transport, clouds, exact
from vantage.methods import registry
from vantage.methods.optimization.sparse_ot import dual, free_conjugate, mass_conjugate, semi_dual


def solve(problem: Transport, **settings: object) -> object:
    return registry.page("sparse-ot").make(settings)(problem)


S = torch.tensor([[3.0], [2.0], [1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("k", "t", "value", "free"),
    [(1, [1.0, 0.0, 0.0], 2.0, 2.25), (2, [0.75, 0.25, 0.0], 2.125, 3.25), (3, [0.75, 0.25, 0.0], 2.125, 3.5)],
)
def test_conjugates_by_hand(k: int, t: list[float], value: float, free: float) -> None:
    found, maximiser = mass_conjugate(S, torch.ones(1, dtype=torch.float64), 2.0, k)
    assert float(found) == pytest.approx(value)
    assert maximiser.squeeze(1).tolist() == pytest.approx(t)
    found, maximiser = free_conjugate(S, 2.0, k)
    assert float(found) == pytest.approx(free)
    assert maximiser.squeeze(1).tolist() == pytest.approx([x / 2 if i < k else 0.0 for i, x in enumerate((3, 2, 1))])


def random_columns(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, 5, generator=generator, dtype=torch.float64), torch.rand(
        5, generator=generator, dtype=torch.float64
    )


@pytest.mark.parametrize("k", [1, 3, 7])
def test_maximisers_are_gradients_feasible_and_best(k: int) -> None:
    s, b = random_columns()
    for conjugate in (lambda x: free_conjugate(x, 0.7, k), lambda x: mass_conjugate(x, b, 0.7, k)):
        leaf = s.clone().requires_grad_()
        values, t = conjugate(leaf)
        for i in range(s.numel()):
            step = torch.zeros_like(s).view(-1)
            step[i] = 1e-6
            ahead, behind = conjugate(s + step.view_as(s))[0].sum(), conjugate(s - step.view_as(s))[0].sum()
            assert float((ahead - behind) / 2e-6) == pytest.approx(float(t.detach().view(-1)[i]), abs=1e-5)
        assert float(t.detach().min()) >= 0
        assert int((t > 0).sum(0).max()) <= k
        assert values.shape == (5,)
    _, t = mass_conjugate(s, b, 0.7, k)
    torch.testing.assert_close(t.sum(0), b)
    # Random feasible points with k entries are no better.
    value = mass_conjugate(s, b, 0.7, k)[0]
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        other = torch.rand(7, 5, generator=generator, dtype=torch.float64)
        kept = torch.rand(7, 5, generator=generator).argsort(0) < k
        other = other * kept
        other = other / other.sum(0) * b
        assert bool(((s * other).sum(0) - 0.35 * other.square().sum(0) <= value + 1e-12).all())


def test_conjugates_grow_with_k_and_k_one_is_a_maximum() -> None:
    s, b = random_columns(2)
    for conjugate in (lambda k: free_conjugate(s, 0.5, k)[0], lambda k: mass_conjugate(s, b, 0.5, k)[0]):
        for k in range(1, 7):
            assert bool((conjugate(k + 1) >= conjugate(k) - 1e-12).all())
    torch.testing.assert_close(mass_conjugate(s, b, 0.5, 1)[0], b * s.max(0).values - 0.25 * b.square())


def test_a_column_without_mass_stays_empty() -> None:
    s, _ = random_columns()
    _, t = mass_conjugate(s, torch.zeros(5, dtype=torch.float64), 0.5, 3)
    assert float(t.abs().max()) < 1e-12


def test_the_semi_dual_does_not_see_a_constant_and_is_the_duals_maximum_over_beta() -> None:
    problem = clouds(6, seed=0)
    alpha = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.3
    value, gradient, plan = semi_dual(problem, alpha, 0.5, 6)
    assert float(semi_dual(problem, alpha + 2.5, 0.5, 6)[0]) == pytest.approx(float(value))
    torch.testing.assert_close(plan.sum(0), problem.target)
    torch.testing.assert_close(gradient, problem.source - plan.sum(1))
    # Over beta the dual is smooth: plain ascent reaches the semi-dual.
    beta = torch.zeros(6, dtype=torch.float64)
    for _ in range(4000):
        found, step, _ = dual(problem, torch.cat([alpha, beta]), 0.5, 6)
        beta = beta + 0.08 * step[6:]
    assert float(found) == pytest.approx(float(value), abs=1e-7)


@pytest.mark.parametrize("form", ["semi-dual", "dual"])
def test_quadratic_transport_has_the_right_marginals_and_meets_its_dual(form: str) -> None:
    problem = clouds(8, seed=1)
    found = solve(problem, nonzeros=0, gamma=0.5, form=form, limit=500)
    assert found.violation(problem) < 1e-5  # type: ignore[attr-defined]
    primal = found.cost(problem) + 0.25 * float(found.plan.square().sum())  # type: ignore[attr-defined]
    assert found.value == pytest.approx(primal, abs=1e-5)  # type: ignore[attr-defined]


def test_weak_duality_and_cardinality() -> None:
    problem = clouds(8, seed=2)
    # A permutation has one entry a column: feasible for every k.
    primal = float(problem.cost.diagonal().sum()) / 8 + 0.5 / 2 * 8 * (1 / 8) ** 2
    least = exact(problem)
    before = float("inf")
    for k in (1, 2, 4, 8):
        found = solve(problem, nonzeros=k, gamma=0.5, limit=300)
        assert found.value <= primal + 1e-9  # type: ignore[attr-defined]
        assert int(found.nonzeros().max()) <= k  # type: ignore[attr-defined]
        assert found.value >= least - 1e-9 or k == 1  # type: ignore[attr-defined]
        # At a fixed point the dual falls with k; so does its maximum.
        assert found.value <= before + 1e-7  # type: ignore[attr-defined]
        before = found.value  # type: ignore[attr-defined]


@cases("sparse-ot")
def test_duals_are_pots(case: Case) -> None:
    problem = Transport(case.tensor("source"), case.tensor("target"), case.tensor("cost"))
    gamma, k = case.settings["gamma"], case.settings["k"]
    alpha = case.tensor("alpha")
    if "beta" in case.inputs:
        value, gradient, _ = dual(problem, torch.cat([alpha, case.tensor("beta")]), gamma, k)
    else:
        value, gradient, _ = semi_dual(problem, alpha, gamma, k)
    case.check("value", value)
    case.check("gradient", gradient)


@pytest.mark.peers
@pytest.mark.parametrize("k", [1, 3, 10])
def test_equals_pot(k: int) -> None:
    smooth = pytest.importorskip("ot.smooth")
    problem = clouds(10, seed=3)
    solver = smooth.SparsityConstrained(max_nz=k, gamma=0.5)
    alpha = torch.randn(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.3
    value, gradient, _ = semi_dual(problem, alpha, 0.5, k)
    arrays = [x.numpy() for x in (alpha, problem.source, problem.target, problem.cost)]
    theirs, slope = smooth.semi_dual_obj_grad(*arrays, solver)
    assert float(value) == pytest.approx(float(theirs), abs=1e-10)
    torch.testing.assert_close(gradient, torch.from_numpy(slope), atol=1e-10, rtol=0)
    if k == 10:
        ours = solve(problem, nonzeros=k, gamma=0.5, tolerance=1e-9)
        plan = smooth.smooth_ot_semi_dual(*arrays[1:], 0.5, reg_type="l2", stopThr=1e-15, numItermax=5000)
        torch.testing.assert_close(ours.plan, torch.from_numpy(plan), atol=1e-5, rtol=0)  # type: ignore[attr-defined]


def test_bad_settings_are_refused() -> None:
    for settings, message in (
        ({"gamma": 0.0}, "gamma"),
        ({"form": "primal"}, "form='primal'"),
        ({"nonzeros": -1}, "nonzeros=-1"),
    ):
        with pytest.raises(UserError, match=message):
            registry.page("sparse-ot").make(settings)
