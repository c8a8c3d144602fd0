"""Counting-down problems, with many short answers and few long ones."""

from __future__ import annotations

import math
from typing import Annotated

from vantage.core import between, component
from vantage.tasks.language import space
from vantage.tasks.language.arithmetic import graded
from vantage.tasks.language.problem import Problem


@component(label="counting")
class Counting:
    """Problem set: count down from one number to another by last digits: "23:18=" has the answer "321098".

    Of all pairs with most >= first >= last >= 1, most + 1 - n have an answer of n characters: their mean is (most + 2) / 3, and in
    a batch the longest is nearly three times as long.

    Attributes:
        most: largest number to count from, 2 to 99; the longest answer has that many characters.
    """

    most: Annotated[int, between(2, 99)] = 40

    @property
    def name(self) -> str:
        """Name, settings included."""
        return f"counting:most={self.most}"

    @property
    def description(self) -> str:
        """One line for a reader."""
        return f"count down from a number of at most {self.most}, last digits only"

    @property
    def count(self) -> int:
        """Number of pairs of numbers."""
        return self.most * (self.most + 1) // 2

    density = 1.0

    def _pair(self, number: int) -> tuple[int, int]:
        # Pairs with the first number below n are n (n - 1) / 2.
        first = (1 + math.isqrt(8 * number + 1)) // 2
        return first, number - first * (first - 1) // 2 + 1

    def key(self, number: int) -> str:
        """Return the prompt."""
        first, last = self._pair(number)
        return f"{first}:{last}="

    def valid(self, number: int) -> bool:
        """Return True: every pair is a problem."""
        return True

    def size(self, split: str) -> int:
        """Number of problems in a split."""
        return space.size(self, split)

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of a split; `fields` has `difficulty` (characters of the answer)."""
        number = space.number(self, split, index)
        first, last = self._pair(number)
        answer = "".join(str(value % 10) for value in range(first, last - 1, -1))
        return Problem(self.key(number), answer, answer, {"task": "counting", "difficulty": len(answer)})

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return {"correct": 1.0 or 0.0}."""
        return graded(problem, completion)

    def alphabet(self) -> str:
        """All characters that occur in prompts and solutions."""
        return "0123456789:="
