"""Attention kernels that return the log-sum-exp, and whose backward pass takes a merged one, on every device.

The backward pass of softmax attention needs, per query, the output o and the log-sum-exp l of *all* keys that the query saw:
p = exp(s - l), dv = p' do, ds = p * (do v' - do . o). Given those of several calls together, each call's backward is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_aten: Any = torch.ops.aten


def padded_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (output [B, H, Lq, D], log-sum-exp [B, H, Lq]) of q [B, H, Lq, D], k and v [B, H, Lk, D].

    mask [B, 1, 1, Lk] is added to the scores.
    """
    mask = _expanded(q, k, mask)
    if q.device.type == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
    if q.is_cuda and q.dtype != torch.float64:
        out, lse, *_ = _aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, 0.0, causal, scale=scale)
        return out, lse[..., : q.shape[2]]
    scores = _scores(q, k, causal, mask, scale)
    lse = torch.logsumexp(scores, -1)
    return torch.exp(scores - lse.unsqueeze(-1)).to(v.dtype) @ v, lse


def padded_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; a query whose log-sum-exp is infinite contributes and receives none."""
    mask = _expanded(q, k, mask)
    if q.device.type == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, attn_mask=mask, scale=scale
        )
    if q.is_cuda and q.dtype != torch.float64:
        lack = -lse.shape[-1] % 32
        lse = torch.nn.functional.pad(lse, (0, lack), value=torch.inf) if lack else lse
        none = torch.zeros((), dtype=torch.int64, device=q.device)
        found = _aten._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, mask, out, lse.contiguous(), none, none, 0.0, [True, True, True, False], causal, scale=scale
        )
        return found[0], found[1], found[2]
    probability = torch.exp(_scores(q, k, causal, mask, scale) - lse.unsqueeze(-1))
    slope = (grad @ v.transpose(-1, -2)).to(lse.dtype)
    slope = probability * (slope - (grad * out).sum(-1, keepdim=True).to(lse.dtype)) * scale
    slope = slope.to(q.dtype)
    return slope @ k, slope.transpose(-1, -2) @ q, probability.to(q.dtype).transpose(-1, -2) @ grad


def _expanded(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    if q.is_cuda and k.shape[2] % 8:
        # The CUDA kernel needs rows of the mask that start at multiples of eight.
        mask = torch.nn.functional.pad(mask, (0, -k.shape[2] % 8))[..., : k.shape[2]]
    return mask.to(q.dtype).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])


def _scores(q: Tensor, k: Tensor, causal: bool, mask: Tensor | None, scale: float) -> Tensor:
    scores = (q @ k.transpose(-1, -2)) * scale
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if causal:
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores if mask is None else scores + mask


Lengths = tuple[Tensor, int]
"""Cumulated lengths of the sequences [B + 1] int32, and the longest."""


def varlen_forward(
    q: Tensor, k: Tensor, v: Tensor, queries: Lengths, keys: Lengths, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return (output [S, H, D], log-sum-exp [H, S]) of packed sequences in half precision on CUDA; k and v may have fewer heads."""
    found = _aten._flash_attention_forward(
        q, k, v, queries[0], keys[0], queries[1], keys[1], 0.0, causal, False, scale=scale
    )
    return found[0], found[1]


def varlen_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    queries: Lengths,
    keys: Lengths,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    none = torch.zeros(2, dtype=torch.uint64, device=q.device)
    found = _aten._flash_attention_backward(
        grad, q, k, v, out, lse, queries[0], keys[0], queries[1], keys[1], 0.0, causal, none, none, scale=scale
    )
    return found[0], found[1], found[2]
