"""Numbered problems from a numbered space of candidates, without listing the space.

A task numbers its candidates 0 .. count - 1. A keyed permutation gives them a pseudo-random order without repetition; a
hash of the candidate's own text decides its split, for all tasks and settings alike, so that no text is in both. In a small
space the candidates of a split are listed once. In a large one, problem i is the first of the candidates at positions i,
i + n, i + 2n, ... of the permuted order that is valid and in the split: any problem is found in a few steps, and no two
are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from hashlib import blake2b
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vantage.core.errors import UserError
from vantage.tasks.language.problem import check_index, check_split

HELD_OUT = 8
"""One text in this many is held out for the test split."""

_LISTED = 1 << 17
_TRAIN_MOST, _TEST_MOST = 100_000, 1_000
# Number of positions that are searched for a problem: 16 candidates have none of the training split with probability 4e-15,
# 256 none that is held out with probability 1e-15. A task with invalid candidates searches more.
_TRAIN_STRIDE, _TEST_STRIDE = 16, 256


class Space(Hashable, Protocol):
    """Interface of a numbered space of candidates."""

    @property
    def name(self) -> str:
        """Name in error messages."""
        ...

    @property
    def count(self) -> int:
        """Number of candidates, at most 2^126."""
        ...

    @property
    def density(self) -> float:
        """Lower bound on the share of candidates that are valid, in (0, 1]."""
        ...

    def key(self, number: int) -> str:
        """Return the text that decides the candidate's split: equal for candidates that are the same problem."""
        ...

    def valid(self, number: int) -> bool:
        """Return whether the candidate is a problem."""
        ...


def held_out(key: str, share: float = 1 / HELD_OUT) -> bool:
    """Return whether a text is in the held-out split: a fixed function of the text, true for a share `share` of all texts."""
    return (
        int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") < share * 2**64
    )


_KEYS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)
_64 = 0xFFFFFFFFFFFFFFFF


def _halfway(count: int) -> int:
    return max((count - 1).bit_length() + 1, 2) // 2


def permuted(number: int, count: int) -> int:
    """Return the image of `number` under a fixed permutation of 0 .. count - 1 (a Feistel network with cycle walking)."""
    half = _halfway(count)
    mask = (1 << half) - 1
    while True:
        left, right = number >> half, number & mask
        for key in _KEYS:
            # Finaliser of SplitMix64 on the right half.
            mixed = (right * _KEYS[0] + key) & _64
            mixed = ((mixed ^ (mixed >> 30)) * _KEYS[1]) & _64
            mixed = ((mixed ^ (mixed >> 27)) * _KEYS[2]) & _64
            left, right = right, left ^ ((mixed ^ (mixed >> 31)) & mask)
        number = (left << half) | right
        if number < count:
            return number


def permutation(count: int) -> NDArray[np.uint64]:
    """Return `permuted(number, count)` of all numbers [count], for a count that fits in memory."""
    half = _halfway(count)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    found = np.arange(count, dtype=np.uint64)
    outside = np.arange(count)
    while len(outside):
        left, right = found[outside] >> shift, found[outside] & mask
        for key in _KEYS:
            mixed = right * np.uint64(_KEYS[0]) + np.uint64(key)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_KEYS[1])
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_KEYS[2])
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
        found[outside] = (left << shift) | right
        outside = outside[found[outside] >= count]
    return found


@functools.lru_cache(maxsize=64)
def _listed(space: Space, split: str) -> tuple[int, ...]:
    wanted = split == "test"
    numbers = permutation(space.count).tolist()
    return tuple(number for number in numbers if held_out(space.key(number)) == wanted and space.valid(number))


def size(space: Space, split: str) -> int:
    """Return the number of problems of a split: all of a small space, a fixed share of a large one."""
    check_split(split)
    if space.count <= _LISTED:
        return len(_listed(space, split))
    most, stride = (_TEST_MOST, _TEST_STRIDE) if split == "test" else (_TRAIN_MOST, _TRAIN_STRIDE)
    return min(most, int(space.count * space.density) // stride)


def number(space: Space, split: str, index: int) -> int:
    """Return the candidate that is problem `index` of a split.

    Raises:
        UserError: there is no such split, or the index is outside of [0, size).
    """
    total = size(space, split)
    check_index(space.name, split, index, total)
    if space.count <= _LISTED:
        return _listed(space, split)[index]
    wanted = split == "test"
    for place in range(index, space.count, total):
        found = permuted(place, space.count)
        if held_out(space.key(found)) == wanted and space.valid(found):
            return found
    raise UserError(f"{space.name}: problem {index} of {split!r} does not exist: none of its candidates is valid")
