"""CHITA: the identities of its card."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.fields.compression.tools import small
from tests.reference import Case, cases
from vantage.core.errors import UserError
from vantage.fields.compression.network import (
    Network,
    flat_weights,
    set_flat_weights,
    weight_names,
    weight_sparsity,
)
from vantage.fields.compression.quadratic import Quadratic, largest
from vantage.fields.compression.scores import batch_losses
from vantage.fields.compression.statistics import gradient_rows
from vantage.methods import registry
from vantage.methods.compression import chita as page
from vantage.methods.compression.chita import Chita, Tuning, blocks, levels


def chita(**settings: object) -> Chita:
    made: Chita = registry.page("chita").make({"stages": 1, "block": 0, **settings})
    return made


def test_two_weights_by_hand() -> None:
    w = torch.tensor([2.0, 1.0], dtype=torch.float64)
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    # n = 1: the ridge lambda / 2. Index 1 goes, and the other weight takes its place over.
    bare = Quadratic.of_gradients(x, w, 0.0)
    found = chita().solve(bare, 1)
    torch.testing.assert_close(found, torch.tensor([3.0, 0.0], dtype=torch.float64))
    assert bare.value(found) == pytest.approx(0.0, abs=1e-12)
    held = Quadratic.of_gradients(x, w, 1.0)
    assert held.ridge == 0.5
    torch.testing.assert_close(chita().solve(held, 1), torch.tensor([2.5, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("solver", ["iht", "bso"])
def test_a_hessian_of_one_number_makes_it_magnitude_pruning(solver: str) -> None:
    w = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = Quadratic.of_gradients(2.0 * torch.eye(8, dtype=torch.float64), w, 0.1)
    torch.testing.assert_close(chita(solver=solver).solve(q, 3), largest(w, 3))


def test_no_gradient_makes_bso_magnitude_pruning() -> None:
    w = torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q = Quadratic.of_gradients(torch.zeros(4, 8, dtype=torch.float64), w, 0.1)
    torch.testing.assert_close(chita().solve(q, 3), largest(w, 3))


def _problem(seed: int = 0, first: float = 0.0) -> Quadratic:
    network = small((6, 10, 8, 3), rows=120, seed=seed)
    rows = gradient_rows(network.model, weight_names(network.layers()), batch_losses(network, 60, 1, seed))
    return Quadratic.of_gradients(rows.double(), flat_weights(network).double(), 1e-3, first)


@pytest.mark.parametrize("seed", range(3))
def test_every_solver_is_below_magnitude_pruning(seed: int) -> None:
    q = _problem(seed)
    k = len(q.center) // 5
    plain = q.value(largest(q.center, k))
    bso = chita().solve(q, k)
    iht, refined = chita(solver="iht").solve(q, k), chita(solver="iht", refine=True).solve(q, k)
    assert float(q.gradient(bso)[bso != 0].abs().max()) < 1e-7
    assert torch.equal((bso != 0), largest(q.center, k) != 0)
    assert q.value(bso) <= plain
    assert q.value(iht) <= plain
    assert q.value(refined) <= q.value(iht) + 1e-12
    for found in (bso, iht, refined):
        assert int((found != 0).sum()) <= k


def test_blocks_solve_their_own_share() -> None:
    q = _problem()
    k, p = 40, len(q.center)
    found = chita(block=50).solve(q, k, [60, p - 60])
    # The first layer is one block of 60.
    part = torch.arange(60)
    kept = largest(q.center, k) != 0
    assert torch.equal(found != 0, kept)
    x = q.rows[:, part][:, kept[part]]
    eye = torch.eye(int(kept[part].sum()), dtype=torch.float64)
    right = x.T @ (q.rows[:, part] @ q.center[part]) + 2 * q.ridge * q.center[part][kept[part]]
    torch.testing.assert_close(found[part][kept[part]], torch.linalg.solve(x.T @ x + 2 * q.ridge * eye, right))
    torch.testing.assert_close(chita(block=p).solve(q, k), chita().solve(q, k))


def test_the_first_order_term_may_move_the_support_and_lowers_q() -> None:
    q = _problem(first=1.0)
    k = len(q.center) // 4
    found = chita(first_order=True).solve(q, k)
    assert q.value(found) <= q.value(largest(q.center, k))
    assert int((found != 0).sum()) <= k


def test_levels_rise_to_the_target() -> None:
    assert levels(0.9, 0.3, 1, "poly") == [0.9]
    assert levels(0.9, 0.3, 3, "poly") == pytest.approx([0.3, 0.9 - 0.6 / 8, 0.9])
    assert levels(0.9, 0.3, 3, "exp") == pytest.approx([0.3, 0.3 + 0.6 * 4 / 3 / 2, 0.9])
    assert levels(0.2, 0.3, 2, "poly") == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("solver", ["iht", "bso"])
def test_stages_prune_what_was_asked_and_pruned_weights_stay_out(solver: str) -> None:
    network = small((6, 10, 8, 3), rows=120)
    total = len(flat_weights(network))
    found = chita(solver=solver, stages=3, samples=30, batch=4, ridge=1e-3)(network, 0.7, seed=1)
    assert set(found) == {"objective", "moved"}
    assert weight_sparsity(network) >= int(0.7 * total) / total - 1e-9
    before = flat_weights(network)
    chita(solver=solver, samples=30, batch=4, ridge=1e-3)(network, 0.75, seed=2)
    assert bool((flat_weights(network)[before == 0] == 0).all())


FEW: dict[str, Any] = {"samples": 30, "batch": 4, "ridge": 1e-3}


def solved(network: Network, pruner: Chita, level: float, seed: int) -> None:
    """One stage written out, in place: gradients of now, the problem, its solution."""
    weights = flat_weights(network)
    losses = batch_losses(network, pruner.samples, pruner.batch, seed)
    rows = gradient_rows(network.model, weight_names(network.layers()), losses)
    problem = Quadratic.of_gradients(rows.double(), weights.double(), pruner.ridge)
    sizes = [network.model.get_parameter(name).numel() for name in weight_names(network.layers())]
    found = pruner.solve(problem, int((1 - level) * len(weights)), sizes)
    set_flat_weights(network, found.to(weights.dtype))


@pytest.mark.parametrize("solver", ["iht", "bso"])
def test_one_stage_is_chita_and_more_are_chita_of_chita(solver: str) -> None:
    network = small((6, 10, 8, 3), rows=120)
    for stages in (1, 3):
        pruner = chita(solver=solver, stages=stages, **FEW)
        ours, by_hand = network.copy(), network.copy()
        pruner(ours, 0.8, seed=5)
        for number, level in enumerate(levels(0.8, 0.1, stages, "poly")):
            solved(by_hand, pruner, level, 5 + number)
        assert torch.equal(flat_weights(ours), flat_weights(by_hand))


def test_the_plan_of_gradual_pruning() -> None:
    pruner = chita(stages=3, prunes=3, schedule="exp")
    # Targets 0.9 - 0.4 (1 - t / 2)^3; the first round begins at 0.1, each other at the target before it.
    assert pruner.plan(0.9) == [
        pytest.approx([0.1, 0.1 + 0.4 * 2 / 3, 0.5]),
        pytest.approx([0.5, 0.5 + 0.35 * 2 / 3, 0.85]),
        pytest.approx([0.85, 0.85 + 0.05 * 2 / 3, 0.9]),
    ]
    assert chita(prunes=7).plan(0.9) == [
        [pytest.approx(0.9 - 0.4 * (1 - t / 6) ** 3)] for t in range(7)
    ]  # the authors' seven rounds
    assert chita(stages=2).plan(0.9) == [[pytest.approx(0.1), pytest.approx(0.9)]]
    with pytest.raises(UserError, match=r"sparsity=1\.0"):
        chita().plan(1.0)


@pytest.mark.parametrize("solver", ["iht", "bso"])
def test_every_stage_has_its_sparsity_and_gradients_of_its_own_weights(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small((6, 10, 8, 3), rows=120)
    total = len(flat_weights(network))
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []

    def spied(model: Any, names: Any, losses: Any) -> torch.Tensor:
        before.append(flat_weights(network))
        return gradient_rows(model, names, losses)

    def written(of: Network, flat: torch.Tensor) -> None:
        set_flat_weights(of, flat)
        after.append(flat_weights(of))

    monkeypatch.setattr(page, "gradient_rows", spied)
    monkeypatch.setattr(page, "set_flat_weights", written)
    pruner = chita(solver=solver, stages=2, prunes=3, epochs=2, tune_batch=40, lr=0.05, **FEW)
    pruner(network, 0.8, seed=1)
    assert pruner.plan(0.8) == [pytest.approx(of) for of in ([0.1, 0.5], [0.5, 0.7625], [0.7625, 0.8])]
    wanted = [total - int((1 - level) * total) for stages in pruner.plan(0.8) for level in stages]
    zeros = [int((weights == 0).sum()) for weights in after]
    if solver == "bso":
        assert zeros == wanted
    else:  # columns of X that are 0, of dead neurons, take their weights out too
        assert all(found >= least for found, least in zip(zeros, wanted, strict=True))
    # Within a round the gradients are of what the stage before left; between rounds the kept weights have been trained.
    for stage in range(1, 6):
        trained = stage % 2 == 0
        assert torch.equal(before[stage], after[stage - 1]) is not trained
        assert bool((after[stage][after[stage - 1] == 0] == 0).all())
        assert bool((before[stage][after[stage - 1] == 0] == 0).all())
    assert torch.equal(flat_weights(network), after[-1])  # last_epochs is 0


def test_training_holds_what_is_pruned_and_lowers_the_loss() -> None:
    network = small((6, 10, 8, 3), rows=120)
    chita(**FEW)(network, 0.6, seed=0)
    pruned = flat_weights(network) == 0
    biases = network.model.get_parameter("0.bias").clone()
    loss = float(network.losses(network.train).mean().detach())
    again = network.copy()
    Tuning(batch=40, lr=0.1)(network, 10, seed=3)
    assert torch.equal(flat_weights(network) == 0, pruned)
    assert not torch.equal(network.model.get_parameter("0.bias"), biases)
    assert float(network.losses(network.train).mean().detach()) < 0.9 * loss
    Tuning(batch=40, lr=0.1)(again, 10, seed=3)
    assert torch.equal(flat_weights(network), flat_weights(again))


def test_the_first_steps_of_training_by_hand() -> None:
    network = small((6, 4, 3), rows=20)
    chita(**FEW)(network, 0.5, seed=0)
    start = {name: parameter.detach().clone() for name, parameter in network.model.named_parameters()}
    weight = network.model.get_parameter("0.weight")
    loss = network.losses(network.train).mean()
    slope = torch.autograd.grad(loss, weight)[0] + 0.01 * start["0.weight"]
    # One epoch of one batch: the rate is the first one.
    Tuning(batch=20, lr=0.2, decay=0.01)(network, 1, seed=0)
    moved = (start["0.weight"] - 0.2 * slope) * (start["0.weight"] != 0)
    torch.testing.assert_close(weight.detach(), moved)


def test_the_rate_falls_by_epochs_and_the_last_batch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def spied(self: torch.optim.SGD, closure: Any = None) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", spied)
    Tuning(batch=16, lr=0.2, least_lr=0.04)(small((6, 4, 3), rows=20), 4, seed=0)
    assert rates == pytest.approx([rate for t in (1, 2**-0.5, 0, -(2**-0.5)) for rate in 2 * [0.04 + 0.08 * (1 + t)]])


def test_blocks_lie_within_layers() -> None:
    # The page's perceptron, 64-40-20-10; a layer below the block's size is one block, the last takes what is left over.
    assert blocks([2560, 800, 200], 500) == [512] * 5 + [800, 200]
    assert blocks([17, 2, 3], 3) == [3, 3, 3, 3, 5, 2, 3]


@cases("chita", "block")
def test_blocks_are_the_authors(case: Case) -> None:
    sizes, block = case.settings["sizes"], case.settings["block"]
    assert [0, *torch.tensor(blocks(sizes, block)).cumsum(0).tolist()] == case.outputs["bounds"]
    q = problem_of(case)
    found = chita(block=block).solve(q, case.settings["k"], sizes)
    case.check("w", found)
    case.check("objective", q.value(found))


@cases("chita", "solve")
def test_back_solve_is_the_authors(case: Case) -> None:
    q = problem_of(case)
    found = chita(ridge=case.settings["ridge"]).solve(q, case.settings["k"])
    case.check("w", found)
    case.check("objective", q.value(found))


@cases("chita", "iht")
def test_iht_is_the_authors(case: Case) -> None:
    q = problem_of(case)
    found = chita(solver="iht").solve(q, case.settings["k"])
    case.check("w", found)
    case.check("objective", q.value(found))


@cases("chita", "levels")
def test_levels_and_counts_are_the_authors(case: Case) -> None:
    found = levels(**case.settings)
    case.check("levels", torch.tensor(found))
    assert [int((1 - level) * case.inputs["weights"]) for level in found] == case.outputs["kept"]


def problem_of(case: Case) -> Quadratic:
    first = 1 / case.settings["batch"] if case.settings["first_order"] else 0.0
    return Quadratic.of_gradients(case.tensor("gradients"), case.tensor("weights"), case.settings["ridge"], first)


def test_bad_settings_are_refused() -> None:
    for settings, message in (
        ({"solver": "swap"}, "solver='swap'"),
        ({"schedule": "line"}, "schedule='line'"),
        ({"stages": 0}, "stages=0"),
        ({"prunes": 0}, "prunes=0"),
        ({"epochs": -1}, "epochs=-1"),
        ({"gradual_level": 1.0}, r"gradual_level=1\.0"),
        ({"lr": 0.0}, r"lr=0\.0"),
        ({"tune_batch": 0}, "tune_batch=0"),
        ({"first_level": 1.0}, r"first_level=1\.0"),
    ):
        with pytest.raises(UserError, match=message):
            chita(**settings)
