"""Trained network with its training and held-out data: the input of every compression method.

A method without a rollout loop is a `Pruner`: called with a network and a sparsity, it changes the weights in place.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.core.errors import UserError
from vantage.fields.compression.accounting import Size, size_of
from vantage.fields.compression.units import Registry, find_units, is_layer

Rows = tuple[Tensor, ...]
"""Tensors that share their first dimension: inputs and targets, or tokens."""

Predict = Callable[[nn.Module, Rows], tuple[Tensor, Tensor]]
"""(model, rows) -> logits [B, ..., V] and targets [B, ...]."""


@dataclass(frozen=True)
class Network:
    """Trained network with its data.

    Attributes:
        name: name in messages.
        model: the network; pruners change it in place.
        train: rows for training and calibration.
        held: held-out rows, for evaluation alone.
        predict: function that runs the model.
        figure: metric of `evaluate` beside the loss: "accuracy" or "perplexity".
        tokenizer: tokenizer of a language model, to save with it.
        rows: rows per forward pass.
    """

    name: str
    model: nn.Module
    train: Rows
    held: Rows
    predict: Predict
    figure: str = "accuracy"
    tokenizer: Any = field(default=None, repr=False)
    rows: int = 256

    def copy(self) -> Network:
        """Return a copy of the network; the data is shared."""
        return dataclasses.replace(self, model=copy.deepcopy(self.model))

    def units(self) -> Registry:
        """Return its prunable units."""
        return find_units(self.model)

    def layers(self) -> list[str]:
        """Return the paths of the layers whose weights are pruned: all of `is_layer` except a language model's output layer."""
        output = getattr(self.model, "get_output_embeddings", lambda: None)()
        return [name for name, module in self.model.named_modules() if is_layer(module) and module is not output]

    def stages(self) -> list[list[str]]:
        """Return the layers in the order in which they run, those of one block of a `ModuleList` together."""
        stacks = [f"{name}." for name, module in self.model.named_modules() if isinstance(module, nn.ModuleList)]
        grouped: dict[str, list[str]] = {}
        for layer in self.layers():
            stack = next((stack for stack in stacks if layer.startswith(stack)), None)
            key = layer if stack is None else stack + layer.removeprefix(stack).partition(".")[0]
            grouped.setdefault(key, []).append(layer)
        return list(grouped.values())

    def sample(self, count: int, seed: int) -> Rows:
        """Return `count` training rows, sampled without replacement, or all of them where there are fewer."""
        total = len(self.train[0])
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]
        return tuple(column[order] for column in self.train)

    def batches(self, rows: Rows, size: int) -> Iterator[Rows]:
        """Yield batches of at most `size` rows."""
        for start in range(0, len(rows[0]), size):
            yield tuple(column[start : start + size] for column in rows)

    def losses(self, rows: Rows) -> Tensor:
        """Return the cross-entropy of each row, averaged over its positions, in nats: [B] float32, with gradient."""
        logits, targets = self.predict(self.model, rows)
        loss = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none")
        return loss.view(len(targets), -1).mean(-1)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Evaluate the network on the held-out rows: `loss` in nats, and `accuracy` in [0, 1] or `perplexity`."""
        training = self.model.training
        self.model.eval()
        loss = right = count = 0.0
        for rows in self.batches(self.held, self.rows):
            logits, targets = self.predict(self.model, rows)
            flat, wanted = logits.flatten(0, -2).float(), targets.flatten()
            loss += float(F.cross_entropy(flat, wanted, reduction="sum"))
            right += float((flat.argmax(-1) == wanted).sum())
            count += len(wanted)
        self.model.train(training)
        mean = loss / count
        # The perplexity of a pruned model may exceed the range of a float.
        value = right / count if self.figure == "accuracy" else math.exp(min(mean, 700.0))
        return {"loss": mean, self.figure: value}

    def size(self) -> Size:
        """Return the network's size; operations are those of one held-out row."""
        with torch.no_grad():
            return size_of(self.model, lambda: self.predict(self.model, tuple(column[:1] for column in self.held)))


class Pruner(Protocol):
    """Interface of a compression method without a rollout loop."""

    def __call__(self, network: Network, sparsity: float, *, seed: int = 0) -> dict[str, float]:
        """Set at least the share `sparsity` of the weights of the network's layers to 0, in place; biases are unchanged.

        Args:
            network: `network.layers()` are pruned, `network.train` may be used.
            sparsity: in [0, 1).
            seed: seed of the rows that are sampled.

        Returns:
            Diagnostics by name.
        """
        ...


def weight_names(layers: Sequence[str]) -> list[str]:
    """Return the names of these layers' weights."""
    return [f"{layer}.weight" for layer in layers]


@torch.no_grad()
def flat_weights(network: Network) -> Tensor:
    """Return all prunable weights as one vector [p], layer after layer."""
    return torch.cat([network.model.get_parameter(name).flatten() for name in weight_names(network.layers())])


@torch.no_grad()
def set_flat_weights(network: Network, flat: Tensor) -> None:
    """Set all prunable weights from one vector [p].

    Raises:
        UserError: the vector's length is not the number of weights.
    """
    parameters = [network.model.get_parameter(name) for name in weight_names(network.layers())]
    sizes = [parameter.numel() for parameter in parameters]
    if flat.shape != (sum(sizes),):
        raise UserError(f"weights of shape {list(flat.shape)} do not fit {sum(sizes)} prunable ones")
    for parameter, part in zip(parameters, flat.split(sizes), strict=True):
        parameter.copy_(part.view_as(parameter))


@torch.no_grad()
def weight_sparsity(network: Network) -> float:
    """Return the share of the prunable weights that is 0."""
    weights = [network.model.get_parameter(name) for name in weight_names(network.layers())]
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)
