"""Log-probability and entropy of chosen tokens from hidden states, without holding the logits of all positions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes of logits that exist at once. On a CPU they should stay in the last-level cache; on an accelerator the product of
# a chunk must be large enough to fill it.
CPU_BUDGET = 8 << 20
DEVICE_BUDGET = 512 << 20


def chunk_size(vocabulary: int, device: torch.device, budget: int | None = None) -> int:
    """Return the number of positions per chunk whose float32 logits fit the budget in bytes; at least 16."""
    if budget is None:
        budget = CPU_BUDGET if device.type == "cpu" else DEVICE_BUDGET
    return max(16, budget // (4 * vocabulary))


def token_logp(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy: bool = True,
    chunk: int | None = None,
    fused: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return (logp, entropy) of the targets under softmax(cap(hidden @ weight.T + bias) / temperature), each [M].

    The logits are made for `chunk` positions at a time, reduced in float32 (float64 where hidden is), and made again in
    the backward pass, so that memory grows with chunk * V and not with M * V. Gradient flows from both outputs to
    `hidden`, `weight` and `bias`; it cannot be differentiated twice.

    Args:
        hidden: [M, D].
        weight: [V, D], the output embedding.
        bias: [V] or None.
        target: [M] int64, in [0, V).
        temperature: divides the logits, above 0.
        softcap: c for cap(x) = c * tanh(x / c) (Gemma 2), None for the identity.
        entropy: whether to compute the entropy (in nats); None is returned otherwise.
        chunk: positions at a time; None chooses by `chunk_size`.
        fused: compile the operations on a chunk's logits into one kernel by torch.compile.
    """
    if chunk is None:
        chunk = chunk_size(weight.shape[0], hidden.device)
    logp, spread = cast(
        tuple[Tensor, Tensor],
        _TokenLogp.apply(hidden, weight, bias, target, 1.0 / temperature, softcap, entropy, chunk, fused),
    )
    return logp, (spread if entropy else None)


def logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, *, temperature: float = 1.0, softcap: float | None = None
) -> Tensor:
    """Return the logits [M, V] of the policy in float32 (float64 where hidden is), by plain autograd."""
    raw = _wide(torch.nn.functional.linear(hidden, weight, bias))
    if softcap is not None:
        raw = softcap * torch.tanh(raw / softcap)
    return raw / temperature


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        scale: float,
        softcap: float | None,
        entropy: bool,
        chunk: int,
        fused: bool,
    ) -> tuple[Tensor, Tensor]:
        count = hidden.shape[0]
        kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logp = hidden.new_empty(count, dtype=kind)
        spread = hidden.new_empty(count if entropy else 0, dtype=kind)
        normalizer = hidden.new_empty(count, dtype=kind)
        single = count <= chunk
        kept = None
        for part in _parts(count, chunk):
            if fused:
                raw = torch.nn.functional.linear(hidden[part], weight, bias)
                found = compiled(_statistics)(raw, target[part], scale, softcap)
                for table, values in zip((logp, normalizer, spread), found, strict=True):
                    if len(table):
                        table[part] = values
                continue
            scores, _ = _scores(hidden[part], weight, bias, scale, softcap)
            lse = torch.logsumexp(scores, -1)
            normalizer[part] = lse
            scores.sub_(lse.unsqueeze(-1))
            logp[part] = scores.gather(-1, target[part].unsqueeze(-1)).squeeze(-1)
            if entropy:
                # Of log-probabilities, not of logits: a small entropy is no difference of large numbers.
                spread[part] = -torch.linalg.vecdot(scores.exp(), scores)
            if single and softcap is None:
                kept = scores
        ctx.save_for_backward(hidden, weight, bias, target, normalizer, spread, kept)
        ctx.settings = (scale, softcap, entropy, chunk, fused)
        if not entropy:
            ctx.mark_non_differentiable(spread)
        return logp, spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, normalizer, spread, kept = ctx.saved_tensors
        scale, softcap, entropy, chunk, fused = ctx.settings
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        count = hidden.shape[0]
        several = count > chunk
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Chunks are summed in float32: a sum of many bf16 terms would lose the small ones.
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        grad_weight = weight.new_zeros(weight.shape, dtype=wide) if need_weight and several else None
        grad_bias = weight.new_zeros(weight.shape[0], dtype=wide) if need_bias else None
        none = normalizer.new_zeros(())
        for part in _parts(count, chunk):
            if fused:
                raw = torch.nn.functional.linear(hidden[part], weight, bias)
                around = (spread[part], grad_entropy[part]) if entropy else (none, none)
                gradient = compiled(_slope)(
                    raw, target[part], normalizer[part], grad_logp[part], *around, scale, softcap
                )
            else:
                if kept is None:
                    scores, bend = _scores(hidden[part], weight, bias, scale, softcap)
                    scores.sub_(normalizer[part].unsqueeze(-1))
                else:
                    scores, bend = kept, None
                # d logp / d score_i = [i = target] - p_i;   d entropy / d score_i = -p_i (log p_i + entropy)
                slope = -grad_logp[part].unsqueeze(-1)
                if entropy:
                    slope = slope - grad_entropy[part].unsqueeze(-1) * (scores + spread[part].unsqueeze(-1))
                gradient = scores.exp().mul_(slope)
                gradient.scatter_add_(-1, target[part].unsqueeze(-1), grad_logp[part].unsqueeze(-1))
                gradient.mul_(scale)
                if bend is not None:
                    gradient.mul_(bend)
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
            narrow = gradient.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(narrow, weight, out=grad_hidden[part])
            if need_weight:
                if grad_weight is None:
                    grad_weight = torch.mm(narrow.t(), hidden[part])
                elif grad_weight.dtype == narrow.dtype:
                    grad_weight.addmm_(narrow.t(), hidden[part])
                else:
                    grad_weight += torch.mm(narrow.t(), hidden[part])
        if need_weight and grad_weight is None:
            grad_weight = torch.zeros_like(weight)
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            *(None,) * 6,
        )


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function made by torch.compile, for any shape."""
    return torch.compile(function, dynamic=True)


def _statistics(raw: Tensor, target: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return (logp, log-sum-exp, entropy), each [m], of raw logits [m, V]."""
    scores = _wide(raw)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores * scale
    lse = torch.logsumexp(scores, -1)
    scores = scores - lse.unsqueeze(-1)
    logp = scores.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return logp, lse, -(scores.exp() * scores).sum(-1)


def _slope(
    raw: Tensor,
    target: Tensor,
    lse: Tensor,
    grad_logp: Tensor,
    entropy: Tensor,
    grad_entropy: Tensor,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Return the gradient with respect to raw logits [m, V], in their type."""
    scores, bend = _wide(raw), None
    if softcap is not None:
        bounded = torch.tanh(scores / softcap)
        scores, bend = softcap * bounded, 1 - bounded * bounded
    scores = scores * scale - lse.unsqueeze(-1)
    chosen = torch.arange(raw.shape[-1], device=raw.device) == target.unsqueeze(-1)
    slope = -grad_logp.unsqueeze(-1) - grad_entropy.unsqueeze(-1) * (scores + entropy.unsqueeze(-1))
    gradient = (scores.exp() * slope + torch.where(chosen, grad_logp.unsqueeze(-1), 0.0)) * scale
    return (gradient if bend is None else gradient * bend).to(raw.dtype)


def _parts(count: int, chunk: int) -> Iterator[slice]:
    for start in range(0, count, chunk):
        yield slice(start, min(start + chunk, count))


def _scores(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return the scaled logits of a chunk and, with a cap, the slope of the cap at each."""
    raw = _wide(torch.nn.functional.linear(hidden, weight, bias))
    bend = None
    if softcap is not None:
        bounded = torch.tanh(raw / softcap)
        bend = 1 - bounded * bounded
        raw = bounded.mul_(softcap)
    return (raw if scale == 1.0 else raw.mul_(scale)), bend
