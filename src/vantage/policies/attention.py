"""Attention over packed sequences: all rows' tokens are concatenated, and keys of a shared prefix are not repeated.

Every token attends to the tokens of its own sequence up to itself. Tokens of sequences that share a prefix also attend to the
whole prefix: that is a second call, and the two results are merged by their log-sum-exps, which is exact. The backward pass
of each call needs only the merged output and log-sum-exp.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vantage.policies.kernels import Lengths, padded_backward, padded_forward, varlen_backward, varlen_forward


@dataclass(frozen=True)
class Places:
    """Index of [B, L] padded entries into the list of tokens.

    Attributes:
        count: B.
        longest: L.
        index: [B * L] positions in the list, those of padding being the sequence's first token; or the equivalent slice.
        slot: [n] indices of the B * L entries that are no padding; None where all are.
        padding: [B * L - n] indices of those that are.
    """

    count: int
    longest: int
    index: Tensor | slice
    slot: Tensor | None = None
    padding: Tensor | None = None

    def take(self, table: Tensor) -> Tensor:
        """Gather [S, ...] to [B, L, ...]."""
        rows = table[self.index] if isinstance(self.index, slice) else table.index_select(0, self.index)
        return rows.view(self.count, self.longest, *table.shape[1:])

    def put(self, table: Tensor, values: Tensor, add: bool) -> None:
        """Write or add [B, L, ...] to the positions in [S, ...], without padding; positions are distinct."""
        values = values.reshape(self.count * self.longest, *values.shape[2:])
        if isinstance(self.index, slice):
            table[self.index] = table[self.index] + values if add else values
            return
        index = self.index
        if self.slot is not None:
            index, values = index.index_select(0, self.slot), values.index_select(0, self.slot)
        if add:
            table.index_add_(0, index, values)
        else:
            table.index_copy_(0, index, values)


@dataclass(frozen=True)
class Block:
    """Batch of padded sequences whose queries attend causally to their own keys, or to all keys of a shared prefix.

    Attributes:
        query: positions of the queries.
        key: positions of the keys; None for a causal block, whose keys are those of its queries.
        mask: [B, 1, 1, Lk] to add to the scores, -inf at keys that are padding; None where none is needed.
    """

    query: Places
    key: Places | None
    mask: Tensor | None


@dataclass(frozen=True)
class Plan:
    """Attention structure of a list of S tokens.

    The list is a concatenation of sequences; shared prefixes come first, then the sequences that continue the first prefix,
    those that continue the second, and so on.

    Attributes:
        blocks: for kernels that take padded sequences.
        ends: [sequences + 1] int32, cumulated lengths, for kernels that take packed ones; with the longest.
        longest: length of the longest sequence.
        shared: (first token after the prefixes; cumulated lengths of the continuations of each prefix, and the longest; those
            of the prefixes); None where no prefix is shared.
    """

    blocks: tuple[Block, ...]
    ends: Tensor
    longest: int
    shared: tuple[int, Lengths, Lengths] | None


def plan(lengths: Sequence[int], continued: Sequence[int] | None, device: torch.device) -> Plan:
    """Make the attention structure of packed sequences.

    Args:
        lengths: lengths of the sequences in the list, each at least 1; the prefixes first where there are any.
        continued: number of tokens that continue each prefix, in the order of the prefixes; None without prefixes.
        device: device of the index tensors.
    """
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    blocks = [
        Block(_places([starts[i] for i in part], [lengths[i] for i in part], device), None, None)
        for part in _similar(order, lengths)
    ]
    ends = torch.tensor(starts, dtype=torch.int32, device=device)
    if continued is None or not any(continued):
        return Plan(tuple(blocks), ends, max(lengths), None)
    prefixes = list(lengths[: len(continued)])
    first = sum(prefixes)
    begins = [first]
    for count in continued:
        begins.append(begins[-1] + count)
    used = [i for i in range(len(prefixes)) if continued[i]]
    for part in _similar(sorted(used, key=lambda i: (-prefixes[i], -continued[i], i)), prefixes):
        keys = _places([starts[i] for i in part], [prefixes[i] for i in part], device)
        mask = None
        if keys.slot is not None:
            mask = torch.full((keys.count * keys.longest,), -torch.inf, device=device)
            mask[keys.slot] = 0.0
            mask = mask.view(keys.count, 1, 1, keys.longest)
        blocks.append(Block(_places([begins[i] for i in part], [continued[i] for i in part], device), keys, mask))
    queries = torch.tensor([begin - first for begin in begins], dtype=torch.int32, device=device)
    shared = (first, (queries, max(continued)), (ends[: len(prefixes) + 1], max(prefixes)))
    return Plan(tuple(blocks), ends, max(lengths), shared)


def _similar(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Divide indices in order of falling length into runs of similar length, to bound the attention scores of padding."""
    runs: list[list[int]] = []
    area = 0
    for index in order:
        if runs:
            widest = lengths[runs[-1][0]] ** 2
            # A further call costs about as much as 4096 attention scores.
            if widest * (len(runs[-1]) + 1) <= 1.5 * (area + lengths[index] ** 2) + 4096:
                runs[-1].append(index)
                area += lengths[index] ** 2
                continue
        runs.append([index])
        area = lengths[index] ** 2
    return runs


