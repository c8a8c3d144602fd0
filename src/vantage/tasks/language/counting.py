"""Counting down: short answers are many, long ones few."""

from __future__ import annotations

import math
from typing import Annotated

from vantage.core import between, component
from vantage.tasks.language import space
from vantage.tasks.language.arithmetic import graded
from vantage.tasks.language.problem import Problem


@component(label="counting")
class Counting:
    """Count down from one number to another and say each number's last digit: "23:18=" has the answer "321098".

    Of all pairs with most >= first >= last >= 1, most + 1 - n have an answer of n characters: their mean is (most + 2) / 3, and in
    a batch the longest is nearly three times as long.

    Attributes:
        most: largest number to count from, 2 to 99; the longest answer has that many characters.
    """

    most: Annotated[int, between(2, 99)] = 40

    @property
    def name(self) -> str:
        """The name, settings included."""
        return f"counting:most={self.most}"

    @property
    def description(self) -> str:
        """One line for people."""
        return f"count down from a number of at most {self.most}, last digits only"

    @property
    def count(self) -> int:
        """Pairs of numbers."""
        return self.most * (self.most + 1) // 2

    density = 1.0

    def _pair(self, number: int) -> tuple[int, int]:
        # Pairs with the first number below n are n (n - 1) / 2.
        first = (1 + math.isqrt(8 * number + 1)) // 2
        return first, number - first * (first - 1) // 2 + 1

    def key(self, number: int) -> str:
        """The prompt."""
        first, last = self._pair(number)
        return f"{first}:{last}="

    def valid(self, number: int) -> bool:
        """Every pair is a problem."""
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
        """Every character that a prompt or a solution can hold."""
        return "0123456789:="
