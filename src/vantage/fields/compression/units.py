"""Registry of a network's prunable units: hidden neurons, channels, attention heads.

A unit is a set of input columns of one layer, the reader, which rows of other layers, its writers, produce. Multiplying those
columns by 0 removes the unit: no other layer reads it. A pool is all units of one kind; a budget applies to a pool over all
layers.

`find_units` finds hidden neurons and channels between linear or convolutional layers of a `torch.nn.Sequential` with
elementwise functions, pooling or flattening between them; and in a decoder the feed-forward channels and the attention heads,
one unit for each key-value head with the query heads that share it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vantage.core.errors import UserError, nearest

_BETWEEN = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.ReLU6, nn.Identity, nn.Dropout, nn.Dropout2d,
    nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
# Reader and writers, by the names of the modules inside an attention or feed-forward block.
_HEADS = (("o_proj", ("q_proj", "k_proj", "v_proj")), ("out_proj", ("q_proj", "k_proj", "v_proj")))
_NEURONS = (("down_proj", ("gate_proj", "up_proj")), ("down_proj", ("up_proj",)), ("fc2", ("fc1",)))


@dataclass(frozen=True)
class Units:
    """Units of one kind in one layer.

    Attributes:
        reader: path of the layer that reads them; its input has the same number of adjacent columns for each.
        writers: paths of the layers whose output rows produce them, the same number of adjacent rows for each.
        count: number of units.
        pool: "neurons" or "heads".
    """

    reader: str
    writers: tuple[str, ...]
    count: int
    pool: str = "neurons"


@dataclass(frozen=True)
class Registry:
    """All units of a network, ordered by pool: unit i of the network is entry i of a mask [size]."""

    places: tuple[Units, ...]

    @property
    def size(self) -> int:
        """Number of units."""
        return sum(place.count for place in self.places)

    def slices(self) -> Iterator[tuple[Units, slice]]:
        """Yield the units of each layer with their slice of a mask."""
        start = 0
        for place in self.places:
            yield place, slice(start, start + place.count)
            start += place.count

    def pools(self) -> dict[str, slice]:
        """Return each pool's slice of a mask."""
        found: dict[str, slice] = {}
        for place, part in self.slices():
            found[place.pool] = slice(found[place.pool].start if place.pool in found else part.start, part.stop)
        return found

    def only(self, pools: Collection[str]) -> Registry:
        """Return the registry of these pools alone.

        Raises:
            UserError: a pool has no units.
        """
        known = self.pools()
        for name in pools:
            if name not in known:
                raise UserError(f"there are no units called {name!r}{nearest(name, known)} (pools: {', '.join(known)})")
        return Registry(tuple(place for place in self.places if place.pool in pools))


def find_units(model: nn.Module) -> Registry:
    """Return the units of a network.

    Raises:
        UserError: the network has no units of a supported kind.
    """
    found: list[Units] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            found += _chain(path, module)
        found += _block(path, module, _HEADS, "heads") + _block(path, module, _NEURONS, "neurons")
    if not found:
        raise UserError("the network has no units that can be pruned: see vantage.fields.compression.units")
    return Registry(tuple(sorted(found, key=lambda place: place.pool)))


def _chain(path: str, chain: nn.Sequential) -> list[Units]:
    found: list[Units] = []
    writer: tuple[str, nn.Module] | None = None
    for name, module in chain.named_children():
        here = f"{path}.{name}" if path else name
        if is_layer(module):
            if writer is not None and columns(module) % rows(writer[1]) == 0:
                found.append(Units(here, (writer[0],), rows(writer[1])))
            writer = (here, module)
        elif not isinstance(module, _BETWEEN):
            writer = None
    return found


def _block(path: str, block: nn.Module, table: tuple[Any, ...], pool: str) -> list[Units]:
    inside = {name: child for name, child in block.named_children() if is_layer(child)}
    for reader, writers in table:
        if reader not in inside or not all(name in inside for name in writers):
            continue
        count = columns(inside[reader])
        if pool == "heads":
            head = getattr(block, "head_dim", 0)
            if not head:
                continue
            count = rows(inside["k_proj"]) // head
        prefix = f"{path}." if path else ""
        return [Units(prefix + reader, tuple(prefix + name for name in writers), count, pool)]
    return []