def _places(starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> Places:
    longest, count = max(lengths), len(lengths)
    if min(lengths) == longest and all(b - a == longest for a, b in itertools.pairwise(starts)):
        return Places(count, longest, slice(starts[0], starts[0] + count * longest))
    offset = torch.arange(longest)
    real = offset < torch.tensor(lengths).unsqueeze(-1)
    index = torch.tensor(starts).unsqueeze(-1) + torch.where(real, offset, 0)
    places = index.view(-1).to(device)
    if min(lengths) == longest:
        return Places(count, longest, places)
    slot, padding = (chosen.view(-1).nonzero().squeeze(-1).to(device) for chosen in (real, ~real))
    return Places(count, longest, places, slot, padding)


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Plan, scale: float) -> Tensor:
    """Return the attention of packed tokens, [S, H, D], with gradient to all three.

    Args:
        query: [S, H, D].
        key: [S, K, D]; K divides H, and query head h reads key head h // (H / K).
        value: [S, K, D].
        layout: attention structure.
        scale: factor on the scores.
    """
    packed = query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)
    return cast(Tensor, (_Packed if packed else _Padded).apply(query, key, value, layout, scale))


class _Padded(torch.autograd.Function):
    """Attention by kernels that take padded sequences, one block at a time."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Plan, scale: float) -> Tensor:
        size, heads, _ = query.shape
        output = query.new_empty(size, heads, value.shape[-1])
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        lse = query.new_empty(size, heads, 1, dtype=wide)
        for block in layout.blocks:
            q, k, v = _heads(query, key, value, block)
            found, found_lse = padded_forward(q, k, v, block.key is None, block.mask, scale)
            found = _unfold(found, block, heads)
            found_lse = _unfold(found_lse.unsqueeze(-1), block, heads)
            if block.key is not None:
                found, found_lse = _merge(block.query.take(output), block.query.take(lse), found, found_lse)
            block.query.put(output, found, False)
            block.query.put(lse, found_lse, False)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.layout, ctx.scale = layout, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        heads, shared_heads = query.shape[1], key.shape[1]
        grads = tuple(torch.empty_like(tensor) for tensor in (query, key, value))
        for block in ctx.layout.blocks:
            q, k, v = _heads(query, key, value, block)
            normalizer = block.query.take(lse)
            if block.query.padding is not None:
                # Padding is a copy of a real token: an infinite normaliser makes its probabilities, and so its gradient, 0.
                normalizer = normalizer.flatten(0, 1).index_fill(0, block.query.padding, torch.inf).view_as(normalizer)
            around = (_fold(block.query.take(table), block, shared_heads) for table in (grad, output))
            lse_block = _fold(normalizer, block, shared_heads).squeeze(-1)
            one, out = around
            found = padded_backward(one, q, k, v, out, lse_block, block.key is None, block.mask, ctx.scale)
            add, keys = block.key is not None, block.key or block.query
            block.query.put(grads[0], _unfold(found[0], block, heads), add)
            keys.put(grads[1], _gathered(found[1], shared_heads), add)
            keys.put(grads[2], _gathered(found[2], shared_heads), add)
        return (*grads, None, None)


def _merge(one: Tensor, one_lse: Tensor, two: Tensor, two_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merge two results over disjoint keys: outputs [..., D], log-sum-exps [..., 1]."""
    lse = torch.logaddexp(one_lse, two_lse)
    joint = one * torch.exp(one_lse - lse) + two * torch.exp(two_lse - lse)
    return joint.to(one.dtype), lse


