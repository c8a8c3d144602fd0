"""Demand of a period: a distribution on the whole numbers 0, 1, 2, ..., sampled by inverting its distribution function."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from vantage.core.errors import UserError

TAIL = 1e-12
"""Probability in the upper tail of a Poisson demand that is cut off."""


class Draws(Protocol):
    """Demand that can be sampled; `Demand` is of one product, `Demands` of several."""

    mean: float
    """Mean demand of a product in a period, averaged over the products."""

    def draw(self, uniform: Tensor) -> Tensor:
        """Turn uniform numbers in [0, 1) into demands of the same shape; the last axis may be the products'."""
        ...


class Demand:
    """Independent whole-number demand with probabilities `pmf` [K] of 0 .. K - 1 (float64).

    Raises:
        UserError: a probability is negative, or they do not sum to 1.
    """

    def __init__(self, pmf: Tensor) -> None:
        if bool((pmf < 0).any()) or abs(float(pmf.sum()) - 1.0) > 1e-9:
            raise UserError(
                f"demand: the probabilities sum to {float(pmf.sum()):.6g}; they must be at least 0 and sum to 1"
            )
        self.pmf = pmf.double()
        self.cdf = self.pmf.cumsum(0)
        self.mean = float((self.pmf * torch.arange(len(pmf))).sum())
        self._cuts: dict[torch.device, Tensor] = {}

    @classmethod
    def poisson(cls, mean: float) -> Demand:
        """Return Poisson demand, truncated where less than 1e-12 of the probability remains."""
        if not 0 < mean <= 1000:
            raise UserError(f"demand: mean={mean} is out of range: above 0, at most 1000")
        k = torch.arange(int(mean + 12 * math.sqrt(mean) + 30), dtype=torch.float64)
        pmf = torch.exp(k * math.log(mean) - mean - torch.lgamma(k + 1))
        kept = int((pmf.flip(0).cumsum(0).flip(0) > TAIL).sum())
        return cls(pmf[:kept] / pmf[:kept].sum())

    @classmethod
    def uniform(cls, low: int, high: int) -> Demand:
        """Return demand that is uniform on the whole numbers from `low` to `high`."""
        if not 0 <= low <= high:
            raise UserError(f"demand: uniform from {low} to {high} is out of range: 0 <= low <= high")
        pmf = torch.zeros(high + 1, dtype=torch.float64)
        pmf[low:] = 1.0 / (high - low + 1)
        return cls(pmf)

    @classmethod
    def constant(cls, value: int) -> Demand:
        """Return demand that is always `value`."""
        return cls.uniform(value, value)

    def total(self, periods: int) -> Demand:
        """Return the sum of `periods` independent demands; `periods` is at least 1."""
        pmf = self.pmf
        for _ in range(periods - 1):
            flipped = self.pmf.flip(0).view(1, 1, -1)
            pmf = torch.nn.functional.conv1d(pmf.view(1, 1, -1), flipped, padding=len(self.pmf) - 1).view(-1)
        return Demand(pmf / pmf.sum())

    def quantile(self, share: float) -> int:
        """Return the smallest number that the demand exceeds with probability at most 1 - share."""
        return int(torch.searchsorted(self.cdf, torch.tensor(share, dtype=torch.float64)))

    def draw(self, uniform: Tensor) -> Tensor:
        """Turn uniform numbers in [0, 1) of any shape into demands, of the same floating type."""
        cuts = self._cuts.setdefault(uniform.device, self.cdf[:-1].to(uniform.device))
        return torch.searchsorted(cuts.to(uniform.dtype), uniform.contiguous(), right=True).to(uniform.dtype)


class Demands:
    """Demands of several products in a period, [..., K], each with a distribution of its own.

    Products may be correlated by a Gaussian copula: the normal quantiles of K uniform numbers are mixed into K normals of which
    any two have the given correlation, and each product's demand is the quantile at its normal's probability. The
    correlation of the demands themselves is somewhat smaller.

    Args:
        each: the demand of each product, at least one.
        correlation: correlation of any two normals, at least 0 and below 1.

    Raises:
        UserError: there is no product, or the correlation is out of range.
    """

    def __init__(self, each: tuple[Demand, ...], correlation: float = 0.0) -> None:
        if not each:
            raise UserError("demand: there is no product")
        if not 0 <= correlation < 1:
            raise UserError(f"demand: correlation={correlation} is out of range: at least 0 and below 1")
        self.each = each
        self.correlation = correlation
        self.mean = sum(demand.mean for demand in each) / len(each)
        count = len(each)
        equal = torch.full((count, count), correlation, dtype=torch.float64).fill_diagonal_(1.0)
        self._mix = torch.linalg.cholesky(equal)

    def draw(self, uniform: Tensor) -> Tensor:
        """Turn uniform numbers [..., K] in [0, 1), or [..., periods * K] with the products of a period side by side, into
        demands of the same shape and floating type."""
        count = len(self.each)
        tables = uniform.unflatten(-1, (-1, count))
        if self.correlation:
            # Kept away from 0 and 1, where the quantile is infinite.
            normal = torch.special.ndtri(tables.double().clamp(TAIL, 1 - TAIL)) @ self._mix.T.to(uniform.device)
            tables = torch.special.ndtr(normal).clamp(max=1 - 2.0**-24).to(uniform.dtype)
        drawn = [demand.draw(tables[..., k]) for k, demand in enumerate(self.each)]
        return torch.stack(drawn, -1).view(uniform.shape)