def is_layer(module: nn.Module) -> bool:
    """Return whether a module has a weight [outputs, inputs, ...] that this package prunes."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def rows(layer: Any) -> int:
    """Return the number of a layer's outputs."""
    return int(layer.weight.shape[0])


def columns(layer: Any) -> int:
    """Return the number of a layer's inputs."""
    return int(layer.weight.shape[1])


def spread(part: Tensor, total: int) -> Tensor:
    """Repeat each unit's value [..., n] over its adjacent columns or rows: [..., total]."""
    return part.repeat_interleave(total // part.shape[-1], -1)


@contextmanager
def masked(model: nn.Module, registry: Registry, mask: Tensor) -> Iterator[None]:
    """Multiply the model's units by `mask` within the context, [size], or [K, size] for K masks at once.

    With K masks the rows of an input are K equal blocks, one for each mask in order. Gradient flows to the mask.
    """
    if mask.shape[-1] != registry.size or mask.dim() > 2:
        raise UserError(f"a mask of shape {list(mask.shape)} does not fit {registry.size} units")
    handles = []
    for place, part in registry.slices():
        layer = model.get_submodule(place.reader)
        factor = spread(mask[..., part], columns(layer))
        handles.append(layer.register_forward_pre_hook(_Multiply(factor, isinstance(layer, nn.Conv2d))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Multiply:
    def __init__(self, factor: Tensor, image: bool) -> None:
        self.factor, self.image = factor, image

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        factor = self.factor.to(x.dtype)
        if factor.dim() == 2:
            blocks = x.unflatten(0, (len(factor), -1))
            shape = [len(factor), *(1 for _ in blocks.shape[1:-1]), factor.shape[1]]
            x = (blocks * factor.view(shape if not self.image else [len(factor), 1, -1, 1, 1])).flatten(0, 1)
        else:
            x = x * (factor.view(-1, 1, 1) if self.image else factor)
        return (x, *inputs[1:])


@torch.no_grad()
def remove(model: nn.Module, registry: Registry, mask: Tensor) -> None:
    """Set the weights of the units that `mask` [size] does not keep to 0, in readers and writers, in place."""
    for place, part in registry.slices():
        kept = mask[part].bool()
        reader: Any = model.get_submodule(place.reader)
        gone = ~spread(kept, columns(reader))
        reader.weight[:, gone] = 0
        for path in place.writers:
            writer: Any = model.get_submodule(path)
            gone = ~spread(kept, rows(writer))
            writer.weight[gone] = 0
            if writer.bias is not None:
                writer.bias[gone] = 0


@torch.no_grad()
def shrink(model: nn.Module, registry: Registry, mask: Tensor) -> None:
    """Remove the units that `mask` [size] does not keep from the weights, in place: the same outputs from smaller matrices.

    A layer without kept units retains one of zeros. Heads can be removed where the attention module infers their number from
    the weights, as in the Llama family of transformers; the configuration of such a model does not describe layers that
    differ, so it is saved by `remove` instead.
    """
    remove(model, registry, mask)
    for place, part in registry.slices():
        kept = mask[part].bool().clone()
        if not kept.any():
            kept[0] = True
        reader = model.get_submodule(place.reader)
        _cut(reader, 1, spread(kept, columns(reader)))
        for path in place.writers:
            writer = model.get_submodule(path)
            _cut(writer, 0, spread(kept, rows(writer)))


def _cut(layer: Any, axis: int, kept: Tensor) -> None:
    index = kept.nonzero().squeeze(-1).to(layer.weight.device)
    layer.weight = nn.Parameter(layer.weight.index_select(axis, index), layer.weight.requires_grad)
    if axis == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.index_select(0, index), layer.bias.requires_grad)
    names = ("out_features", "in_features") if isinstance(layer, nn.Linear) else ("out_channels", "in_channels")
    setattr(layer, names[axis], len(index))
