"""Units are found, multiplied, removed and cut out, and what is left is counted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fields.compression.tools import image_model, language, llama, small
from vantage.core.errors import UserError
from vantage.fields.compression.accounting import size_of
from vantage.fields.compression.network import flat_weights, set_flat_weights
from vantage.fields.compression.units import Registry, find_units, masked, remove, shrink


def random_mask(registry: Registry, seed: int = 0) -> Tensor:
    return torch.rand(registry.size, generator=torch.Generator().manual_seed(seed)) < 0.6


def test_hidden_neurons_of_a_perceptron() -> None:
    registry = find_units(small().model)
    assert [(place.reader, place.writers, place.count) for place in registry.places] == [
        ("2", ("0",), 8),
        ("4", ("2",), 5),
    ]
    assert registry.pools() == {"neurons": slice(0, 13)}


def test_channels_of_a_convolutional_network() -> None:
    registry = find_units(image_model())
    assert [(place.reader, place.count) for place in registry.places] == [("2", 4), ("6", 6)]


def test_heads_and_channels_of_a_decoder() -> None:
    registry = find_units(llama())
    assert registry.pools() == {"heads": slice(0, 4), "neurons": slice(4, 28)}
    head = registry.places[0]
    assert head.reader == "model.layers.0.self_attn.o_proj"
    assert [path.rpartition(".")[2] for path in head.writers] == ["q_proj", "k_proj", "v_proj"]
    assert registry.only(["heads"]).size == 4
    with pytest.raises(UserError, match="no units called 'head'; did you mean heads"):
        registry.only(["head"])


def test_a_network_without_units_says_so() -> None:
    with pytest.raises(UserError, match="no units"):
        find_units(nn.Linear(3, 2))


def _inputs(kind: str) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(3)
    if kind == "image":
        return image_model(), torch.randn(4, 1, 8, 8, generator=generator)
    if kind == "language":
        return llama(), torch.randint(11, (4, 7), generator=generator)
    return small().model, torch.randn(4, 6, generator=generator)


def _run(model: Any, x: Tensor) -> Tensor:
    out = model(x)
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize("kind", ["perceptron", "image", "language"])
def test_masked_removed_and_cut_networks_say_the_same(kind: str) -> None:
    model, x = _inputs(kind)
    registry = find_units(model)
    mask = random_mask(registry)
    with torch.no_grad():
        full = _run(model, x)
        with masked(model, registry, mask.float()):
            wanted = _run(model, x)
        assert (wanted - full).abs().max() > 1e-3
        torch.testing.assert_close(_run(model, x), full)  # the hooks are gone
        zeroed, cut = copy.deepcopy(model), copy.deepcopy(model)
        remove(zeroed, registry, mask)
        shrink(cut, registry, mask)
        torch.testing.assert_close(_run(zeroed, x), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(_run(cut, x), wanted, rtol=1e-5, atol=1e-5)
    kept, left = size_of(zeroed, lambda: _run(zeroed, x)), size_of(cut, lambda: _run(cut, x))
    # What was cut out is what was 0.
    assert left.parameters < kept.parameters
    assert left.nonzero == kept.nonzero
    assert left.operations == left.dense_operations == kept.operations


@pytest.mark.parametrize("kind", ["perceptron", "image", "language"])
def test_several_masks_in_one_run(kind: str) -> None:
    model, x = _inputs(kind)
    registry = find_units(model)
    masks = torch.stack([random_mask(registry, seed) for seed in range(3)]).float()
    with torch.no_grad():
        with masked(model, registry, masks):
            together = _run(model, torch.cat([x] * 3)).unflatten(0, (3, -1))
        for mask, found in zip(masks, together, strict=True):
            with masked(model, registry, mask):
                torch.testing.assert_close(_run(model, x), found, rtol=1e-5, atol=1e-5)


def test_a_mask_of_the_wrong_size_is_refused() -> None:
    model, _ = _inputs("perceptron")
    with pytest.raises(UserError, match="13 units"), masked(model, find_units(model), torch.ones(12)):
        pass


def test_a_place_that_keeps_nothing_still_runs() -> None:
    model, x = _inputs("perceptron")
    registry = find_units(model)
    mask = torch.ones(registry.size)
    mask[:8] = 0
    with torch.no_grad(), masked(model, registry, mask):
        wanted = _run(model, x)
    shrink(model, registry, mask)
    assert model[0].out_features == 1
    torch.testing.assert_close(_run(model, x), wanted)


def test_multiplications_are_counted_by_hand() -> None:
    model = image_model()
    found = size_of(model, lambda: model(torch.zeros(1, 1, 8, 8)))
    # Weights times positions: 8 x 8 outputs, then 4 x 4, then one.
    assert found.dense_operations == 4 * 9 * 64 + 6 * 4 * 9 * 16 + 24 * 5
    assert found.parameters == (36 + 4) + (216 + 6) + (120 + 5)
    network = small()
    assert network.size().dense_operations == 6 * 8 + 8 * 5 + 5 * 3
    flat = flat_weights(network)
    flat[:10] = 0
    set_flat_weights(network, flat)
    assert network.size().operations == 6 * 8 + 8 * 5 + 5 * 3 - 10
    assert network.size().sparsity == pytest.approx(10 / network.size().parameters)


def test_a_language_models_output_layer_is_not_pruned_and_blocks_stay_together() -> None:
    network = language()
    assert not [layer for layer in network.layers() if "lm_head" in layer]
    assert [len(stage) for stage in network.stages()] == [7, 7]
    assert [len(stage) for stage in small().stages()] == [1, 1, 1]
