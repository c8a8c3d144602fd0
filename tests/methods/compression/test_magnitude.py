"""Magnitude pruning removes exactly the smallest weights of what it compares."""

from __future__ import annotations

import pytest
import torch

from tests.fields.compression.tools import language, small, two_blocks
from tests.reference import Case, cases
from vantage.core.errors import UserError
from vantage.fields.compression.network import flat_weights, weight_sparsity
from vantage.methods import registry


def prune(scope: str, sparsity: float, **settings: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    network = small((8, 12, 8, 4))
    before = [network.model.get_submodule(name).weight.detach().clone() for name in network.layers()]  # type: ignore[operator, union-attr]
    registry.page("magnitude").make({"scope": scope, **settings})(network, sparsity)
    return before, [network.model.get_submodule(name).weight.detach() for name in network.layers()]  # type: ignore[union-attr]


@pytest.mark.parametrize("scope", ["row", "layer", "global"])
def test_equals_a_direct_computation(scope: str) -> None:
    before, after = prune(scope, 0.5)
    if scope == "global":
        cut = torch.cat([w.abs().flatten() for w in before]).sort().values
        wanted = [torch.where(w.abs() >= cut[len(cut) // 2], w, 0.0) for w in before]
    elif scope == "layer":
        wanted = [torch.where(w.abs() > w.abs().flatten().sort().values[w.numel() // 2 - 1], w, 0.0) for w in before]
    else:
        wanted = [
            torch.where(w.abs() > w.abs().sort(-1).values[:, w.shape[1] // 2 - 1 : w.shape[1] // 2], w, 0.0)
            for w in before
        ]
    for found, right in zip(after, wanted, strict=True):
        assert torch.equal(found, right)


def test_a_pattern_and_the_count_of_zeros() -> None:
    _, after = prune("layer", 0.5, kept=2, of=4)
    for weight in after:
        assert bool((weight.view(len(weight), -1, 4).count_nonzero(-1) == 2).all())
    network = small()
    registry.page("magnitude").make({"scope": "global"})(network, 0.3)
    total = len(flat_weights(network))
    assert weight_sparsity(network) == pytest.approx(int(0.3 * total + 1e-9) / total)


@cases("magnitude")
def test_the_zeros_are_those_of_the_baseline_of_wanda(case: Case) -> None:
    network = two_blocks(case)
    registry.page("magnitude").make(case.settings["ours"])(network, case.settings["sparsity"])
    for name in network.layers():
        case.check(name, network.model.get_parameter(f"{name}.weight"))


def test_inclusive_takes_one_more_and_its_equals() -> None:
    for count, settings in ((32, {}), (33, {"inclusive": True})):
        network = small((8, 8, 8, 8))
        registry.page("magnitude").make(settings)(network, 0.5)
        assert [int((network.model.get_parameter(f"{name}.weight") == 0).sum()) for name in network.layers()] == 3 * [
            count
        ]


def test_a_language_models_embeddings_stay() -> None:
    network = language()
    before = network.model.lm_head.weight.detach().clone()  # type: ignore[union-attr, operator]
    registry.page("magnitude").make()(network, 0.5)
    assert torch.equal(network.model.lm_head.weight, before)  # type: ignore[union-attr, arg-type]
    assert weight_sparsity(network) == pytest.approx(0.5)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"Scope\.within='rows' is not known"):
        registry.page("magnitude").make({"scope": "rows"})
    with pytest.raises(UserError, match=r"sparsity=1\.5"):
        registry.page("magnitude").make()(small(), 1.5)
    with pytest.raises(UserError, match="3:2"):
        registry.page("magnitude").make({"kept": 3, "of": 2})
