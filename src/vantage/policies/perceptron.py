"""Forward and backward pass of perceptrons as one operation on the CPU, in numpy.

On the CPU, torch's tanh takes longer than the matrix product before it, and its narrow products (a layer of four inputs)
are many times slower than numpy's. Together with one node in the graph instead of one per operation, this about halves
the time of a small network's update. It computes the same function and the same gradient, to rounding; a second
derivative falls back to torch's own operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("tanh", "relu")
_LARGE = 1 << 20
"""Number of activations from which several torch threads are faster than one numpy thread."""


def suits(x: Tensor, parameters: Sequence[Tensor], kind: str) -> bool:
    """Return whether `perceptrons` applies: on the CPU, float32, without a function transform in progress."""
    return (
        kind in KINDS
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
        and (torch.get_num_threads() <= 4 or x.shape[:-1].numel() * parameters[0].shape[0] < _LARGE)
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
    )


def perceptrons(x: Tensor, networks: Sequence[Sequence[Tensor]], kind: str) -> list[Tensor]:
    """Map x [..., inputs] by each network to [..., outputs], as one node in the graph for all of them; with gradient.

    A network is its weight, bias, weight, bias, ... in the order of its linear layers, with activation `kind` between them.
    """
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    depths = tuple(len(parameters) // 2 for parameters in networks)
    outputs = _Perceptrons.apply(flat, kind, depths, *(p for parameters in networks for p in parameters))
    return list(outputs) if x.dim() == 2 else [out.reshape(*x.shape[:-1], out.shape[-1]) for out in outputs]


def _plain(x: Tensor, kind: str, parameters: Sequence[Tensor]) -> Tensor:
    act = torch.tanh if kind == "tanh" else torch.relu
    *hidden, weight, bias = parameters
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = act(F.linear(x, w, b))
    return F.linear(x, weight, bias)


class _Perceptrons(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, depths: tuple[int, ...], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.kind, ctx.depths = kind, depths
        ctx.save_for_backward(x, *parameters)
        ctx.set_materialize_grads(False)
        ctx.arrays = arrays = [parameter.detach().numpy() for parameter in parameters]
        ctx.inputs = inputs = []
        outputs = []
        place = 0
        for depth in depths:
            y = x.detach().numpy()
            for layer in range(depth):
                inputs.append(y)
                y = y.dot(arrays[place].T)
                np.add(y, arrays[place + 1], y)
                place += 2
                if layer < depth - 1:
                    # In place: the input of the activation is not needed again.
                    np.tanh(y, y) if kind == "tanh" else np.maximum(y, 0.0, y)
            outputs.append(torch.from_numpy(y))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        needed = ctx.needs_input_grad
        # Reading the saved tensors detects parameters that were changed since the forward pass.
        x, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(x, ctx.kind, ctx.depths, parameters, gradients, needed)
        found: list[Tensor | None] = [None] * len(needed)
        ones = np.ones(len(x), np.float32)
        end = len(parameters)
        for depth, gradient in zip(reversed(ctx.depths), reversed(gradients), strict=True):
            start = end - 2 * depth
            grad = None if gradient is None else gradient.numpy()
            for place in range(end - 2, start - 1, -2):
                if grad is None:
                    break
                given = ctx.inputs[place // 2]
                if needed[3 + place]:
                    found[3 + place] = torch.from_numpy(grad.T.dot(given))
                if needed[4 + place]:
                    found[4 + place] = torch.from_numpy(ones.dot(grad))
                if not needed[0] and not any(needed[3 + start : 3 + place]):
                    break
                grad = grad.dot(ctx.arrays[place])
                if place > start:
                    grad = _through(ctx.kind, grad, given)
                else:
                    into = torch.from_numpy(grad)
                    found[0] = into if found[0] is None else found[0] + into
            end = start
        return tuple(found)


def _through(kind: str, grad: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Backpropagate a gradient through the activation, in place."""
    if kind == "relu":
        return np.multiply(grad, output > 0, grad)
    # One pass over memory instead of numpy's three.
    held = torch.from_numpy(grad)
    torch.ops.aten.tanh_backward.grad_input(held, torch.from_numpy(output), grad_input=held)
    return grad


def _differentiable(
    x: Tensor,
    kind: str,
    depths: Sequence[int],
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> Any:
    """Return the same gradients by torch's own operations, so that they can be differentiated again."""
    inputs = {i: tensor for i, tensor in zip((0, *range(3, len(needed))), (x, *parameters), strict=True) if needed[i]}
    with torch.enable_grad():
        outputs, start = [], 0
        for depth in depths:
            outputs.append(_plain(x, kind, parameters[start : start + 2 * depth]))
            start += 2 * depth
    used = [(out, grad) for out, grad in zip(outputs, gradients, strict=True) if grad is not None]
    results = torch.autograd.grad(
        [out for out, _ in used],
        list(inputs.values()),
        [grad for _, grad in used],
        create_graph=True,
        allow_unused=True,
    )
    placed: list[Tensor | None] = [None] * len(needed)
    for i, result in zip(inputs, results, strict=True):
        placed[i] = result
    return tuple(placed)
