"""Sinkhorn against POT and its own optimality conditions."""

from __future__ import annotations

import pytest
import torch

from vantage.core.errors import UserError
from vantage.fields.solvers.transport import clouds
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
