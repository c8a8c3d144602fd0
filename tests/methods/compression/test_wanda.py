"""Wanda equals a direct computation of |W_ij| ||X_j||, stage by stage."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.fields.compression.tools import language, small, two_blocks
from tests.reference import Case, cases
from vantage.core.errors import UserError
from vantage.fields.compression.network import weight_sparsity
from vantage.methods import registry


def by_hand(weight: Tensor, x: Tensor, sparsity: float) -> Tensor:
    """One output at a time, in a loop."""
    pruned = weight.clone()
    norms = x.norm(dim=0)
    for row in pruned:
        score = row.abs() * norms
        for index in sorted(range(len(row)), key=lambda j: float(score[j]))[: int(sparsity * len(row) + 1e-9)]:
            row[index] = 0
    return pruned


@pytest.mark.parametrize("sequential", [True, False])
def test_equals_a_direct_computation(sequential: bool) -> None:
    network, twin = small((7, 9, 6, 3), seed=2), small((7, 9, 6, 3), seed=2)
    registry.page("wanda").make({"samples": 1000, "rows": 11, "sequential": sequential})(network, 0.4)
    x = twin.train[0]
    pruned, dense = x, x
    with torch.no_grad():
        for index in (0, 2, 4):
            layer = twin.model[index]  # type: ignore[index]
            before = torch.relu(layer(dense))
            # Dead inputs score 0 wherever they are: their order decides nothing that the network computes.
            layer.weight.copy_(by_hand(layer.weight, pruned if sequential else dense, 0.4))
            torch.testing.assert_close(network.model[index].weight, layer.weight)  # type: ignore[index]
            pruned, dense = torch.relu(layer(pruned)), before


@cases("wanda")
def test_the_zeros_are_the_authors(case: Case) -> None:
    network = two_blocks(case)
    registry.page("wanda").make(case.settings["ours"])(network, case.settings["sparsity"])
    for name in network.layers():
        case.check(name, network.model.get_parameter(f"{name}.weight"))


def test_blocks_of_a_language_model_see_pruned_inputs() -> None:
    one, other = language(), language()
    registry.page("wanda").make({"samples": 8})(one, 0.5)
    registry.page("wanda").make({"samples": 8, "sequential": False})(other, 0.5)
    assert weight_sparsity(one) == pytest.approx(0.5)
    first, second = "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"
    weights = [[n.model.get_submodule(name).weight for name in (first, second)] for n in (one, other)]  # type: ignore[union-attr]
    # In the first block nothing has been pruned yet, and its inputs are the same.
    assert torch.equal(weights[0][0], weights[1][0])  # type: ignore[arg-type]
    assert not torch.equal(weights[0][1], weights[1][1])  # type: ignore[arg-type]


def test_inputs_without_spread_make_it_magnitude_pruning() -> None:
    network, twin = small(), small()
    for each in (network, twin):
        each.train[0].copy_(torch.ones_like(each.train[0]))
    registry.page("wanda").make()(network, 0.5)
    registry.page("magnitude").make({"scope": "row"})(twin, 0.5)
    assert torch.equal(network.model[0].weight, twin.model[0].weight)  # type: ignore[index]


def test_a_pattern() -> None:
    network = small((8, 8, 8, 4))
    registry.page("wanda").make({"kept": 2, "of": 4})(network, 0.5)
    for name in network.layers():
        weight = network.model.get_submodule(name).weight
        assert bool((weight.view(len(weight), -1, 4).count_nonzero(-1) == 2).all())  # type: ignore[arg-type, operator, union-attr]


def test_a_pattern_overrides_the_sparsity() -> None:
    network = small((8, 8, 8, 4))
    registry.page("wanda").make({"kept": 2, "of": 4})(network, 0.9)
    assert weight_sparsity(network) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["wanda", "magnitude"])
def test_half_a_pattern_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="kept=2 has no effect without `of`"):
        registry.page(name).make({"kept": 2})


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="samples=0"):
        registry.page("wanda").make({"samples": 0})
