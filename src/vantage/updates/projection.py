"""Gradients as vectors over all parameters: inner products and projections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Return the inner product of two lists of tensors, taken as one vector each; a scalar."""
    return torch.stack([part.sum() for part in torch._foreach_mul(list(one), list(other))]).sum()


def project_out(vector: Sequence[Tensor], along: Sequence[Tensor], eps: float = 1e-10) -> tuple[list[Tensor], Tensor]:
    """Return (vector - c * along, c) with c = <along, vector> / max(<along, along>, eps).

    What is left is orthogonal to `along`, to rounding, where |along|^2 is at least eps.
    """
    c = inner(along, vector) / inner(along, along).clamp(min=eps)
    scaled = torch._foreach_mul(list(along), c)
    return list(torch._foreach_sub(list(vector), scaled)), c
