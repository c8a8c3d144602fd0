"""Streamed statistics equal those of the whole, and gradients those of autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.fields.compression.tools import image_model, language, small
from vantage.core.errors import UserError
from vantage.fields.compression.network import weight_names
from vantage.fields.compression.scores import batch_losses
from vantage.fields.compression.statistics import fisher_diagonal, gradient_rows, input_statistics


def test_gram_of_a_stream_equals_that_of_all_inputs() -> None:
    network = small()
    x = network.train[0]
    runs = [lambda rows=rows: network.predict(network.model, rows) for rows in network.batches(network.train, 7)]
    found = input_statistics(network.model, network.layers(), runs, gram=True)
    hidden = network.model[:2](x)  # type: ignore[index]
    torch.testing.assert_close(found["0"].gram, x.T @ x)
    torch.testing.assert_close(found["2"].gram, hidden.T @ hidden)
    torch.testing.assert_close(found["2"].squares, hidden.square().sum(0))
    assert found["0"].count == len(x)


def test_runs_end_at_the_last_layer_that_was_asked_for() -> None:
    network = small()
    reached: list[int] = []
    network.model[4].register_forward_hook(lambda *_: reached.append(1))  # type: ignore[index]
    input_statistics(network.model, ["0", "2"], [lambda: network.predict(network.model, network.train)])
    assert not reached


def test_patches_of_a_convolution() -> None:
    model = image_model()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = input_statistics(model, ["0", "2"], [lambda: model(x)], gram=True)
    patches = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found["0"].gram, patches.T @ patches)
    assert found["2"].gram is not None
    assert found["2"].gram.shape == (36, 36)
    assert found["2"].count == 3 * 16


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("padding", "dilation"), [(1, 1), ((2, 0), 1), ("same", 2)])
def test_patches_are_what_the_convolution_reads(mode: str, padding: Any, dilation: int) -> None:
    # With one weight of 1 an output, a convolution gives its patches out.
    layer = nn.Conv2d(2, 18, 3, padding=padding, dilation=dilation, padding_mode=mode, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(18).view(18, 2, 3, 3))
    x = torch.randn(3, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(layer)
    patches = model(x).transpose(0, 1).flatten(1).detach()
    found = input_statistics(model, ["0"], [lambda: model(x)], gram=True)["0"]
    assert found.count == patches.shape[1]
    torch.testing.assert_close(found.gram, patches @ patches.T)
    alone = input_statistics(model, ["0"], [lambda: model(x[0])], gram=True)["0"]
    one = model(x[0]).flatten(1).detach()
    torch.testing.assert_close(alone.gram, one @ one.T)


def test_a_layer_that_no_run_calls_is_named() -> None:
    model = nn.MultiheadAttention(4, 2)
    x = torch.zeros(3, 1, 4)
    with pytest.raises(UserError, match=r"no run calls the layer out_proj.*leave it out"):
        input_statistics(model, ["out_proj"], [lambda: model(x, x, x)])


def test_tokens_of_a_language_model_count_as_inputs() -> None:
    network = language()
    name = "model.layers.1.mlp.down_proj"
    found = input_statistics(network.model, [name], [lambda: network.predict(network.model, network.train)])
    assert found[name].count == 8 * 8
    assert found[name].squares is not None
    assert found[name].squares.shape == (12,)


def test_gradient_rows_and_fisher() -> None:
    network = small()
    network.model.requires_grad_(False)
    names = weight_names(network.layers())
    rows = gradient_rows(network.model, names, batch_losses(network, 5, 8, seed=0))
    assert rows.shape == (5, 6 * 8 + 8 * 5 + 5 * 3)
    assert all(not p.requires_grad and p.grad is None for p in network.model.parameters())
    # Five batches of eight are all forty rows, each once: the mean gradient is that of the whole.
    network.model.requires_grad_(True)
    network.losses(network.train).mean().backward()
    whole = torch.cat([network.model.get_parameter(name).grad.flatten() for name in names])  # type: ignore[union-attr]
    torch.testing.assert_close(rows.mean(0), whole, rtol=1e-4, atol=1e-7)
    fisher = fisher_diagonal(network.model, names, batch_losses(network, 5, 8, seed=0))
    torch.testing.assert_close(torch.cat([fisher[name].flatten() for name in names]), rows.square().mean(0))
