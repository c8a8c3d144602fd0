"""Prefill of prompts without padding: matrix products over packed tokens, attention over buckets of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from vantage.rollouts.tokens.weights import Weights


def buckets(lengths: Sequence[int], slack: float = 0.15, least: int = 64) -> list[tuple[int, int]]:
    """Divide lengths in descending order into runs [first, end) with little padding.

    A run ends where padding to its longest would add more than `slack` of its tokens and more than `least` tokens.
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
    """Return the keys and values of prompts by bucket: the prompts' indices and the keys and values of each layer.

    Keys and values [2, G, Hkv, L, d] are right aligned, padded with zeros. About `limit` tokens are computed at
    once, or one prompt that is longer. Empty prompts are a bucket with L = 0. The common prefix of all prompts (instructions,
    worked examples) is computed once.
    """
    start = common_start(prompts)
    if start * (len(prompts) - 1) < 256:
        start = 0
    common = _packed(weights, [prompts[0][:start]], [[0]], 0, None)[0][1] if start else None
    prompts = [prompt[start:] for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    pieces: list[list[int]] = []
    for first, end in buckets([len(prompts[index]) for index in order]):
        step = max(1, limit // max(1, len(prompts[order[first]])))
        pieces += [order[at : min(end, at + step)] for at in range(first, end, step)]
    found: list[tuple[list[int], list[Tensor]]] = []
    pending: list[list[int]] = []
    tokens = 0
    for members in pieces:
        size = sum(len(prompts[index]) for index in members)
        if pending and tokens + size > limit:
            found += _packed(weights, prompts, pending, start, common)
            pending, tokens = [], 0
        pending.append(members)
        tokens += size
    return found + (_packed(weights, prompts, pending, start, common) if pending else [])


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """Return the length of the common prefix of all prompts."""
    texts = [tuple(prompt) for prompt in prompts]
    low, high = min(texts, default=()), max(texts, default=())  # the two that differ first
    return next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))


class _Bucket:
    """Prompts of similar length among the packed tokens, from `first` on, after a shared prefix."""

    def __init__(
        self, weights: Weights, members: list[int], lengths: list[int], first: int, common: list[Tensor] | None
    ) -> None:
        device = weights.device
        self.members, self.heads, self.common = members, weights.kv_heads, common
        self.rows, self.width = len(members), max(lengths)
        self.first, self.end = first, first + sum(lengths)
        self.kv: list[Tensor] = []
        self.left: Tensor | None = None  # positions of the packed tokens in [rows, width]
        self.mask: Tensor | None = None  # prompts attend to all of the common prefix
        start = 0 if common is None else common[0].shape[3]
        if min(lengths) < self.width:
            length = torch.tensor(lengths)
            self.left = (torch.arange(self.width) < length[:, None]).flatten().nonzero().squeeze(1).to(device)
            source = torch.arange(start + self.width) - (self.width - length)[:, None]
            self.empty = (source < 0)[None, :, None, :, None].to(device)
            self.source = source.clamp_(min=0)[None, :, None, :, None].to(device)
        if common is not None:
            self.mask = torch.ones(self.width, start + self.width, dtype=torch.bool, device=device).tril(start)
        if not self.width:
            shape = 2, self.rows, self.heads, start, weights.dim
            empty = torch.zeros(shape, dtype=weights.dtype, device=device)
            self.kv = (
                [empty] * len(weights.layers) if common is None else [x.expand(shape).contiguous() for x in common]
            )

    def _padded(self, x: Tensor) -> Tensor:
        """Return packed [m, ...] as [rows, width, ...], padded with zeros."""
        if self.left is not None:
            x = x.new_zeros(self.rows * self.width, *x.shape[1:]).index_copy_(0, self.left, x)
        return x.unflatten(0, (self.rows, self.width))

    def attend(self, q: Tensor, kv: Tensor, scale: float) -> Tensor:
        """Store the keys and values; return the heads' outputs, packed [m, Hq * d].

        Prompts are left aligned for the attention: padding on the right needs no mask in causal attention. They are stored
        right aligned, where further tokens are appended.
        """
        asked = self._padded(q[self.first : self.end]).transpose(1, 2)
        laid = self._padded(kv[self.first : self.end]).permute(2, 0, 3, 1, 4)
        if self.common is not None:
            past = self.common[len(self.kv)]
            laid = torch.cat((past.expand(2, self.rows, -1, -1, -1), laid), 3)
        kept = laid.contiguous()
        if self.left is not None:
            shape = 2, -1, self.heads, -1, laid.shape[-1]
            kept = laid.gather(3, self.source.expand(shape)).masked_fill_(self.empty, 0.0)
        self.kv.append(kept)
        gqa = q.shape[1] > self.heads
        read = F.scaled_dot_product_attention(
            asked, laid[0], laid[1], self.mask, is_causal=self.mask is None, scale=scale, enable_gqa=gqa
        )
        read = read.transpose(1, 2).flatten(0, 1).flatten(1)
        return read if self.left is None else read.index_select(0, self.left)


def _packed(
    weights: Weights,
    prompts: Sequence[Sequence[int]],
    groups: list[list[int]],
    start: int,
    common: list[Tensor] | None,
) -> list[tuple[list[int], list[Tensor]]]:
    """Compute these groups of prompts in one pass over the model, after `start` tokens that are cached."""
    lengths = [[len(prompts[index]) for index in members] for members in groups]
    made, first = [], 0
    for members, length in zip(groups, lengths):
        made.append(_Bucket(weights, members, length, first, common))
        first += sum(length)
    if first:
        packed = torch.tensor([t for m in groups for i in m for t in prompts[i]], dtype=torch.int64)
        counts = torch.tensor([n for length in lengths for n in length], dtype=torch.int64)
        positions = start + torch.arange(first) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        full = [bucket for bucket in made if bucket.width]

        def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
            reads = [bucket.attend(q, kv, weights.scale) for bucket in full]
            return reads[0] if len(reads) == 1 else torch.cat(reads)

        longest = start + max(bucket.width for bucket in full)
        weights.trunk(packed.to(weights.device), positions.to(weights.device), longest, attend)
    return [(bucket.members, bucket.kv) for bucket in made]
