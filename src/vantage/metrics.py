"""Metrics of one step: sums over counts, so that no division of a batch into micro-batches changes a mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Metrics:
    """Weighted means of the values that components record in one step, stored as sums and counts.

    Recording does not synchronise with the device.
    """

    def __init__(self) -> None:
        self._records: dict[str, list[tuple[Any, Any]]] = {}
        self._derived: dict[str, tuple[Callable[..., float], tuple[str, ...]]] = {}

    def record(self, name: str, value: Tensor | float, weight: float = 1.0) -> None:
        """Add a value (a scalar; a tensor is detached, not transferred) to the step's mean under `name`."""
        self.record_total(name, value if weight == 1.0 else value * weight, weight)

    def record_total(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add a sum and the count of the summed values (scalars) to the step's mean under `name`; a count of 0 adds nothing."""
        total = total.detach() if isinstance(total, Tensor) and total.requires_grad else total
        self._records.setdefault(name, []).append((total, count))

    def add(self, name: str, value: float) -> None:
        """Add a value to the step's sum under `name`."""
        self._records[name] = [(self._records.get(name, [(0.0, 1.0)])[0][0] + value, 1.0)]

    def record_mean(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Add the values [N, T] of the decisions in the mask [N, T], each of which counts the same; no gradient.

        Rows of one decision ([N, 1]) have no padding: their mask is not read.
        """
        values = values.detach()
        if mask.shape[1] == 1:
            self.record_total(name, values.sum(), len(values))
        else:
            self.record_total(name, torch.where(mask, values, 0.0).sum(), mask.sum())

    def derive(self, name: str, function: Callable[..., float], *of: str) -> None:
        """Report under `name` a function of the step's means of other names, for values that are not means themselves."""
        self._derived[name] = (function, of)

    def under(self, prefix: str) -> Metrics:
        """Return metrics that record in these, under names that begin with `prefix/`."""
        return _Under(self, prefix)

    def recorded(self, name: str) -> int:
        """Return the number of records of `name` so far in this step."""
        return len(self._records.get(name, ()))

    def mean(self, name: str, since: int = 0) -> float:
        """Return the mean of the records of `name` after the first `since`, NaN for none; synchronises with the device."""
        return _means({name: self._records.get(name, [])[since:]}).get(name, math.nan)

    def collect(self) -> dict[str, float]:
        """Return the means and reset them; synchronises with the device."""
        collected = _means(self._records)
        for name, (function, of) in self._derived.items():
            if all(part in collected for part in of):
                collected[name] = function(*(collected[part] for part in of))
        self._records.clear()
        self._derived.clear()
        return collected


def _means(records: Mapping[str, Sequence[tuple[Any, Any]]]) -> dict[str, float]:
    """Return the sum over the count of each name, where the count is not 0, with one transfer per device and type."""
    scalars = [number for pairs in records.values() for pair in pairs for number in pair]
    tensors: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, number in enumerate(scalars):
        if isinstance(number, Tensor):
            tensors.setdefault((number.device, number.dtype), []).append(index)
    for places in tensors.values():
        read = torch.stack([scalars[index].reshape(()) for index in places]).tolist()
        for index, number in zip(places, read, strict=True):
            scalars[index] = number
    numbers = iter(scalars)
    means = {}
    for name, pairs in records.items():
        total = count = 0.0
        for _ in pairs:
            part, weight = next(numbers), next(numbers)
            total, count = (total + part, count + weight) if weight else (total, count)
        if count:
            means[name] = float(total / count)
    return means


class _Under(Metrics):
    """Metrics that record in others, under names that begin with a prefix."""

    def __init__(self, whole: Metrics, prefix: str) -> None:
        super().__init__()
        self._whole, self._prefix = whole, prefix

    def record_total(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        self._whole.record_total(f"{self._prefix}/{name}", total, count)

    def add(self, name: str, value: float) -> None:
        self._whole.add(f"{self._prefix}/{name}", value)

    def derive(self, name: str, function: Callable[..., float], *of: str) -> None:
        self._whole.derive(f"{self._prefix}/{name}", function, *(f"{self._prefix}/{part}" for part in of))
