"""Small networks for control: multilayer perceptrons, a convolutional trunk for images, and perceptrons in numpy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vantage.core.errors import UserError, nearest
from vantage.policies.perceptron import perceptrons, suits
from vantage.policies.spaces import Observations

Array = NDArray[np.float32]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "silu": F.silu,
    "elu": F.elu,
    "gelu": F.gelu,
}

HIDDEN_GAIN = math.sqrt(2.0)


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float, generator: torch.Generator) -> None:
    """Fill the layer's weight with an orthogonal matrix times `gain` and its bias with zeros."""
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation of this name.

    Raises:
        UserError: the name is not known; the message lists those that are.
    """
    if name not in ACTIVATIONS:
        raise UserError(
            f"activation={name!r} is not known{nearest(name, ACTIVATIONS)} (known: {', '.join(ACTIVATIONS)})"
        )
    return ACTIVATIONS[name]


class MLP(nn.Module):
    """Multilayer perceptron; hidden layers have orthogonal weights of gain sqrt(2), the last layer of `gain`.

    Args:
        sizes: widths of inputs, hidden layers and outputs.
        activation: name of the function between layers; after the last one too when `activate_last`.
        gain: gain of the last layer.
        generator: generator of the initial weights.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str,
        gain: float,
        generator: torch.Generator,
        activate_last: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.activate_last = activate_last
        self.outputs = sizes[-1]
        self.linears = tuple(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.layers = nn.ModuleList(self.linears)
        for layer in self.linears:
            orthogonal(layer, gain if layer is self.linears[-1] else HIDDEN_GAIN, generator)

    def hidden(self, x: Tensor) -> Tensor:
        """Return the input of the last layer, [..., hidden]."""
        act = ACTIVATIONS[self.activation]
        for layer in self.linears[:-1]:
            x = act(F.linear(x, layer.weight, layer.bias))
        return x

    def output(self, hidden: Tensor) -> Tensor:
        """Return the last layer's output, [..., outputs]."""
        last = self.linears[-1]
        x = F.linear(hidden, last.weight, last.bias)
        return ACTIVATIONS[self.activation](x) if self.activate_last else x

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        pairs = self.pairs
        if not self.activate_last and suits(x, pairs, self.activation):
            return perceptrons(x, [pairs], self.activation)[0]
        return self.output(self.hidden(x))

    @property
    def pairs(self) -> list[Tensor]:
        """Return weight, bias, weight, bias, ... in the order of the layers."""
        return [parameter for layer in self.linears for parameter in (layer.weight, layer.bias)]


def both(x: Tensor, one: MLP, other: MLP) -> tuple[Tensor, Tensor]:
    """Return the outputs of two perceptrons with the same activation on the same input."""
    networks = [one.pairs, other.pairs]
    if not (one.activate_last or other.activate_last) and suits(x, networks[0] + networks[1], one.activation):
        first, second = perceptrons(x, networks, one.activation)
        return first, second
    return one(x), other(x)


def outputs(networks: Sequence[MLP], x: Tensor, frozen: bool = False) -> list[Tensor]:
    """Return the outputs of perceptrons with one activation on the same input [..., inputs]; `frozen`: no gradient to weights."""
    kind = networks[0].activation
    held = [[p.detach() for p in network.pairs] if frozen else network.pairs for network in networks]
    if suits(x, [p for pairs in held for p in pairs], kind):
        return perceptrons(x, held, kind)
    return [_plain(x, pairs, ACTIVATIONS[kind]) for pairs in held]


def _plain(x: Tensor, pairs: Sequence[Tensor], act: Callable[[Tensor], Tensor]) -> Tensor:
    *hidden, weight, bias = pairs
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = act(F.linear(x, w, b))
    return F.linear(x, weight, bias)


class ActionValues(nn.Module):
    """Twin action values Q1 and Q2, and a target network of each, initially a copy, which `MoveTargets` updates.

    Args:
        inputs: width W of state and action together.
        hidden: widths of the hidden layers.
        activation: name of the activation.
        generator: generator of the initial weights.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], activation: str, generator: torch.Generator) -> None:
        super().__init__()
        self.networks = nn.ModuleList(MLP([inputs, *hidden, 1], activation, 1.0, generator) for _ in range(2))
        self.followers = nn.ModuleList(copy.deepcopy(network).requires_grad_(False) for network in self.networks)

    def forward(self, x: Tensor, *, target: bool = False, frozen: bool = False) -> Tensor:
        """Return both values [2, ...] of inputs [..., W]; `target`: of the targets; `frozen`: no gradient to the weights."""
        networks: Any = self.followers if target else self.networks
        return torch.stack(outputs(list(networks), x, frozen)).squeeze(-1)

    def targets(self) -> list[tuple[Tensor, Tensor]]:
        """Return (parameter, target's parameter) of both networks."""
        return list(zip(self.networks.parameters(), self.followers.parameters(), strict=True))


class NatureCNN(nn.Module):
    """Convolutional trunk of Mnih et al., "Human-level control through deep reinforcement learning" (2015).

    Args:
        shape: shape of an image, [C, H, W] or [H, W, C]; the smaller of the outer two is taken as the channels.
        width: width of the output.
        generator: of the initial weights.

    Raises:
        UserError: the image is smaller than the three convolutions need (36 by 36).
    """

    def __init__(self, shape: Sequence[int], width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.channels_last = shape[2] < shape[0]
        channels, height, breadth = (shape[2], shape[0], shape[1]) if self.channels_last else shape
        if min(height, breadth) < 36:
            raise UserError(
                f"images of {height} by {breadth} are too small for the convolutional network (36 by 36 at least): "
                "resize them, or flatten them (gymnasium.wrappers.FlattenObservation)"
            )
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 8, 4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1),
            nn.ReLU(),
        )
        with torch.no_grad():
            flat = self.convolutions(torch.zeros(1, channels, height, breadth)).numel()
        self.linear = nn.Linear(flat, width)
        for layer in (*self.convolutions, self.linear):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                orthogonal(layer, HIDDEN_GAIN, generator)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [..., *shape] with values 0 to 255 to features [..., width]."""
        lead = image.shape[:-3]
        x = image.reshape(-1, *image.shape[-3:])
        if self.channels_last:
            x = x.permute(0, 3, 1, 2)
        x = self.convolutions(x.to(self.linear.weight.dtype) / 255.0)
        return torch.relu(self.linear(x.flatten(1))).reshape(*lead, -1)


class HostMLP:
    """MLP on the CPU that is evaluated by numpy on views of its parameters, for `rows` inputs at a time.

    At widths around 64 the overhead of torch's operators is several times their computation, and a rollout calls the actor
    once per step. The views share memory with the parameters, so that optimiser steps in place take effect at once. After
    a change of a parameter's storage (a move to another device) make a new one; `stale` tells when.
    """

    ACTIVATIONS = ("tanh", "relu")

    def __init__(self, mlp: MLP, rows: int) -> None:
        self._parameters = mlp.pairs
        self._relu = mlp.activation == "relu"
        self._layers: list[tuple[Array, Array, Array]] = []
        for layer in mlp.linears:
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            self._layers.append((weight.T, bias, np.empty((rows, len(bias)), np.float32)))
        self._addresses = [parameter.data_ptr() for parameter in self._parameters]

    @classmethod
    def suits(cls, mlp: nn.Module) -> bool:
        """Return whether the network can be evaluated in numpy, and is small enough for that to be faster."""
        if not isinstance(mlp, MLP) or mlp.activate_last or mlp.activation not in cls.ACTIVATIONS:
            return False
        return all(
            parameter.device.type == "cpu" and parameter.dtype == torch.float32 and max(parameter.shape) <= 512
            for parameter in mlp.pairs
        )

    @property
    def stale(self) -> bool:
        """Return whether some parameter's storage has changed since the views were made."""
        return any(p.data_ptr() != address for p, address in zip(self._parameters, self._addresses, strict=True))

    def __call__(self, x: Array, out: Array) -> None:
        """Map x [n, inputs] to `out` [n, outputs], for n of at most `rows`."""
        *hidden, (weight, bias, _) = self._layers
        n = len(x)
        for w, b, y in hidden:
            if n != len(y):
                y = y[:n]
            x.dot(w, y)
            np.add(y, b, y)
            if self._relu:
                np.maximum(y, 0.0, y)
            else:
                np.tanh(y, y)
            x = y
        x.dot(weight, out)
        np.add(out, bias, out)


def host_actor(space: Observations, mlp: HostMLP) -> Callable[[np.ndarray, np.ndarray], None]:
    """Return a numpy perceptron with the encoding of observations before it."""
    if space.kind == "vector" and len(space.shape) == 1:
        return mlp
    if space.kind == "vector":
        return lambda observation, out: mlp(observation.reshape(len(observation), -1), out)
    sizes = np.array(space.sizes)
    offsets = np.cumsum(sizes) - sizes - np.array(space.start)

    def one_hot(observation: np.ndarray, out: np.ndarray) -> None:
        x = np.zeros((len(observation), space.width), np.float32)
        np.put_along_axis(x, observation.reshape(len(x), -1) + offsets, 1.0, 1)
        mlp(x, out)

    return one_hot
