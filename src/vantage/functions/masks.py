"""Random sets of masked positions, and the weights that make a sum over them an unbiased estimate."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from vantage.core.errors import UserError

Kind = Literal["fixed", "bernoulli"]


def draw_masks(rows: int, length: int, kind: str, generator: torch.Generator) -> Tensor:
    """Draw weights [rows, length] of one set of masked positions each: w where masked, 0 elsewhere; E[weight] = 1 everywhere.

    "fixed": l ~ U{1..length}, exactly l positions, w = length / l. "bernoulli": t ~ U(0, 1), each position with
    probability t, w = 1 / t (the same expectation, a higher variance).

    Raises:
        UserError: the kind is not known.
    """
    device = generator.device
    if kind == "fixed":
        count = torch.randint(1, length + 1, (rows, 1), generator=generator, device=device)
        rank = torch.rand(rows, length, generator=generator, device=device).argsort(1).argsort(1)
        return torch.where(rank < count, length / count, 0.0)
    if kind == "bernoulli":
        # In (0, 1]: a draw of exactly 0 would weigh infinitely.
        time = 1 - torch.rand(rows, 1, generator=generator, device=device)
        return torch.where(torch.rand(rows, length, generator=generator, device=device) < time, 1 / time, 0.0)
    raise UserError(f"masks of kind {kind!r} are not known: {' or '.join(map(repr, get_args(Kind)))}")
