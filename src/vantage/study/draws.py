"""Random numbers that are equal on all processors, and repeatable choices among alternatives.

`torch` draws exponential and Bernoulli numbers by another algorithm where it is built with MKL than where it is not, and a choice
between nearly equal alternatives depends on the last bit of a sum. Inside `Draws` all numbers come from `torch.rand`, which is the
same everywhere, and choices (a sampled token, an action, a largest entry) are kept, or taken from those kept before.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CHOICES = frozenset({torch.argmax, Tensor.argmax, torch.searchsorted, torch.multinomial, Tensor.multinomial})
"""Functions that choose: their result is a number of an alternative."""


class Draws(TorchFunctionMode):
    """Context in which random numbers and choices are as the module's docstring says.

    Args:
        kept: choices of an earlier run, to be made again in the same order; None makes them anew.
    """

    def __init__(self, kept: str | None = None) -> None:
        super().__init__()
        self._kept = None if kept is None else _unpack(kept)
        self._made: list[np.ndarray[Any, Any]] = []
        self.count = 0
        """Number of choices so far."""
        self.otherwise = 0
        """Number of these that the code would have made differently than the kept ones."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out a function of torch."""
        result = _REPLACED.get(func, func)(*args, **(kwargs or {}))
        if func in CHOICES and isinstance(result, Tensor) and not _exact(func, args):
            result.copy_(torch.from_numpy(self.choose(result.numpy())))
        return result

    def choose(self, found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the choices [...] to make, int, where the code found these."""
        flat = found.reshape(-1).astype(np.int64)
        if self._kept is not None and self.count + flat.size <= self._kept.size:
            told = self._kept[self.count : self.count + flat.size]
            self.otherwise += int((told != flat).sum())
            flat = told
        self.count += flat.size
        self._made.append(flat)
        return flat.reshape(found.shape).astype(found.dtype)

    def chooser(self, choose: Callable[..., None]) -> Callable[..., None]:
        """Return a policy's chooser, (outputs, noise, action) -> None, whose choices are kept or repeated."""

        def chosen(outputs: Any, noise: Any, action: np.ndarray[Any, Any]) -> None:
            choose(outputs, noise, action)
            if np.issubdtype(action.dtype, np.integer):
                action[...] = self.choose(action)

        return chosen

    @property
    def made(self) -> str:
        """Return the choices as text."""
        return _pack(np.concatenate(self._made)) if self._made else ""


def _exact(func: Any, args: Sequence[Any]) -> bool:
    """Return whether a choice is a largest entry in double precision, which does not depend on the processor."""
    return func in (torch.argmax, Tensor.argmax) and args[0].dtype is torch.float64


def _pack(choices: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(zlib.compress(choices.astype("<i4").tobytes(), 9)).decode()


def _unpack(text: str) -> np.ndarray[Any, Any]:
    data = zlib.decompress(base64.b64decode(text)) if text else b""
    return np.frombuffer(data, "<i4").astype(np.int64)


@contextmanager
def token_engine_in_torch() -> Any:
    """Decode tokens by torch's operations, since `Draws` cannot control the choices of the compiled decoder."""
    from vantage.rollouts.tokens import native

    compiled = native.library
    native.library = lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        native.library = compiled


# numbers --------------------------------------------------------------------------------------------------------------


def _uniform(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64)


def _exponential_(into: Tensor, lambd: float = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
    return into.copy_(-torch.log1p(-_uniform(into.shape, generator)) / lambd)


def _bernoulli(chance: Tensor, p: float | None = None, *, generator: torch.Generator | None = None) -> Tensor:
    chances = chance if p is None else torch.full_like(chance, p)
    return (_uniform(chance.shape, generator) < chances).to(chance.dtype)


def _bernoulli_(into: Tensor, p: Any = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    return into.copy_(_uniform(into.shape, generator) < p)


def _multinomial(
    weights: Tensor, num_samples: int, replacement: bool = False, *, generator: torch.Generator | None = None
) -> Tensor:
    if replacement or num_samples == 1:
        mass = weights.double().cumsum(-1)
        goal = _uniform((*weights.shape[:-1], num_samples), generator) * mass[..., -1:]
        return torch.searchsorted(mass, goal, right=True).clamp_(max=weights.shape[-1] - 1)
    # The order of exponential numbers with these rates gives samples without replacement.
    race = -torch.log1p(-_uniform(weights.shape, generator)) / weights.double()
    return race.topk(num_samples, largest=False).indices


_REPLACED: dict[Any, Callable[..., Any]] = {
    Tensor.exponential_: _exponential_,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    Tensor.bernoulli_: _bernoulli_,
    torch.multinomial: _multinomial,
    Tensor.multinomial: _multinomial,
}
