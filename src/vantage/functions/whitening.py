"""Means and spreads over a mask, and standardised values."""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.functions.checks import checked


@checked(values="N T", mask="bool N T")
def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the decisions where the mask holds, a scalar; 0 where it holds nowhere. Gradient through `values`."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


@checked(values="float N T", mask="bool N T")
def masked_moments(values: Tensor, mask: Tensor, ddof: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return (centred, mean, variance) over the decisions where the mask holds: [N, T], 0 elsewhere, and two scalars.

    Sums are taken of the differences to the smallest value, in float32 at least: equal values are centred to exactly 0, which the
    difference to a mean that was added up in floating point is not. Gradient flows through `values`.

    Args:
        values: [N, T].
        mask: [N, T].
        ddof: 1 for the sample variance, 0 for the population's; the variance of too few decisions is 0.
    """
    centred, low, shift, variance = _moments(values, mask, ddof)
    return centred, low.masked_fill(low == torch.inf, 0.0) + shift, variance


def _moments(values: Tensor, mask: Tensor, ddof: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the centred values [N, T], the smallest one (inf of none), the mean's distance to it, and the variance."""
    values = values if values.dtype == torch.float64 else values.float()
    full = mask.device.type == "cpu" and bool(mask.all())  # on another device the answer would have to be waited for

    def inside(numbers: Tensor, otherwise: float = 0.0) -> Tensor:
        return numbers if full else torch.where(mask, numbers, otherwise)

    low = inside(values.detach(), torch.inf).amin() if mask.numel() else values.new_full((), torch.inf)
    above = inside(values - low)
    count = mask.count_nonzero()
    shift = above.sum() / count.clamp(min=1)
    centred = inside(above - shift)
    return centred, low, shift, centred.square().sum() / (count - ddof).clamp(min=1)


@checked(values="float N T", mask="bool N T")
def whiten(values: Tensor, mask: Tensor, eps: float = 1e-8, ddof: int = 1) -> Tensor:
    """Return (values - mean) / sqrt(variance + eps) over the decisions where the mask holds, [N, T]; 0 elsewhere.

    The result has the type of `values`. Equal values give exactly 0, and values that differ by rounding stay near 0 (6e-8
    apart: below 1e-3), because `eps` is under the root as in verl's `masked_whiten`. Gradient flows through `values`.

    Args:
        values: [N, T], in any unit whose spread is well above sqrt(eps).
        mask: [N, T].
        eps: added to the variance, above 0.
        ddof: 1 for the sample variance, 0 for the population's.
    """
    centred, _, _, variance = _moments(values, mask, ddof)
    return (centred * (variance + eps).rsqrt()).to(values.dtype)


@checked(centred="...", std="...")
def standardize(centred: Tensor, std: Tensor, eps: float = 0.0) -> Tensor:
    """Return centred / (std + eps); exactly 0 where the scores do not differ (std up to 1e-6) or one is missing (NaN).

    The form of GRPO's equation, for spreads that the exact statistics of `groups` found. Both of one shape.
    """
    flat = (std <= 1e-6) | torch.isnan(centred)
    return torch.where(flat, 0.0, centred / (std + eps).masked_fill(flat, 1.0))
