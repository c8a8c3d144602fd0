"""Averagings of a loss per decision into one number: weights [N, T] whose products with the loss are summed.

Weights are computed on the whole minibatch before it is cut into micro-batches, so that accumulation over any cut gives
exactly the gradient of the whole.

    token-mean               every decision counts the same:             mask / sum(mask)
    seq-mean-token-mean      every row counts the same:                  mask / length / N
    seq-mean-token-sum       sum over rows of the row's sum, per row:    mask / N
    seq-mean-token-sum-norm  the same, divided by the longest row allowed: mask / (N * T)
    seq-sum-token-mean       sum over rows of the row's mean:            mask / length
    group                    every group counts the same, decisions within it too: mask / sum(mask of the group) / groups

The first four have the names of verl's `loss_agg_mode`, whose -norm divides by T alone, not by N: its gradient is N times this one
(TRL divides by both, as here). N counts the rows of the minibatch that hold a decision to learn from; others are dropped before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from vantage.core.errors import UserError, nearest

Averaging = Callable[[Tensor, Tensor | None], Tensor]


def by_group(mask: Tensor, group: Tensor | None = None) -> Tensor:
    """Weights of `group`: every group counts the same, and within it every decision."""
    if group is None:
        raise UserError("averaging='group' needs the column 'group'")
    keys, index = torch.unique(group, return_inverse=True)
    sizes = torch.zeros(len(keys), device=mask.device, dtype=torch.float32).index_add_(0, index, mask.sum(-1).float())
    return mask / sizes.clamp(min=1)[index].unsqueeze(-1) / len(keys)


def _share(mask: Tensor) -> Tensor:
    return mask / mask.sum(-1, keepdim=True).clamp(min=1)


AVERAGINGS: dict[str, Averaging] = {
    "token-mean": lambda mask, group: mask / mask.sum().clamp(min=1),
    "seq-mean-token-mean": lambda mask, group: _share(mask) / mask.shape[0],
    "seq-mean-token-sum": lambda mask, group: mask / mask.shape[0],
    "seq-mean-token-sum-norm": lambda mask, group: mask / mask.numel(),
    "seq-sum-token-mean": lambda mask, group: _share(mask),
    "group": by_group,
}

_OLD = {
    "token": "token-mean",
    "sequence": "seq-mean-token-mean",
    "total": "seq-mean-token-sum",
    "constant": "seq-mean-token-sum-norm",
    "sum": "seq-sum-token-mean",
}


def canonical(name: str) -> str:
    """Return the present name of an averaging; an old one is accepted with a DeprecationWarning until version 0.3."""
    if name in _OLD:
        warnings.warn(f"averaging {name!r} is now called {_OLD[name]!r}", DeprecationWarning, stacklevel=3)
        return _OLD[name]
    return name


def averaging(name: str | Averaging) -> Averaging:
    """Return the averaging of this name; a function is itself.

    Raises:
        UserError: no averaging has this name.
    """
    if not isinstance(name, str):
        return name
    name = canonical(name)
    if name not in AVERAGINGS:
        raise UserError(f"averaging {name!r} is not known{nearest(name, AVERAGINGS)} (known: {', '.join(AVERAGINGS)})")
    return AVERAGINGS[name]
