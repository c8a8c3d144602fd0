"""Cache of the lean backend: each row's own tokens, right aligned, and prompts that groups share."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vantage.rollouts.tokens.shared import NEVER, Block, Plan, attended
from vantage.rollouts.tokens.weights import Weights


class Storage:
    """Storage of the rows in generation: keys and values [2, R, Hkv, C, d] of each layer for each row's own tokens.

    All rows write the same column next, whatever their position, so that a write is a slice. Columns `low` to `end` are in
    use, by the first `rows` rows of the storage. A row without a token in such a column masks it.
    """

    capturable = True

    def __init__(self, weights: Weights, position: Tensor, room: int) -> None:
        """Rows without tokens of their own, at these positions [n] (host)."""
        self.weights, self.room = weights, room
        self.rows = len(position)
        self.end = self.low = 0
        shape = 2, self.rows, weights.kv_heads, 0, weights.dim
        self.kv = [torch.empty(shape, dtype=weights.dtype, device=weights.device) for _ in weights.layers]
        self.bias: Tensor | None = None  # [R, C] float32: NEVER where a row has no token; None while nothing is masked
        self.position = position.to(weights.device)
        self.farthest = int(position.max()) if len(position) else 0  # no row's position is beyond it
        self.filled = torch.zeros(self.rows, dtype=torch.int64)  # [n] host: tokens of its own, less `ahead`
        self.start = torch.zeros(self.rows, dtype=torch.int64)  # [n] host: its first column
        self.ahead = 0  # tokens decoded since `filled` was brought up to date
        self.blocks: list[Block] = []
        self.member = torch.zeros(self.rows, 2, dtype=torch.int64)  # [n, 2] host: block and group in it
        self._plan: Plan | None = None
        self.version = 0  # of the storage and the rows in it
        self.graph: Any = None  # the captured decode step (`graph.DecodeGraph`), where there is one

    # ------------------------------------------------------------------------------------------------ decoding

    def decode(self, tokens: Tensor) -> Tensor:
        """Feed one token to each row [n] and return the logits of the next [n, V]."""
        weights = self.weights
        if weights.native is not None:
            return weights.native.logits(self, tokens)
        self.reserve(self.end + 1)
        column, end = self.end, self.end + 1
        self.end = end
        low, rows, plan = self.low, self.rows, self.plan()
        bias = None if self.bias is None else self.spread(self.bias[:rows, low:end])

        def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
            held = self.kv[layer][:, :rows]
            held[:, :, :, column].copy_(kv.transpose(0, 1))
            keys, values = held.flatten(1, 2)[:, :, low:end]
            return attended(layer, q, keys, values, bias, weights.scale, plan)

        hidden = weights.trunk(tokens, self.position, self.farthest + 1, attend)
        self.position = self.position + 1
        self.farthest += 1
        self.ahead += 1
        return weights.logits(hidden)

    def spread(self, bias: Tensor) -> Tensor:
        """Expand a mask of rows [n, T] to their key heads [n * Hkv, 1, T]."""
        return bias[:, None, None].expand(-1, self.weights.kv_heads, -1, -1).flatten(0, 1)

    def plan(self) -> Plan | None:
        """Plan of the attention to shared prompts; None where each row holds its own."""
        if self._plan is None and self.blocks:
            self._plan = Plan(self.blocks, self.member, self.weights.device)
        return self._plan

    # ------------------------------------------------------------------------------------------------ storage

    def reserve(self, end: int) -> None:
        """Make room for columns up to `end`: move them to the left into free space, or enlarge the storage."""
        have = self.kv[0].shape[3]
        if end <= have:
            return
        used = self.end - self.low
        if self.low >= max(16, used):
            self._shift(have)
        else:
            # Small reserve: unused columns lie between used ones, and reading skips them.
            need = end - self.low
            spare = max(16, need // 4) if self.weights.device.type == "cpu" else max(64, need // 2)
            self._shift(need + min(spare, self.room))

    def _shift(self, columns: int) -> None:
        """Move the columns in use to the front of new storage of this many columns."""
        self._store(self.rows, 0, columns)

    def _store(self, capacity: int, first: int, columns: int) -> None:
        """Allocate storage [2, capacity, Hkv, columns, d], in which the columns in use begin at `first`, between zeros."""
        self.version += 1
        low, end, rows, last = self.low, self.end, self.rows, first + self.end - self.low

        shape = 2, capacity, self.weights.kv_heads, columns, self.weights.dim
        for index, old in enumerate(self.kv):  # one by one: the old ones are freed; masked columns must be numbers
            self.kv[index] = new = old.new_empty(shape)
            new[:, :, :, :first] = new[:, :, :, last:] = 0.0
            new[:, :rows, :, first:last] = old[:, :rows, :, low:end]
        if self.bias is not None:
            bias = F.pad(self.bias[:rows, low:end], (first, 0), value=NEVER)
            self.bias = F.pad(bias, (0, columns - last, 0, capacity - rows))
        self.start, self.low, self.end = self.start - low + first, first, last

    def _settle(self) -> None:
        """Bring the counts up to date after decoding."""
        self.filled, self.ahead = self.filled + self.ahead, 0

    def _mask(self) -> None:
        """Narrow the columns in use after a change of the rows; keep the mask only while something is masked."""
        self._plan = None
        self.version += 1
        self.low = min(int(self.start.min()), self.end) if self.rows else self.end
        if not self.rows or int(self.filled.min()) == self.end - self.low:
            self.bias = None
        else:
            self.bias = self.explicit()

    def explicit(self) -> Tensor:
        """Return the mask [R, C]; while none is stored, rows have no gaps after their first column."""
        if self.bias is not None:
            return self.bias
        full, columns = self.kv[0].shape[1], self.kv[0].shape[3]
        before = torch.arange(columns) < F.pad(self.start, (0, full - len(self.start)))[:, None]
        return torch.zeros(before.shape).masked_fill_(before, NEVER).to(self.weights.device)

    def retain(self, index: Tensor) -> Tensor:
        """Keep these distinct rows [k] (host) in an order that the cache chooses and returns.

        Rows after the first k move to the positions of removed ones, so that only they are copied.
        """
        self._settle()
        keep = torch.zeros(self.rows, dtype=torch.bool)
        keep[index] = True
        count = len(index)
        holes = (~keep[:count]).nonzero().squeeze(1)
        tails = keep[count:].nonzero().squeeze(1) + count
        order = torch.arange(count)
        order[holes] = tails
        device = self.weights.device
        if len(holes):
            to, source = holes.to(device), tails.to(device)
            low, end = self.low, self.end
            for part in (half for x in self.kv for half in x[:, :, :, low:end]):  # indexing the first axis is fastest
                part.index_copy_(0, to, part.index_select(0, source))
            if self.bias is not None:
                self.bias.index_copy_(0, to, self.bias.index_select(0, source))
        self._reorder(order)
        self._prune()
        return order

    def _reorder(self, order: Tensor) -> None:
        self.rows = len(order)
        self.filled, self.start, self.member = self.filled[order], self.start[order], self.member[order]
        self.position = self.position.index_select(0, order.to(self.weights.device))
        self._mask()

    def _prune(self) -> None:
        """Free prompts that no row reads, and storage when most of it is free."""
        blocks: list[Block] = []
        member = self.member.clone()
        for number, block in enumerate(self.blocks):
            mine = self.member[:, 0] == number
            used = self.member[mine, 1].unique()
            if not len(used):
                continue
            if 4 * len(used) <= 3 * len(block.lengths):
                block = block.select(used)
                member[mine, 1] = torch.searchsorted(used, self.member[mine, 1])
            member[mine, 0] = len(blocks)
            blocks.append(block)
        self.blocks, self.member, self._plan = blocks, member, None
        if 4 * self.rows <= self.kv[0].shape[1]:
            self._shift(self.kv[0].shape[3] - self.low)

    def take(self, index: Tensor) -> Storage:
        """Copy these rows (host), a row may occur more than once; prompts stay shared."""
        self._settle()
        taken = copy.copy(self)
        taken.graph = None
        at = index.to(self.weights.device)
        low, end = self.low, self.end
        taken.kv = [x[:, :, :, low:end].index_select(1, at) for x in self.kv]
        taken.bias = None if self.bias is None else self.bias[:, low:end].index_select(0, at)
        taken.start, taken.low, taken.end = self.start - low, 0, end - low
        taken._reorder(index)
        taken._prune()
        return taken

    def join(self, other: Storage) -> None:
        """Append another cache's rows; all end at the same column."""
        self._settle()
        other._settle()
        device = self.weights.device
        width = other.end - other.low
        total, (_, capacity, _, columns, _) = self.rows + other.rows, self.kv[0].shape
        if self.end < width or capacity < total:
            # No space in the present storage: new storage, with the columns further right and rows to spare.
            used = self.end - self.low
            front, spare = max(0, width - used), max(min(self.room, 16), columns - self.end)
            self._store(max(total, min(2 * capacity, total + total // 4)), front, front + used + spare)
        first = self.end - width
        here = slice(self.rows, total)
        for x, y in zip(self.kv, other.kv):
            x[:, here, :, :first] = 0.0  # masked, but must be finite
            x[:, here, :, first : self.end] = y[:, : other.rows, :, other.low : other.end]
        if self.bias is not None or other.bias is not None or self.low != first:
            self.bias = self.explicit()
            self.bias[here] = 0.0
            self.bias[here, :first] = NEVER
            self.bias[here, first : self.end] = other.explicit()[: other.rows, other.low : other.end]
        self.start = torch.cat((self.start, other.start - other.low + first))
        self.filled = torch.cat((self.filled, other.filled))
        self.position = torch.cat((self.position, other.position.to(device)))
        self.farthest, self.room = max(self.farthest, other.farthest), max(self.room, other.room)
        self._join_blocks(other)
        self.rows = total
        self._mask()

    def _join_blocks(self, other: Storage) -> None:
        """Append the other cache's prompts; a prompt that both have is stored once."""
        if self.blocks or other.blocks:
            for cache in (self, other):
                if not cache.blocks:  # rows that hold their prompt themselves read an empty one
                    weights = self.weights
                    shape = len(weights.layers), weights.kv_heads, weights.dim
                    cache.blocks = [Block.blank(*shape, weights.dtype, weights.device)]
                    cache.member = torch.zeros(cache.rows, 2, dtype=torch.int64)
        member = other.member.clone()
        for number, block in enumerate(other.blocks):
            same = next((i for i, mine in enumerate(self.blocks) if mine is block), None)
            if same is None:
                same = len(self.blocks)
                self.blocks = [*self.blocks, block]
            member[other.member[:, 0] == number, 0] = same
        self.member = torch.cat((self.member, member))
