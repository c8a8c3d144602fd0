"""Backend on transformers' own cache, for any causal language model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vantage.core.errors import require


class GenericBackend:
    """Backend that runs the module's own forward on a `DynamicCache`. Rows are right aligned; `mask` marks real tokens."""

    name = "transformers"

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self.model = model
        self.pad = pad_token_id
        self.device = next(model.parameters()).device
        accepted = inspect.signature(model.forward).parameters
        self.options = {name for name in ("position_ids", "logits_to_keep") if name in accepted}

    def weights(self) -> None:
        """Return None: this backend keeps no copy of the weights."""

    def forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
        """Return the logits of the last column [n, V] for ids [n, m], which are appended to the cache."""
        extra: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        extra = {name: extra[name] for name in self.options}
        found = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        logits = found.logits[:, -1].float()
        return logits.clamp(min=torch.finfo(torch.float32).min)  # impossible tokens: finite, as `draw` requires

    def open(self, weights: None, prefixes: Sequence[Sequence[int]], counts: Sequence[int], room: int) -> GenericCache:
        """Cache all but the last token of each prefix, once, for `counts` rows each."""
        cache = GenericCache(self, [list(prefix[:-1]) for prefix in prefixes])
        repeats = torch.tensor(list(counts), dtype=torch.int64)
        cache._select(torch.arange(len(prefixes)).repeat_interleave(repeats))
        return cache


class GenericCache:
    """Cache of the rows in generation of a `GenericBackend`."""

    capturable = False

    def __init__(self, backend: GenericBackend, histories: Sequence[Sequence[int]]) -> None:
        self.backend = backend
        self._fill(histories)

    def _fill(self, histories: Sequence[Sequence[int]]) -> None:
        """Recompute the cache of these token rows."""
        device, pad = self.backend.device, self.backend.pad
        self.ids, self.mask = _right_aligned(histories, pad, device)
        self.position = self.mask.sum(-1)
        self.kv = require("transformers", "language").DynamicCache(config=self.backend.model.config)
        if self.ids.shape[1]:
            self.ragged = not bool(self.mask.all())
            positions = (self.mask.cumsum(-1) - 1).clamp_(min=0)
            self.backend.forward(self.ids, self.mask if self.ragged else None, positions, self.kv)
        else:
            self.ragged = False
        # Sliding and recurrent layers allow neither gaps nor concatenation; rows are recomputed.
        self.plain = all(type(layer).__name__ == "DynamicLayer" for layer in self.kv.layers)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.ids.shape[0]

    def decode(self, tokens: Tensor) -> Tensor:
        """Feed one token to each row [n] and return the logits of the next [n, V]."""
        self.ids = torch.cat((self.ids, tokens[:, None]), 1)
        self.mask = F.pad(self.mask, (0, 1), value=1)
        mask = self.mask if self.ragged else None
        logits = self.backend.forward(tokens[:, None], mask, self.position[:, None], self.kv)
        self.position = self.position + 1
        return logits

    def extend(self, tokens: Sequence[Sequence[int]]) -> None:
        """Feed these tokens to each row; a row may get none."""
        if not any(map(len, tokens)):
            return
        if not self.plain:
            self._fill([old + list(new) for old, new in zip(self._histories(), tokens)])
            return
        ids, real = _right_aligned(tokens, self.backend.pad, self.backend.device)
        positions = self.position[:, None] + (real.cumsum(-1) - 1).clamp_(min=0)
        self.ids, self.mask = torch.cat((self.ids, ids), 1), torch.cat((self.mask, real), 1)
        self.ragged = self.ragged or not bool(real.all())
        self.backend.forward(ids, self.mask if self.ragged else None, positions, self.kv)
        self.position = self.position + real.sum(-1)

    def forget(self, counts: Tensor) -> None:
        """Remove the last tokens of each row, [n] of them (host)."""
        kept = self.position - counts.to(self.backend.device)
        self.mask = self.mask * (self.mask.cumsum(-1) <= kept[:, None])
        if not self.plain:
            self._fill(self._histories())
            return
        self.position = kept
        self.ragged = True

    def retain(self, index: Tensor) -> Tensor:
        """Keep these distinct rows [k] (host) in an order that the cache chooses and returns."""
        self._select(index)
        return index

    def _select(self, index: Tensor) -> None:
        index = index.to(self.backend.device)
        if self.kv.get_seq_length():
            self.kv.reorder_cache(index)
        self.ids, self.mask, self.position = self.ids[index], self.mask[index], self.position[index]

    def take(self, index: Tensor) -> GenericCache:
        """Copy these rows (host) into a new cache; a row may occur more than once."""
        taken = copy.copy(self)
        taken.kv = copy.copy(self.kv)
        taken.kv.layers = [copy.copy(x) if self.plain else copy.deepcopy(x) for x in self.kv.layers]
        taken._select(index)
        return taken

    def join(self, other: GenericCache) -> None:
        """Append another cache's rows."""
        if not (self.plain and other.plain):
            self._fill(self._histories() + other._histories())
            return
        width = max(self.ids.shape[1], other.ids.shape[1])
        mine, theirs = self.kv.layers, other.kv.layers
        if not mine or not theirs or self.ids.shape[1] == 0 or other.ids.shape[1] == 0:
            self._fill(self._histories() + other._histories())
            return
        for a, b in zip(mine, theirs):
            a.keys = torch.cat((_padded(a.keys, width, 2), _padded(b.keys, width, 2)))
            a.values = torch.cat((_padded(a.values, width, 2), _padded(b.values, width, 2)))
        self.ragged = self.ragged or other.ragged or self.ids.shape[1] != other.ids.shape[1]
        self.ids = torch.cat((_padded(self.ids, width, 1), _padded(other.ids, width, 1)))
        self.mask = torch.cat((_padded(self.mask, width, 1), _padded(other.mask, width, 1)))
        self.position = torch.cat((self.position, other.position))

    def _histories(self) -> list[list[int]]:
        real = self.mask.bool()
        return [row[keep].tolist() for row, keep in zip(self.ids, real)]


def _right_aligned(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token rows padded on the left [n, m] and the mask of real tokens [n, m], both int64."""
    width = max((len(row) for row in rows), default=0)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], dtype=torch.int64, device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    return ids.view(len(rows), width), mask


def _padded(x: Tensor, width: int, dim: int) -> Tensor:
    """Return x with zeros before it along `dim`, so that it is `width` wide."""
    lack = width - x.shape[dim]
    return F.pad(x, (0,) * (2 * (x.dim() - 1 - dim)) + (lack, 0)) if lack else x
