"""Insertion and removal of tokens in rows of the lean backend's cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vantage.rollouts.tokens.shared import NEVER

if TYPE_CHECKING:
    from vantage.rollouts.tokens.cache import Storage

_CHUNK = 1 << 25
"""Largest number of elements of keys that are gathered for one attention."""


def extend(cache: Storage, tokens: Sequence[Sequence[int]]) -> None:
    """Feed these tokens to each row, all in one pass over the model; a row may get none."""
    counts = torch.tensor([len(row) for row in tokens], dtype=torch.int64)
    width = int(counts.max()) if len(counts) else 0
    if not width:
        return
    weights = cache.weights
    device, heads, dim = weights.device, weights.kv_heads, weights.dim
    cache._settle()
    cache.reserve(cache.end + width)
    first, low = cache.end, cache.low
    bias = cache.explicit()
    real = torch.arange(width) >= width - counts[:, None]
    bias[: cache.rows, first : first + width] = torch.zeros(real.shape).masked_fill_(~real, NEVER).to(device)
    cache.bias, cache.end = bias, (end := first + width)
    given = counts.nonzero().squeeze(1)  # the rows that get any
    row, column = real[given].nonzero(as_tuple=True)  # in packed order; the row counts among those that get any
    packed = torch.tensor([t for r in given.tolist() for t in tokens[r]], dtype=torch.int64, device=device)
    within = column - (width - counts[given])[row]
    target, place = given[row].to(device), (first + column).to(device)
    positions = cache.position[target] + within.to(device)

    # Rows of a block are computed together, as many as the gathered keys allow.
    chunks: list[tuple[Tensor, Tensor, int]] = []
    for number in range(max(1, len(cache.blocks))):
        of = (cache.member[given, 0] == number).nonzero().squeeze(1) if cache.blocks else torch.arange(len(given))
        long = end - low + (cache.blocks[number].kv[0].shape[3] if cache.blocks else 0)
        for part in of.split(max(1, _CHUNK // (long * heads * dim))):
            if len(part):
                chunks.append((part, torch.isin(row, part).nonzero().squeeze(1).to(device), number))
    future = torch.full((width, width), NEVER, device=device).triu_(1)
    inverse = torch.empty(len(given), dtype=torch.int64)

    def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
        held = cache.kv[layer]
        held[:, : cache.rows, :, first:end] = 0.0  # where a row gets no token: masked, but finite
        held[:, target, :, place] = kv  # [m, 2, Hkv, d]: separated index arrays put their axis first
        read = torch.empty(len(q), q.shape[1] * dim, dtype=q.dtype, device=device)
        for part, at, number in chunks:
            rows = given[part].to(device)
            inverse[part] = torch.arange(len(part))
            to, here = inverse[row[at.cpu()]].to(device), column.to(device)[at]
            laid = held[:, :, :, low:end].index_select(1, rows)
            mask = cache.explicit()[rows, low:end][:, None].repeat(1, width, 1)
            mask[..., first - low :] += future
            if cache.blocks:
                block, group = cache.blocks[number], cache.member[given[part], 1].to(device)
                laid = torch.cat((block.kv[layer].index_select(1, group), laid), 3)
                before = mask.new_zeros(len(part), block.kv[layer].shape[3])
                before = before if block.bias is None else block.bias[group]
                mask = torch.cat((before[:, None].expand(-1, width, -1), mask), -1)
            asked = q.new_zeros(len(part), width, *q.shape[1:])
            asked[to, here] = q[at]
            out = F.scaled_dot_product_attention(
                asked.transpose(1, 2),
                laid[0],
                laid[1],
                mask[:, None].to(q.dtype),
                scale=weights.scale,
                enable_gqa=q.shape[1] > heads,
            )
            read[at] = out.transpose(1, 2)[to, here].flatten(1)
        return read

    cache.farthest += width
    weights.trunk(packed, positions, cache.farthest, attend)
    cache.position = cache.position + counts.to(device)
    cache.filled = cache.filled + counts
    empty = cache.start >= first  # rows that had nothing of their own
    cache.start = torch.where(empty, end - counts, cache.start)
    cache._mask()
    tighten(cache)


def forget(cache: Storage, counts: Tensor) -> None:
    """Remove the last tokens of each row, [n] of them (host): of its own tokens, not of a shared prompt.

    Raises:
        ValueError: a row has fewer tokens of its own.
    """
    cache._settle()
    if bool((counts > cache.filled).any()):
        raise ValueError("tokens of a shared prompt cannot be removed")
    if bool((counts == counts[0]).all()) and cache.bias is None:
        cache.end -= int(counts[0])  # the same number from all rows, and no gaps: remove the columns
    else:
        bias = cache.explicit()
        mine = bias[: cache.rows, cache.low : cache.end]
        behind = (mine == 0).flip(-1).cumsum(-1).flip(-1)
        mine.masked_fill_(behind <= counts[:, None].to(mine.device), NEVER)
        cache.bias = bias
    cache.position = cache.position - counts.to(cache.position.device)
    cache.filled = cache.filled - counts
    cache._mask()
    tighten(cache)


def tighten(cache: Storage) -> None:
    """Remove the gaps when they are a large part of what a step reads, so that every row is right aligned."""
    used, need = cache.end - cache.low, int(cache.filled.max()) if cache.rows else 0
    if used <= need + max(16, need // 4):
        return
    rows, low, end = cache.rows, cache.low, cache.end
    real = cache.explicit()[:rows, low:end] == 0
    order = real.to(torch.uint8).argsort(dim=-1, stable=True)[:, used - need :]
    spare = (0, min(cache.room, 64))
    shape = order[None, :, None, :, None].expand(2, -1, cache.weights.kv_heads, -1, cache.weights.dim)
    for index, x in enumerate(cache.kv):
        cache.kv[index] = F.pad(x[:, :rows, :, low:end].gather(3, shape), (0, 0, *spare))
    cache.start, cache.low, cache.end = need - cache.filled, 0, need
    cache.bias = None
    cache._mask()
