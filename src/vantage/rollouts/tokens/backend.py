"""Interfaces of the token engine: a backend's cache, and the engine itself to a session."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from vantage.rollouts.tokens.strings import StopStrings


class Cache(Protocol):
    """Interface of the cache of the rows in generation. Each row's last token is pending: known, but not in the cache yet."""

    capturable: bool
    """Whether `graph.replayed` supports it."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """Feed one token to each row [n] and return the logits of the next [n, V]."""
        ...

    def extend(self, tokens: Sequence[Sequence[int]]) -> None:
        """Feed these tokens to each row; a row may get none."""
        ...

    def forget(self, counts: Tensor) -> None:
        """Remove the last tokens of each row, [n] of them (host)."""
        ...

    def retain(self, index: Tensor) -> Tensor:
        """Keep these distinct rows [k] (host) in an order that the cache chooses and returns."""
        ...

    def take(self, index: Tensor) -> Any:
        """Copy these rows (host) into a new cache; a row may occur more than once."""
        ...

    def join(self, other: Any) -> None:
        """Append another cache's rows."""
        ...


class Host(Protocol):
    """Interface of the engine that a session uses."""

    backend: Any
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    patience: int
    segment: int
    graphs: bool

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        ...

    @property
    def strings(self) -> StopStrings:
        """Detector of stop strings."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """Inference mode, with the model in evaluation mode."""
        ...

    def check(self, tokens: Sequence[int], what: str) -> None:
        """Refuse tokens outside the vocabulary."""
        ...
