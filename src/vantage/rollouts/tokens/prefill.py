"""Prompts computed together without padding: products over packed tokens, attention over buckets of like length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from vantage.rollouts.tokens.lean import Weights


def buckets(lengths: Sequence[int], slack: float = 0.15, least: int = 64) -> list[tuple[int, int]]:
    """Split lengths in descending order into runs [first, end) in which padding stays small.

    A run ends where padding it to its longest would add more than `slack` of its tokens and more than `least` tokens.
    """
    runs: list[tuple[int, int]] = []
    first = padding = held = 0
    for index, length in enumerate(lengths):
        lack = lengths[first] - length
        if index > first and padding + lack > max(least, slack * (held + length)):
            runs.append((first, index))
            first, padding, held, lack = index, 0, 0, 0
        padding, held = padding + lack, held + length
    if lengths:
        runs.append((first, len(lengths)))
    return runs


def prefill(weights: Weights, prompts: Sequence[Sequence[int]], limit: int) -> list[tuple[list[int], list[Tensor]]]:
    """Keys and values of prompts, bucket by bucket: the prompts' indices and what each layer keeps.

    Keys and values [2, G, Hkv, L, d] stand at the right, zeros before them. About `limit`
    tokens go through the model at once, or one prompt that is longer. Empty prompts are a bucket with L = 0.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    pieces: list[list[int]] = []
    for first, end in buckets([len(prompts[index]) for index in order]):
        step = max(1, limit // max(1, len(prompts[order[first]])))
        pieces += [order[start : min(end, start + step)] for start in range(first, end, step)]
    found: list[tuple[list[int], list[Tensor]]] = []
    pending: list[list[int]] = []
    tokens = 0
    for members in pieces:
        size = sum(len(prompts[index]) for index in members)
        if pending and tokens + size > limit:
            found += _packed(weights, prompts, pending)
            pending, tokens = [], 0
        pending.append(members)
        tokens += size
    return found + (_packed(weights, prompts, pending) if pending else [])


class _Bucket:
    """Prompts of like length among the packed tokens, from `first` on."""

    def __init__(self, weights: Weights, members: list[int], lengths: list[int], first: int) -> None:
        self.members, self.heads = members, weights.kv_heads
        self.rows, self.width = len(members), max(lengths)
        self.first, self.end = first, first + sum(lengths)
        self.kv: list[Tensor] = []
        self.left: Tensor | None = None
        if min(lengths) < self.width:
            real = torch.arange(self.width) < torch.tensor(lengths)[:, None]
            self.left = real.flatten().nonzero().squeeze(1).to(weights.device)
            shift = (self.width - torch.tensor(lengths)).repeat_interleave(torch.tensor(lengths))
            self.right = self.left + shift.to(weights.device)
        if not self.width:
            shape = 2, self.rows, self.heads, 0, weights.dim
            self.kv = [torch.zeros(shape, dtype=weights.dtype, device=weights.device) for _ in weights.layers]

    def _padded(self, x: Tensor, places: Tensor | None) -> Tensor:
        """Packed [m, ...] as [rows, width, ...], zeros where no token is."""
        if places is not None:
            x = x.new_zeros(self.rows * self.width, *x.shape[1:]).index_copy_(0, places, x)
        return x.unflatten(0, (self.rows, self.width))

    def attend(self, q: Tensor, kv: Tensor, scale: float) -> Tensor:
        """Keep the keys and values; return what the heads read, packed [m, Hq * d].

        Prompts stand at the left for the attention: padding at the right needs no mask, for what is causal does not
        look there.
        """
        q, kv = q[self.first : self.end], kv[self.first : self.end]
        right = None if self.left is None else self.right
        self.kv.append(self._padded(kv, right).permute(2, 0, 3, 1, 4).contiguous())
        left = self._padded(kv, self.left).permute(2, 0, 3, 1, 4)
        asked = self._padded(q, self.left).transpose(1, 2)
        gqa = q.shape[1] > self.heads
        read = F.scaled_dot_product_attention(asked, left[0], left[1], is_causal=True, scale=scale, enable_gqa=gqa)
        read = read.transpose(1, 2).flatten(0, 1).flatten(1)
        return read if self.left is None else read.index_select(0, self.left)


def _packed(
    weights: Weights, prompts: Sequence[Sequence[int]], groups: list[list[int]]
) -> list[tuple[list[int], list[Tensor]]]:
    """Compute these groups of prompts in one pass over the model."""
    lengths = [[len(prompts[index]) for index in members] for members in groups]
    made, first = [], 0
    for members, length in zip(groups, lengths):
        made.append(_Bucket(weights, members, length, first))
        first += sum(length)
    if first:
        packed = torch.tensor([t for m in groups for i in m for t in prompts[i]], dtype=torch.int64)
        counts = torch.tensor([n for length in lengths for n in length], dtype=torch.int64)
        positions = torch.arange(first) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        full = [bucket for bucket in made if bucket.width]

        def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
            reads = [bucket.attend(q, kv, weights.scale) for bucket in full]
            return reads[0] if len(reads) == 1 else torch.cat(reads)

        longest = max(bucket.width for bucket in full)
        weights.trunk(packed.to(weights.device), positions.to(weights.device), longest, attend)
    return [(bucket.members, bucket.kv) for bucket in made]
