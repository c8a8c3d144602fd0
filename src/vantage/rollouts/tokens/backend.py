"""Interface of a backend's cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


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
