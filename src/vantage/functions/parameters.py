"""Lists of tensors (parameters, gradients) taken as one vector each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vantage.core.errors import UserError


def inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Return the inner product of two lists of tensors of the same shapes; a scalar."""
    return torch.stack([part.sum() for part in torch._foreach_mul(list(one), list(other))]).sum()


def project_out(vector: Sequence[Tensor], along: Sequence[Tensor], eps: float = 1e-10) -> tuple[list[Tensor], Tensor]:
    """Return (vector - c * along, c) with c = <along, vector> / max(<along, along>, eps).

    What is left is orthogonal to `along`, to rounding, where |along|^2 is at least eps.
    """
    c = inner(along, vector) / inner(along, along).clamp(min=eps)
    scaled = torch._foreach_mul(list(along), c)
    return list(torch._foreach_sub(list(vector), scaled)), c


@torch.no_grad()
def polyak(targets: Sequence[Tensor], sources: Sequence[Tensor], rate: float) -> None:
    """Move targets towards sources in place: target <- (1 - rate) * target + rate * source. No gradient."""
    torch._foreach_lerp_(list(targets), list(sources), rate)


def twins(policy: Any, frozen: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the parameters that a policy and a frozen copy of it share by name, as pairs (live, copy).

    Raises:
        UserError: they share no parameter: the copy is only a view of the policy.
    """
    theirs = dict(frozen.named_parameters())
    found = [(live, theirs[name]) for name, live in policy.named_parameters() if name in theirs]
    if not found:
        raise UserError(
            f"{type(frozen).__name__} shares its weights with the policy, so the two cannot differ: train without adapters"
            " (lora_rank=0)"
        )
    return found
