"""A perceptron's forward and backward pass as one operation on the CPU, in numpy.

On the CPU, torch's tanh takes longer than the matrix product before it, and its narrow products (a layer of four inputs)
are many times slower than they could be; numpy's are not. Together with one node in the graph instead of one an operation,
this about halves the time of a small network's update. It computes the same function and the same gradient, to rounding; a
second derivative falls back to torch's own operations.
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
"""Activations from which torch's threads, where there are several, are faster than one of numpy's."""


def suits(x: Tensor, parameters: Sequence[Tensor], kind: str) -> bool:
    """Whether `perceptron` can take this on: on the CPU, float32, no transform of functions in progress."""
    return (
        kind in KINDS
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
        and (torch.get_num_threads() <= 4 or x.shape[:-1].numel() * parameters[0].shape[0] < _LARGE)
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
    )


def perceptron(x: Tensor, parameters: Sequence[Tensor], kind: str) -> Tensor:
    """Map x [..., inputs] to [..., outputs] by linear layers (weight, bias, weight, bias, ...) with `kind` between them."""
    out: Tensor = _Perceptron.apply(x.reshape(-1, x.shape[-1]), kind, *parameters)
    return out.reshape(*x.shape[:-1], out.shape[-1])


def _plain(x: Tensor, kind: str, parameters: Sequence[Tensor]) -> Tensor:
    act = torch.tanh if kind == "tanh" else torch.relu
    *hidden, weight, bias = parameters
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = act(F.linear(x, w, b))
    return F.linear(x, weight, bias)


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, *parameters: Tensor) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(x, *parameters)
        arrays = [parameter.detach().numpy() for parameter in parameters]
        y = x.detach().numpy()
        inputs = [y]
        last = len(arrays) - 2
        for i in range(0, last + 1, 2):
            y = y.dot(arrays[i].T)
            np.add(y, arrays[i + 1], y)
            if i == last:
                break
            if kind == "tanh":
                np.tanh(y, y)
            else:
                np.maximum(y, 0.0, y)
            inputs.append(y)
        ctx.inputs, ctx.arrays = inputs, arrays
        return torch.from_numpy(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        needed = ctx.needs_input_grad
        # Reading the saved tensors is what notices a parameter that was changed since the forward pass.
        x, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(x, ctx.kind, parameters, gradients[0], needed)
        grad = gradients[0].numpy()
        ones = np.ones(len(grad), np.float32)
        found: list[Tensor | None] = [None] * len(needed)
        for layer in range(len(parameters) // 2 - 1, -1, -1):
            given = ctx.inputs[layer]
            if needed[2 + 2 * layer]:
                found[2 + 2 * layer] = torch.from_numpy(grad.T.dot(given))
            if needed[3 + 2 * layer]:
                found[3 + 2 * layer] = torch.from_numpy(ones.dot(grad))
            if not any(needed[: 2 + 2 * layer]):
                break
            grad = grad.dot(ctx.arrays[2 * layer])
            if layer:
                grad = _through(ctx.kind, grad, given)
            else:
                found[0] = torch.from_numpy(grad)
        return tuple(found)


def _through(kind: str, grad: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Carry a gradient through the activation, in place."""
    if kind == "relu":
        return np.multiply(grad, output > 0, grad)
    # One pass over memory, where numpy would make three.
    held = torch.from_numpy(grad)
    torch.ops.aten.tanh_backward.grad_input(held, torch.from_numpy(output), grad_input=held)
    return grad


def _differentiable(x: Tensor, kind: str, parameters: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]) -> Any:
    """The same gradients from torch's own operations, so that they can be differentiated again."""
    inputs = [x, *parameters]
    wanted = [i for i, need in enumerate((needed[0], *needed[2:])) if need]
    with torch.enable_grad():
        out = _plain(x, kind, parameters)
    found = torch.autograd.grad(out, [inputs[i] for i in wanted], grad, create_graph=True)
    placed: list[Tensor | None] = [None] * len(needed)
    for i, gradient in zip(wanted, found, strict=True):
        placed[i if i == 0 else i + 1] = gradient
    return tuple(placed)
