"""PRDC: the neighbours of its card and the limits of beta."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vantage
from tests.harness import context
from tests.methods.offline.theirs import check_twin
from tests.methods.offline.worlds import assert_resumes, batch_of, runner
from tests.reference import Case, cases
from vantage.core import Trajectories, UserError
from vantage.methods import registry
from vantage.methods.composition import differences
from vantage.methods.offline.prdc import Neighbour
from vantage.objectives.deterministic import AnchoredGradient, DataAction


def neighbour(beta: float, state: float, action: float) -> float:
    part = Neighbour(beta)
    part.index(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]))
    batch = Trajectories({"observation": torch.tensor([[[state]]])})
    return float(part(torch.tensor([[[action]]]), batch, context()))


@pytest.mark.parametrize(("beta", "nearest"), [(1.0, 1.0), (3.0, 0.0), (0.0, 1.0)])
def test_worked_example(beta: float, nearest: float) -> None:
    assert neighbour(beta, 0.4, 0.9) == nearest


def test_search_is_the_exhaustive_one_and_ignores_duplicates() -> None:
    generator = torch.Generator().manual_seed(0)
    states, actions = torch.randn(200, 3, generator=generator), torch.rand(200, 2, generator=generator)
    query_s, query_a = torch.randn(40, 3, generator=generator), torch.rand(40, 2, generator=generator)
    for beta in (0.5, 2.0):
        keys, query = torch.cat([beta * states, actions], 1), torch.cat([beta * query_s, query_a], 1)
        wanted = actions[torch.cdist(query, keys).argmin(1)]
        batch = Trajectories({"observation": query_s.unsqueeze(1)})
        for copies in (1, 3):
            part = Neighbour(beta)
            part.index(states.repeat(copies, 1), actions.repeat(copies, 1))
            torch.testing.assert_close(part(query_a.unsqueeze(1), batch, context())[:, 0], wanted)


def test_a_large_beta_is_td3_bc() -> None:
    trainer = runner(vantage.method("prdc", beta=1e6), 1)
    batch, where = batch_of(trainer), trainer.context
    policy: Any = where.policy
    action = policy.mean_action(batch.observation).detach()
    anchor = where.method.objective.anchor(action, batch, where)
    torch.testing.assert_close(anchor, DataAction()(action, batch, where))
    judged = policy.evaluate(batch, frozenset({"mean", "q_mean"}))
    torch.testing.assert_close(
        where.method.objective(judged, batch, where), AnchoredGradient(2.5)(judged, batch, where)
    )


def test_without_values_the_pull_is_twice_the_distance_and_the_search_has_no_gradient() -> None:
    trainer = runner(vantage.method("prdc", alpha=0.0), 1)
    batch, where = batch_of(trainer), trainer.context
    policy: Any = where.policy
    judged = policy.evaluate(batch, frozenset({"mean", "q_mean"}))
    mean = judged.extras["mean"]
    loss = where.method.objective(judged, batch, where).mean()
    nearest = where.method.objective.anchor(mean.detach(), batch, where)
    (gradient,) = torch.autograd.grad(loss, mean)
    torch.testing.assert_close(gradient, 2 * (mean.detach() - nearest) / (32 * 2))
    # Where the actor stands on a stored pair there is nothing to pull.
    table: Any = where.engine.table  # type: ignore[attr-defined]
    rows = table[:32]
    same = where.method.objective.anchor(rows.action, rows, where)
    torch.testing.assert_close(same, rows.action)


def test_one_part_differs_from_td3_bc() -> None:
    assert list(differences(vantage.method("prdc"), vantage.method("td3-bc"))) == ["objective"]


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    assert_resumes(tmp_path, vantage.method("prdc", rows=16))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="beta=-1"):
        vantage.method("prdc", beta=-1.0)


@cases("prdc")
def test_steps_are_the_authors_with_the_critic_first(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours searched in the data; all targets and the last gradients after two and four steps."""
    data = {
        "observation": case.tensor("data_state", torch.float32),
        "action": case.tensor("data_action", torch.float32),
    }
    table = Trajectories({name: column.unsqueeze(1) for name, column in data.items()})
    check_twin(case, registry.page("prdc").build(case.settings), SimpleNamespace(table=table), monkeypatch)
