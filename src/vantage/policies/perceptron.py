"""A perceptron's forward and backward pass as one operation on the CPU, with numpy's tanh.

On the CPU, torch's tanh takes about as long as the matrix product beside it; numpy's is several times faster. Together with
one node in the graph instead of one an operation, this halves the time of a small network's update. It computes the same
function and the same gradient to rounding; a second derivative falls back to torch's own operations.
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
        inputs = [x]
        *hidden, weight, bias = parameters
        for w, b in zip(hidden[::2], hidden[1::2], strict=True):
            x = torch.addmm(b, x, w.t())
            if kind == "tanh":
                array = x.numpy()
                np.tanh(array, array)
            else:
                x.relu_()
            inputs.append(x)
        ctx.inputs = inputs
        return torch.addmm(bias, x, weight.t())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (grad,) = gradients
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            x, *parameters = ctx.saved_tensors
            return _differentiable(x, ctx.kind, parameters, grad, needed)
        _, *parameters = ctx.saved_tensors
        found: list[Tensor | None] = [None] * len(needed)
        for layer in range(len(parameters) // 2 - 1, -1, -1):
            given = ctx.inputs[layer]
            if needed[2 + 2 * layer]:
                found[2 + 2 * layer] = grad.t().mm(given)
            if needed[3 + 2 * layer]:
                found[3 + 2 * layer] = grad.sum(0)
            if not any(needed[: 2 + 2 * layer]):
                break
            grad = grad.mm(parameters[2 * layer])
            if layer:
                slope = torch.ops.aten.tanh_backward if ctx.kind == "tanh" else _relu_backward
                grad = slope(grad, given)
            else:
                found[0] = grad
        return tuple(found)


def _relu_backward(grad: Tensor, output: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(grad, output, 0)


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
