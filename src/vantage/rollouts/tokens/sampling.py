"""Sampling of the next token: temperature, truncation, and an independent random stream for every row."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from vantage.core import above, at_least, at_most, below, between, component, hint, not_empty


@component
class Sampling:
    """Settings of sampling: temperature, truncation, and the ends of completions.

    The truncations apply in this order, each to the result of the one before: temperature, top-k, top-p, min-p.

    Attributes:
        temperature: divides the logits; above 0.
        top_p: keep the most probable tokens whose probabilities first add up to this; in (0, 1], 1 keeps all.
        top_k: keep this many tokens of highest probability (and those tied with the last); 0 keeps all.
        min_p: keep tokens at least this fraction as probable as the most probable one; in [0, 1], 0 keeps all.
        max_new_tokens: longest completion, in tokens, the stop token included.
        stop_tokens: ids that end a completion, besides the engine's end-of-sequence tokens.
        stop_strings: texts that end a completion once the generated text contains them; the tokens that hold them are kept.
        greedy: take the most probable token; the temperature still scales the reported log-probabilities.

    Raises:
        UserError: a value is out of its range.
    """

    temperature: Annotated[float, above(0), below(math.inf), hint("set greedy=True for the most probable token")] = 1.0
    top_p: Annotated[float, above(0), at_most(1), hint("1 keeps every token")] = 1.0
    top_k: Annotated[int, at_least(0), hint("0 keeps every token")] = 0
    min_p: Annotated[float, between(0, 1), hint("0 keeps every token")] = 0.0
    max_new_tokens: Annotated[int, at_least(1)] = 64
    stop_tokens: tuple[Annotated[int, at_least(0)], ...] = ()
    stop_strings: tuple[Annotated[str, not_empty], ...] = ()
    greedy: bool = False

    @property
    def truncates(self) -> bool:
        """Whether tokens are truncated, so that the sampling distribution is not the policy's."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


def mix(bits: Tensor) -> Tensor:
    """Hash 64-bit integers one to one (the finaliser of SplitMix64, Steele et al. 2014), with wrap-around.

    `torch` shifts signed integers arithmetically, so the copies of the sign bit are masked off.
    """
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return bits ^ ((bits >> 31) & 0x1FFFFFFFF)


_GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed integer: SplitMix64's increment
_BELOW_ONE = 1 - 2.0**-50  # so far below 1 that a product with a total stays below the total after rounding


def row_seeds(seed: int, rows: Tensor) -> Tensor:
    """Return the seeds of rows [N] (int64) from a run's `seed` and the rows' indices [N] (int64); equal on every device."""
    start = mix(torch.tensor(_signed(seed), dtype=torch.int64, device=rows.device))
    return mix(start + (rows + 1) * _GOLDEN)


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """Return uniform numbers in [0, 1 - 2^-50], float64, for row seeds and token positions (int64, broadcast together).

    Counter based: a number depends on its row's seed and position alone, not on the batch.
    """
    bits = mix(seeds + (positions + 1) * _GOLDEN)
    return ((bits >> 11) & 0x1FFFFFFFFFFFFF).double() * (2.0**-53 * _BELOW_ONE)


def truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return logits [N, V] (float32, tempered) with -inf for the tokens that top-k, top-p and min-p remove.

    Top-p keeps a token when the tokens more probable than it hold less than `top_p`: the smallest set that reaches it.
    """
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1, sorted=True).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        logits = _nucleus(logits, sampling.top_p)
    if sampling.min_p > 0:
        floor = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return logits


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    size = logits.shape[-1]
    norm = logits.logsumexp(-1, keepdim=True)
    # A language model's nucleus is nearly always a small part of a large vocabulary: search the best 1024 before
    # sorting all. Not on CUDA, where the test would synchronise host and device.
    for count in (1024, size) if size > 4096 and logits.device.type == "cpu" else (size,):
        ordered = logits.topk(count, dim=-1).values if count < size else logits.sort(dim=-1, descending=True).values
        mass = (ordered - norm).exp_().cumsum(-1, dtype=torch.float64)
        if count == size or bool((mass[..., -1] >= top_p).all()):
            break
    kept = (mass < top_p).sum(-1, keepdim=True).clamp_(max=count - 1)  # the last token kept: the first to reach top_p
    return logits.masked_fill(logits < ordered.gather(-1, kept), -torch.inf)


class Draw(NamedTuple):
    """One token per row: id [N] (int64), log-probabilities [N] and entropy [N] (float32); see `Completions`."""

    token: Tensor
    logp: Tensor
    logp_sampling: Tensor
    logp_raw: Tensor
    entropy: Tensor


def draw(logits: Tensor, uniform: Tensor | None, sampling: Sampling) -> Draw:
    """Sample one token per row from finite logits [N, V] with uniform numbers [N]; None only where `sampling.greedy`.

    Inverts the cumulative distribution, so that a row needs one random number whatever the vocabulary. Computed in
    float32, whatever the model's precision. Without truncation, `logp_sampling` is the same object as `logp`;
    where the temperature is 1, so is `logp_raw`.
    """
    logits = logits.float()
    tempered = logits if sampling.temperature == 1 else logits / sampling.temperature
    logps, probs = tempered.log_softmax(-1), tempered.softmax(-1)
    entropy = torch.linalg.vecdot(probs, logps).neg_()
    kept = None
    if sampling.greedy:
        token = tempered.argmax(-1, keepdim=True)
    elif sampling.truncates:
        assert uniform is not None
        kept = truncate(tempered, sampling)
        token = invert(kept.softmax(-1), uniform)
    else:
        assert uniform is not None
        token = invert(probs, uniform)
    logp = logp_sampling = logp_raw = logps.gather(-1, token).squeeze(-1)
    if sampling.greedy:
        logp_sampling = torch.zeros_like(logp)
    elif kept is not None:
        logp_sampling = kept.log_softmax(-1).gather(-1, token).squeeze(-1)
    if sampling.temperature != 1:
        logp_raw = logits.gather(-1, token).squeeze(-1) - logits.logsumexp(-1)
    return Draw(token.squeeze(-1), logp, logp_sampling, logp_raw, entropy)


_BLOCK = 256


def invert(probs: Tensor, uniform: Tensor) -> Tensor:
    """Return the token [N, 1] at which the cumulative probability [N, V] passes uniform x total; never one of probability 0.

    A large vocabulary is searched in two steps, the block and then the position in it: two short scans in double
    precision instead of a long one.
    """
    if probs.shape[-1] <= 4 * _BLOCK:
        return _search(probs, uniform.unsqueeze(-1))
    blocks = torch.nn.functional.pad(probs, (0, -probs.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    mass = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    goal = uniform.unsqueeze(-1) * mass[..., -1:]
    block = torch.searchsorted(mass, goal, right=True)
    before = torch.where(block > 0, mass.gather(-1, (block - 1).clamp_(min=0)), 0.0)
    inside = blocks.gather(-2, block.unsqueeze(-1).expand(*block.shape, _BLOCK)).squeeze(-2)
    share = (goal - before) / (mass.gather(-1, block) - before)
    return block * _BLOCK + _search(inside, share * _BELOW_ONE)


def _search(probs: Tensor, uniform: Tensor) -> Tensor:
    mass = probs.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(mass, uniform * mass[..., -1:], right=True)


def _signed(seed: int) -> int:
    """Return the 64 low bits of `seed` as the signed integer with the same bits."""
    return (seed + 2**63) % 2**64 - 2**63