def _heads(query: Tensor, key: Tensor, value: Tensor, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Gather a block's [B, heads, L, D] with as many key heads as query heads."""
    shared_heads = key.shape[1]
    q = _fold(block.query.take(query), block, shared_heads)
    if block.key is not None:
        return q, block.key.take(key).transpose(1, 2), block.key.take(value).transpose(1, 2)
    repeats = query.shape[1] // shared_heads
    k, v = (block.query.take(table).transpose(1, 2) for table in (key, value))
    return q, _repeated(k, repeats), _repeated(v, repeats)


def _repeated(table: Tensor, repeats: int) -> Tensor:
    return table if repeats == 1 else table.repeat_interleave(repeats, 1)


def _gathered(grad: Tensor, shared_heads: int) -> Tensor:
    """Reduce a gradient of keys [B, H, L, D] to [B, L, K, D], summed over the heads that share them."""
    if grad.shape[1] != shared_heads:
        grad = grad.unflatten(1, (shared_heads, -1)).sum(2)
    return grad.transpose(1, 2)


def _fold(table: Tensor, block: Block, shared_heads: int) -> Tensor:
    """Permute [B, L, H, D] to [B, H, L, D].

    In a block that is not causal, heads that share keys become queries: [B, K, R * L, D].
    """
    if block.key is None or table.shape[2] == shared_heads:
        return table.transpose(1, 2)
    return table.unflatten(2, (shared_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _unfold(table: Tensor, block: Block, heads: int) -> Tensor:
    """Invert `_fold`: return [B, L, H, D]."""
    if block.key is None or table.shape[1] == heads:
        return table.transpose(1, 2)
    return table.unflatten(2, (-1, block.query.longest)).permute(0, 3, 1, 2, 4).flatten(2, 3)


class _Packed(torch.autograd.Function):
    """Attention by kernels that take packed sequences: one call for all sequences, one for all shared prefixes."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Plan, scale: float) -> Tensor:
        own = (layout.ends, layout.longest)
        output, lse = varlen_forward(query, key, value, own, own, True, scale)
        if layout.shared is not None:
            first, queries, keys = layout.shared
            found, found_lse = varlen_forward(query[first:], key[:first], value[:first], queries, keys, False, scale)
            tail, tail_lse = output[first:], lse[:, first:]
            joint, joint_lse = _merge(tail, tail_lse.t().unsqueeze(-1), found, found_lse.t().unsqueeze(-1))
            tail.copy_(joint)
            tail_lse.copy_(joint_lse.squeeze(-1).t())
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.layout, ctx.scale = layout, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        layout, scale = ctx.layout, ctx.scale
        grad = grad.contiguous()
        own = (layout.ends, layout.longest)
        grads = varlen_backward(grad, query, key, value, output, lse, own, own, True, scale)
        if layout.shared is not None:
            first, queries, keys = layout.shared
            found = varlen_backward(
                grad[first:], query[first:], key[:first], value[:first], output[first:], lse[:, first:].contiguous(),
                queries, keys, False, scale,
            )  # fmt: skip
            grads[0][first:] += found[0]
            grads[1][:first] += found[1]
            grads[2][:first] += found[2]
        return (*grads, None, None)
