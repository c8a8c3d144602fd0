"""Attention to prompts that several rows share: keys are read once per group instead of once per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e30
"""Added to the score of masked keys. Finite, so that a row whose keys are all masked has finite results."""


@dataclass(eq=False)
class Block:
    """Prompts of G groups, immutable, so that caches may share them.

    Keys and values [2, G, Hkv, L, d] of each layer are right aligned; `bias` [G, L] is NEVER before them, or None where
    all prompts fill their row.
    """

    kv: list[Tensor]
    lengths: Tensor  # [G], on the host
    bias: Tensor | None

    @classmethod
    def of(cls, kv: list[Tensor], lengths: Sequence[int]) -> Block:
        """Make a block with the mask of these lengths; a block of empty prompts gets one masked column."""
        if not kv[0].shape[3]:
            kv = [F.pad(x, (0, 0, 1, 0)) for x in kv]
        width = kv[0].shape[3]
        length = torch.tensor(list(lengths), dtype=torch.int64)
        bias = None
        if int(length.min()) < width:
            empty = torch.arange(width) < width - length[:, None]
            bias = torch.zeros(empty.shape).masked_fill_(empty, NEVER).to(kv[0].device)
        return cls(kv, length, bias)

    @classmethod
    def blank(cls, layers: int, heads: int, dim: int, dtype: torch.dtype, device: torch.device) -> Block:
        """Return a block of one group whose prompt is empty."""
        return cls.of([torch.zeros(2, 1, heads, 0, dim, dtype=dtype, device=device)] * layers, [0])

    def select(self, groups: Tensor) -> Block:
        """Return a copy of these groups (host indices)."""
        at = groups.to(self.kv[0].device)
        kv = [x.index_select(1, at) for x in self.kv]
        return Block(kv, self.lengths[groups], None if self.bias is None else self.bias.index_select(0, at))


def scores(q: Tensor, keys: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return scaled scores [b, r, T] in float32 of queries [b, r, d] on keys [b, T, d], plus `bias` [b, 1, T]."""
    keys = keys.transpose(1, 2)
    if q.dtype != torch.float32 and q.device.type == "cuda":
        if bias is None:
            return torch.bmm(q, keys, out_dtype=torch.float32).mul_(scale)
        return torch.bmm(q, keys, out_dtype=torch.float32).mul_(scale).add_(bias)
    if q.dtype != torch.float32:
        found = torch.bmm(q, keys).float().mul_(scale)
        return found if bias is None else found.add_(bias)
    if bias is not None:
        return torch.baddbmm(bias, q, keys, alpha=scale)
    return torch.bmm(q, keys) if scale == 1.0 else torch.baddbmm(q.new_empty(1, 1, 1), q, keys, beta=0, alpha=scale)


def log_normaliser(found: Tensor, weights: Tensor) -> Tensor:
    """Return the log-sum-exp [...] of scores [..., T] from their softmax, whose largest entry is at least 1 / T."""
    return found.amax(-1) - weights.amax(-1).log_()


def attended(
    layer: int, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float, plan: Plan | None
) -> Tensor:
    """Return the attention outputs [n, Hq * d] of queries [n, Hq, d] over their rows' keys and values [n * Hkv, T, d] and prompts.

    `bias` [n * Hkv, 1, T] is added to the scores on the own keys. The softmax over both parts is each part's own softmax,
    weighted by the part's share of the normaliser.
    """
    rows, _, dim = q.shape
    found = scores(q.reshape(len(keys), -1, dim), keys, bias, scale)
    weights = found.softmax(-1)
    read = torch.bmm(weights.to(values.dtype), values).view(rows, -1, dim)
    if plan is not None:
        own = log_normaliser(found, weights).view(rows, -1)
        shared, norm = plan.read(layer, q, scale)
        read = torch.lerp(read, shared, (norm - own).sigmoid_().to(read.dtype).unsqueeze(-1))
    return read.view(rows, -1)


class Plan:
    """Assignment of rows to blocks: queries are gathered by group, and outputs are scattered back.

    Groups may differ in size: a group smaller than its block's largest repeats a row, whose result is not used.
    """

    def __init__(self, blocks: Sequence[Block], member: Tensor, device: torch.device) -> None:
        """Make the index tensors; `member` [n, 2] (host) is the block of each row, and the group in it."""
        self.blocks = blocks
        count = len(member)
        self.parts: list[tuple[Block, int, int, Tensor | None, Tensor | None]] = []
        place = torch.empty(count, dtype=torch.int64)
        total = 0
        whole = torch.arange(count)
        for number, block in enumerate(blocks):
            rows = (member[:, 0] == number).nonzero().squeeze(1)
            group = member[rows, 1]
            sizes = group.bincount(minlength=len(block.lengths))
            width = int(sizes.max())
            order = group.argsort(stable=True)
            within = torch.empty_like(order)
            within[order] = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[group[order]]
            slots = rows[:1].repeat(len(sizes) * width)
            slots[group * width + within] = rows
            place[rows] = total + group * width + within
            total += len(slots)
            alike = len(slots) == count and torch.equal(slots, whole)
            bias = None
            if block.bias is not None:
                bias = block.bias[:, None, None].expand(-1, block.kv[0].shape[2], -1, -1).flatten(0, 1)
            self.parts.append((block, len(sizes), width, None if alike else slots.to(device), bias))
        self.place = None if total == count and torch.equal(place, whole) else place.to(device)

    def read(self, layer: int, q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return the attention outputs of queries [n, Hq, d] over their prompts [n, Hq, d], and the log normaliser [n, Hq]."""
        reads, norms = [], []
        heads, dim = q.shape[1:]
        kv_heads = self.blocks[0].kv[0].shape[2]
        for block, groups, width, slots, bias in self.parts:
            asked = q if slots is None else q.index_select(0, slots)
            asked = asked.view(groups, width, kv_heads, -1, dim).transpose(1, 2).reshape(groups * kv_heads, -1, dim)
            keys, values = block.kv[layer].flatten(1, 2)
            found = scores(asked, keys, bias, scale)
            weights = found.softmax(-1)
            norm = log_normaliser(found, weights)
            read = torch.bmm(weights.to(q.dtype), values)
            norms.append(norm.view(groups, kv_heads, width, -1).transpose(1, 2).reshape(-1, heads))
            reads.append(read.view(groups, kv_heads, width, -1, dim).transpose(1, 2).reshape(-1, heads, dim))
        read, norm = (reads[0], norms[0]) if len(reads) == 1 else (torch.cat(reads), torch.cat(norms))
        if self.place is not None:
            read, norm = read.index_select(0, self.place), norm.index_select(0, self.place)
        return read, norm
