"""Optimal Brain Damage removes the weights of least F_ii w_i^2."""

from __future__ import annotations

import torch

from tests.fields.compression.tools import small
from tests.reference import Case, cases
from vantage.fields.compression.digits import classify
from vantage.fields.compression.network import Network, flat_weights, weight_names
from vantage.fields.compression.scores import batch_losses
from vantage.fields.compression.statistics import gradient_rows
from vantage.methods import registry


def test_equals_a_direct_computation() -> None:
    network = small()
    names = weight_names(network.layers())
    rows = gradient_rows(network.model, names, batch_losses(network, 20, 2, seed=3))
    before = flat_weights(network)
    saliency = rows.square().mean(0) * before.square()
    order = torch.sort(saliency, stable=True, descending=True).indices
    registry.page("obd").make({"samples": 20, "batch": 2})(network, 0.6, seed=3)
    kept = torch.zeros(len(before), dtype=torch.bool)
    kept[order[: len(before) - int(0.6 * len(before))]] = True
    assert torch.equal(flat_weights(network), torch.where(kept, before, 0.0))


@cases("obd")
def test_the_saliency_is_woodfishers(case: Case) -> None:
    x, y = case.tensor("x", torch.float32), torch.tensor(case.inputs["y"])
    layers = [torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)]
    network = Network("given", torch.nn.Sequential(*layers), (x, y), (x, y), classify)
    with torch.no_grad():
        for name, parameter in network.model.named_parameters():
            parameter.copy_(case.tensor(name))
    found = registry.page("obd").make({"samples": len(x)}).scores(network, seed=0)
    for layer in ("0", "2"):
        case.check(layer, found[layer] + 1e-4)


def test_the_defaults_are_500_mini_batches_of_one_row_compared_everywhere() -> None:
    made = registry.page("obd").make()
    assert (made.samples, made.batch, made.scope.within) == (500, 1, "global")
    assert registry.page("obd").make({"scope": "row"}).scope.within == "row"
