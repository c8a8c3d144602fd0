"""Statistics of a network's layers on calibration rows: their inputs, accumulated by hooks, and gradients of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.core.errors import UserError


@dataclass
class InputStatistics:
    """Sums over the inputs x of a layer. For a convolution an input is a patch, flattened [C * k * k].

    Attributes:
        count: number of inputs: rows, times positions.
        squares: [inputs] sum of x_c^2, float32.
        gram: [inputs, inputs] sum of x x^T, float32, where requested: half the Hessian of ||W x - W' x||^2 in a row of W'.
    """

    count: int = 0
    squares: Tensor | None = None
    gram: Tensor | None = None

    def add(self, x: Tensor, gram: bool) -> None:
        """Add inputs [positions, inputs]."""
        x = x.float()
        if self.squares is None:
            self.squares = x.new_zeros(x.shape[1])
            self.gram = x.new_zeros(x.shape[1], x.shape[1]) if gram else None
        self.count += len(x)
        if self.gram is not None:
            self.gram.addmm_(x.T, x)
            self.squares = self.gram.diagonal()
        else:
            self.squares += x.square().sum(0)


class _Reached(Exception):
    """Raised when the last requested layer has run."""


@torch.no_grad()
def input_statistics(
    model: nn.Module, layers: Sequence[str], runs: Iterable[Callable[[], Any]], *, gram: bool = False
) -> dict[str, InputStatistics]:
    """Return the statistics of these layers' inputs over runs of the model; a run stops when all the layers have run.

    Args:
        model: set to evaluation mode meanwhile.
        layers: paths of linear or convolutional layers, each of which is called once per run.
        runs: functions that run the model on some rows.
        gram: whether x x^T is summed too, inputs * inputs numbers per layer.

    Raises:
        UserError: a layer is not called in any run.
    """
    found = {name: InputStatistics() for name in layers}
    seen: set[str] = set()

    def hook(name: str) -> Any:
        def add(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            found[name].add(_positions(layer, inputs[0].detach()), gram)
            seen.add(name)
            if len(seen) == len(found):
                raise _Reached

        return add

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    training = model.training
    model.eval()
    try:
        for run in runs:
            seen.clear()
            try:
                run()
            except _Reached:
                continue
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    unseen = [name for name, each in found.items() if each.squares is None]
    if unseen:
        raise UserError(
            f"no run calls the layer {unseen[0]}, so its inputs are not known: another module may read its weights (as"
            " nn.MultiheadAttention does); leave it out"
        )
    return found


def _positions(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        # Torch's own record of the padding on each side, the last axis first: right for "same" too.
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = F.pad(x if x.dim() == 4 else x.unsqueeze(0), layer._reversed_padding_repeated_twice, mode)
        patches = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
        return patches.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2)


def gradients(model: nn.Module, names: Sequence[str], losses: Iterable[Callable[[], Tensor]]) -> Iterable[list[Tensor]]:
    """Yield the gradient of each loss with respect to the named parameters, in evaluation mode; `.grad` does not change."""
    held = [model.get_parameter(name) for name in names]
    asked = [parameter.requires_grad for parameter in held]
    training = model.training
    model.eval()
    try:
        for parameter in held:
            parameter.requires_grad_(True)
        for loss in losses:
            yield [
                gradient if gradient is not None else torch.zeros_like(parameter)
                for parameter, gradient in zip(held, torch.autograd.grad(loss(), held, allow_unused=True), strict=True)
            ]
    finally:
        model.train(training)
        for parameter, was in zip(held, asked, strict=True):
            parameter.requires_grad_(was)


def gradient_rows(model: nn.Module, names: Sequence[str], losses: Sequence[Callable[[], Tensor]]) -> Tensor:
    """Return the gradient of each loss as a row over all named parameters, flattened and concatenated: [n, p]."""
    total = sum(model.get_parameter(name).numel() for name in names)
    first = model.get_parameter(names[0])
    filled = torch.empty(len(losses), total, dtype=first.dtype, device=first.device)
    for row, found in zip(filled, gradients(model, names, losses), strict=True):
        torch.cat([gradient.flatten() for gradient in found], out=row)
    return filled


def fisher_diagonal(
    model: nn.Module, names: Sequence[str], losses: Iterable[Callable[[], Tensor]]
) -> dict[str, Tensor]:
    """Return the mean over the losses of each parameter's squared gradient: the empirical Fisher information's diagonal."""
    sums = [torch.zeros_like(model.get_parameter(name), dtype=torch.float32) for name in names]
    count = 0
    for found in gradients(model, names, losses):
        count += 1
        for total, gradient in zip(sums, found, strict=True):
            total.addcmul_(gradient.float(), gradient.float())
    return {name: total / max(count, 1) for name, total in zip(names, sums, strict=True)}
