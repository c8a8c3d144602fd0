"""Exact sizes of a network: parameters, nonzero parameters, and multiplications."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vantage.fields.compression.units import is_layer


@dataclass(frozen=True)
class Size:
    """Size of a network.

    Attributes:
        parameters: number of parameters; tied ones count once.
        nonzero: number of parameters that are not 0.
        operations: multiplications of inputs with nonzero weights in all linear and convolutional layers in the counted run,
            without products of activations with activations (attention scores).
        dense_operations: the same with all weights.
    """

    parameters: int
    nonzero: int
    operations: int
    dense_operations: int

    @property
    def sparsity(self) -> float:
        """Share of the parameters that are 0."""
        return 1 - self.nonzero / self.parameters


@torch.no_grad()
def size_of(model: nn.Module, run: Callable[[], Any]) -> Size:
    """Return a network's size; `run` runs it once, and its operations are counted."""
    used: dict[Any, int] = {}

    def count(layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # Every weight of a layer is multiplied with one input at each position of the output.
        used[layer] = used.get(layer, 0) + output.numel() // layer.weight.shape[0]

    handles = [module.register_forward_hook(count) for module in model.modules() if is_layer(module)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    parameters = list(model.parameters())
    kept = {layer: int(layer.weight.count_nonzero()) for layer in used}
    return Size(
        parameters=sum(p.numel() for p in parameters),
        nonzero=sum(int(p.count_nonzero()) for p in parameters),
        operations=sum(kept[layer] * positions for layer, positions in used.items()),
        dense_operations=sum(layer.weight.numel() * positions for layer, positions in used.items()),
    )
