"""Countdown problems: reach a target from given numbers with + - and *."""

from __future__ import annotations

import ast
import functools
import math
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from vantage.core import between, component
from vantage.tasks.language import space
from vantage.tasks.language.problem import Problem

_LONGEST = 200
"""Largest number of characters of an expression that the verifier reads; six numbers need at most 40."""


def evaluate(expression: str) -> tuple[int, list[int]] | None:
    """Return the value of an expression of whole numbers, + - * and brackets, and the numbers in it.

    None for anything else. The text is parsed, never executed. At most 200 characters are read, which bounds the depth and
    the size of the numbers.
    """
    text = expression.strip()
    if not text or len(text) > _LONGEST or not set(text) <= set("0123456789+-*() "):
        return None
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    numbers: list[int] = []

    def walk(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(value)):
                numbers.append(value)
                return value
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return walk(left) + walk(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return walk(left) - walk(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return walk(left) * walk(right)
        raise ValueError("neither a number nor + - *")

    try:
        return walk(tree.body), numbers
    except ValueError:
        return None


Numbers = tuple[int, ...]


def values(numbers: Numbers) -> NDArray[np.int64]:
    """Return, ascending, every value of expressions that use each of the numbers once (ascending, at most six up to 100)."""
    return _few(numbers) if len(numbers) < 5 else _many(numbers)


def _compute(numbers: Numbers) -> NDArray[np.int64]:
    if len(numbers) == 1:
        return np.array(numbers, dtype=np.int64)
    found = []
    for left, right in _halves(numbers):
        one, other = values(left)[:, None], values(right)
        found += [one + other, one - other, other - one, one * other]
    return np.unique(np.concatenate([each.ravel() for each in found]))


# Up to four numbers have about a hundred values, six some ten thousand, of which few are cached.
_few = functools.lru_cache(maxsize=1 << 14)(_compute)
_many = functools.lru_cache(maxsize=64)(_compute)


def _halves(numbers: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield every split of the numbers into two sets, the first number in the left one."""
    seen = set()
    for count in range(len(numbers) - 1):
        for chosen in combinations(range(1, len(numbers)), count):
            left = tuple(number for place, number in enumerate(numbers) if place == 0 or place in chosen)
            right = tuple(number for place, number in enumerate(numbers) if place and place not in chosen)
            if (left, right) not in seen:
                seen.add((left, right))
                yield left, right


_SUM, _PRODUCT, _NUMBER = 0, 1, 2


def express(numbers: Numbers, target: int) -> str:
    """Return an expression of the numbers (ascending), each used once, that has the target's value.

    Raises:
        ValueError: there is no such expression.
    """
    return _express(numbers, target)[0]


def _express(numbers: Numbers, target: int) -> tuple[str, int]:
    """Return the expression and its outermost operation, which decides where brackets are needed."""
    if len(numbers) == 1 and numbers[0] == target:
        return str(target), _NUMBER
    for left, right in _halves(numbers):
        one, other = values(left), values(right)
        divides = one[(one != 0) & (target % np.where(one == 0, 1, one) == 0)]
        # For each operation: values of the left side, and the values that the right side then needs.
        for sign, given, needed in (
            ("+", one, target - one),
            ("-", one, one - target),
            ("r", one, one + target),
            ("*", divides, target // divides),
        ):
            hits = np.flatnonzero(np.isin(needed, other))
            if len(hits):
                return _join(sign, _express(left, int(given[hits[0]])), _express(right, int(needed[hits[0]])))
        if target == 0 and 0 in one:
            return _join("*", _express(left, 0), _express(right, int(other[0])))
    raise ValueError(f"{target} cannot be made from {numbers}")


def _join(sign: str, left: tuple[str, int], right: tuple[str, int]) -> tuple[str, int]:
    if sign == "r":
        sign, left, right = "-", right, left
    (one, rank), (other, other_rank) = left, right
    if sign == "*" and rank == _SUM:
        one = f"({one})"
    if sign != "+" and other_rank == _SUM:
        other = f"({other})"
    return f"{one}{sign}{other}", _PRODUCT if sign == "*" else _SUM


@functools.lru_cache(maxsize=1 << 14)
def _targets(numbers: Numbers, most: int) -> NDArray[np.int16]:
    """Return the targets from 1 to `most` that can be reached, ascending."""
    found = values(numbers)
    return found[(found >= 1) & (found <= most)].astype(np.int16)


@functools.lru_cache(maxsize=64)
def _density(task: Countdown) -> float:
    """Return half of the share of valid candidates in a fixed sample of 64 multisets, as a lower bound."""
    count = task.count // task.slots
    sample = [task._multiset(space.permuted(place % count, count)) for place in range(64)]
    return sum(len(_targets(numbers, task.target_max)) for numbers in sample) / (128 * task.slots)


@component(label="countdown")
class Countdown:
    """Problem set: reach a target with each of the given numbers exactly once: "3,5,7:22=" has the answer "3*5+7".

    Attributes:
        numbers: how many numbers are given, 2 to 6.
        limit: largest given number, 2 to 100.
        target_max: largest target, 1 to 1000.
    """

    numbers: Annotated[int, between(2, 6)] = 3
    limit: Annotated[int, between(2, 100)] = 10
    target_max: Annotated[int, between(1, 1000)] = 50

    @property
    def name(self) -> str:
        """Name, settings included."""
        return f"countdown:numbers={self.numbers},limit={self.limit},target_max={self.target_max}"

    @property
    def description(self) -> str:
        """One line for a reader."""
        return f"reach a target up to {self.target_max} with {self.numbers} numbers up to {self.limit} and + - *"

    @property
    def slots(self) -> int:
        """Candidates per multiset: two numbers reach at most 3 targets, three at most 27, which are numbered by rank."""
        return min(self.target_max, {2: 3, 3: 27}.get(self.numbers, self.target_max))

    @property
    def count(self) -> int:
        """Number of candidates: multisets of numbers times slots."""
        return math.comb(self.limit + self.numbers - 1, self.numbers) * self.slots

    @property
    def density(self) -> float:
        """Lower bound on the share of candidates whose target can be reached."""
        return _density(self)

    def _multiset(self, rank: int) -> Numbers:
        """Return the multiset of a rank, ascending (the combinatorial number system)."""
        found = []
        for place in range(self.numbers, 0, -1):
            # The largest n with C(n, place) <= rank; n - place + 1 is the number, counted with repetition.
            low, high = place - 1, self.limit + self.numbers - 1
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if math.comb(middle, place) <= rank else (low, middle - 1)
            rank -= math.comb(low, place)
            found.append(low - place + 2)
        return tuple(sorted(found))

    def _candidate(self, number: int) -> tuple[Numbers, int]:
        """Return the multiset and the target, 0 for a slot without one."""
        rank, slot = divmod(number, self.slots)
        numbers = self._multiset(rank)
        if self.slots == self.target_max:
            return numbers, slot + 1
        targets = _targets(numbers, self.target_max)
        return numbers, int(targets[slot]) if slot < len(targets) else 0

    def key(self, number: int) -> str:
        """Return the prompt."""
        numbers, target = self._candidate(number)
        return f"{','.join(map(str, numbers))}:{target}="

    def valid(self, number: int) -> bool:
        """Return whether the target can be reached."""
        numbers, target = self._candidate(number)
        return target in _targets(numbers, self.target_max)

    def size(self, split: str) -> int:
        """Number of problems in a split."""
        return space.size(self, split)

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of a split; `fields` has `difficulty`, `numbers` and `target`; the answer is one of many."""
        number = space.number(self, split, index)
        numbers, target = self._candidate(number)
        answer = express(numbers, target)
        fields = {"task": "countdown", "difficulty": self.numbers, "numbers": list(numbers), "target": target}
        return Problem(self.key(number), answer, answer, fields)

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return {"correct": 1.0 when the expression uses each number once and has the target's value, else 0.0}."""
        found = evaluate(completion)
        if found is None:
            return {"correct": 0.0}
        value, used = found
        right = value == problem.fields["target"] and Counter(used) == Counter(problem.fields["numbers"])
        return {"correct": float(right)}

    def alphabet(self) -> str:
        """All characters that occur in prompts and solutions."""
        return "0123456789,:=+-*()"
