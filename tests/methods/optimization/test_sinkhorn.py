"""Sinkhorn against POT and its own optimality conditions."""

from __future__ import annotations

import pytest
import torch

from tests.reference import Case, cases
from vantage.core.errors import UserError
from vantage.fields.solvers.transport import Transport, clouds
from vantage.methods import registry


def test_marginals_value_and_form() -> None:
    problem = clouds(8, seed=0)
    found = registry.page("sinkhorn").make({"eps": 0.2, "tolerance": 1e-10})(problem)
    assert found.violation(problem) < 1e-9
    assert bool((found.plan > 0).all())
    primal = found.cost(problem) + 0.2 * float((found.plan * (found.plan.log() - 1)).sum())
    assert found.value == pytest.approx(primal, abs=1e-8)
    # log T is a sum of a row's number, a column's number and the cost.
    left = found.plan.log() * 0.2 + problem.cost
    centred = left - left.mean(0) - left.mean(1, keepdim=True) + left.mean()
    assert float(centred.abs().max()) < 1e-8


@pytest.mark.parametrize("name", ["sinkhorn", "sparse-ot"])
@pytest.mark.parametrize("empty", ["source", "target", "both"])
def test_empty_places_take_no_part(name: str, empty: str) -> None:
    full = clouds(5, seed=0)
    some = torch.tensor([0.0, 0.3, 0.3, 0.2, 0.2], dtype=torch.float64)
    source = some if empty != "target" else full.source
    target = some.flip(0) if empty != "source" else full.target
    problem = Transport(source, target, full.cost)
    kept = Transport(source[source > 0], target[target > 0], full.cost[source > 0][:, target > 0])
    solver = registry.page(name).make({"eps": 0.2, "tolerance": 1e-9} if name == "sinkhorn" else {"nonzeros": 5})
    found, wanted = solver(problem), solver(kept)
    assert found.value == pytest.approx(wanted.value, abs=1e-6)
    assert found.violation(problem) < 1e-4
    assert float(found.plan[source == 0].sum() + found.plan[:, target == 0].sum()) == 0.0
    # A way that must not be taken costs infinitely much, and nothing where nothing goes.
    barred = full.cost.clone()
    barred[source == 0] = torch.inf
    assert found.cost(Transport(source, target, barred)) == pytest.approx(found.cost(problem), abs=1e-12)


def test_a_problem_without_mass_is_refused() -> None:
    with pytest.raises(UserError, match="mass of 0: it must be above 0"):
        Transport(torch.zeros(2), torch.zeros(2), torch.ones(2, 2))


@cases("sinkhorn")
def test_the_iterations_are_pots(case: Case) -> None:
    problem = Transport(case.tensor("source"), case.tensor("target"), case.tensor("cost"))
    settings = {"eps": case.settings["reg"], "tolerance": 0.0, "limit": case.settings["iterations"]}
    case.check("plan", registry.page("sinkhorn").make(settings)(problem).plan)


@pytest.mark.peers
def test_equals_pot() -> None:
    ot = pytest.importorskip("ot")
    problem = clouds(10, seed=1)
    found = registry.page("sinkhorn").make({"eps": 0.3, "tolerance": 1e-11})(problem)
    theirs = ot.sinkhorn(problem.source.numpy(), problem.target.numpy(), problem.cost.numpy(), 0.3, stopThr=1e-12)
    torch.testing.assert_close(found.plan, torch.from_numpy(theirs), atol=1e-8, rtol=0)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"eps=0\.0"):
        registry.page("sinkhorn").make({"eps": 0.0})
