"""Random instances, each a function of its number, so that any batch of numbers can be generated in any order."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vantage.core.errors import UserError

TRAIN, HELD_OUT = 0, 1
"""Streams of instances. They are disjoint: the stream enters the hash from which an instance's coordinates are computed."""
CAPACITIES = {10: 20, 20: 30, 50: 40, 100: 50}
"""Vehicle capacity by number of customers (Nazari et al., arXiv 1802.04240, and Kool et al., arXiv 1803.08475)."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection whose output bits look independent."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def uniform(ids: Tensor, width: int, seed: int, stream: int) -> Tensor:
    """Return numbers in [0, 1), float32 [B, width], that depend on id, index, seed and stream alone.

    Args:
        ids: [B] int64.
        width: numbers per id, W.
        seed: any whole number.
        stream: `TRAIN` or `HELD_OUT`.
    """
    numbers = ids.cpu().numpy().astype(np.uint64)
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.array([seed % 2**64], np.uint64) + _GOLDEN) + np.uint64(stream + 1) * _GOLDEN)
        own = _mix(_mix(numbers + key) + key)
        places = np.arange(1, width + 1, dtype=np.uint64) * _GOLDEN
        bits = _mix(own[:, None] + places)
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24))


def tsp(ids: Tensor, nodes: int, seed: int = 0, stream: int = TRAIN) -> Tensor:
    """Return TSP instances [B, nodes, 2]: uniform in the unit square."""
    return uniform(ids, 2 * nodes, seed, stream).view(-1, nodes, 2)


def cvrp(ids: Tensor, nodes: int, capacity: int, seed: int = 0, stream: int = TRAIN) -> Tensor:
    """Return CVRP instances [B, nodes + 1, 3]: depot and customers uniform in the unit square, demands uniform in 1 .. 9.

    The depot comes first; its third number is the capacity.
    """
    drawn = uniform(ids, 2 * (nodes + 1) + nodes, seed, stream)
    places = drawn[:, : 2 * (nodes + 1)].view(-1, nodes + 1, 2)
    demands = (drawn[:, 2 * (nodes + 1) :] * 9).floor() + 1
    third = torch.cat([torch.full((len(drawn), 1), float(capacity)), demands], 1)
    return torch.cat([places, third.unsqueeze(-1)], -1)


def default_capacity(nodes: int) -> int:
    """Return the usual vehicle capacity for this number of customers (`CAPACITIES`).

    Raises:
        UserError: there is no usual one.
    """
    if nodes not in CAPACITIES:
        known = ", ".join(f"{size}: {held}" for size, held in CAPACITIES.items())
        raise UserError(
            f"cvrp: nodes={nodes} has no usual capacity ({known}): give one, as in cvrp:nodes={nodes},capacity=40"
        )
    return CAPACITIES[nodes]
