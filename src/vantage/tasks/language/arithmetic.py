"""Addition, chained modular arithmetic and sorting: tasks whose answer is one string."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from vantage.core import between, component
from vantage.tasks.language import space
from vantage.tasks.language.problem import Problem

STEP = ";"
"""Separator after a step of a worked solution; the answer follows the last one."""


def final(completion: str) -> str:
    """Return the answer of a completion: the text after its last step, stripped of white space."""
    return completion.rpartition(STEP)[2].strip()


def graded(problem: Problem, completion: str) -> dict[str, float]:
    """Score a completion 1 when its answer equals the problem's exactly, else 0."""
    return {"correct": float(final(completion) == problem.answer)}


@component(label="addition")
class Addition:
    """Problem set: add two numbers of `digits` digits: "58+67=" has the answer "125".

    The scratchpad adds column by column from the right, each column with its carry: "8+7=15;5+6+1=12;125".

    Attributes:
        digits: digits of each number, 1 to 18.
        scratchpad: whether the worked solution shows the columns.
    """

    digits: Annotated[int, between(1, 18)] = 2
    scratchpad: bool = False

    @property
    def name(self) -> str:
        """Name, settings included."""
        return f"addition:digits={self.digits}" + (",scratchpad=true" if self.scratchpad else "")

    @property
    def description(self) -> str:
        """One line for a reader."""
        return f"add two numbers of {self.digits} digits"

    @property
    def _least(self) -> int:
        return 10 ** (self.digits - 1) if self.digits > 1 else 0

    @property
    def count(self) -> int:
        """Number of ordered pairs of numbers."""
        return int(10**self.digits - self._least) ** 2

    density = 1.0

    def _pair(self, number: int) -> tuple[int, int]:
        first, second = divmod(number, 10**self.digits - self._least)
        return first + self._least, second + self._least

    def key(self, number: int) -> str:
        """Return the pair without its order, so that a+b and b+a are in the same split."""
        return "{}+{}=".format(*sorted(self._pair(number)))

    def valid(self, number: int) -> bool:
        """Return True: every pair is a problem."""
        return True

    def size(self, split: str) -> int:
        """Number of problems in a split."""
        return space.size(self, split)

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of a split; `fields` has `difficulty` (digits) and `carries` (columns that carry)."""
        first, second = self._pair(space.number(self, split, index))
        answer = str(first + second)
        steps = list(_columns(first, second))
        carries = sum(step.rpartition("=")[2] != step.rpartition("=")[2][-1] for step in steps)
        solution = STEP.join([*steps, answer]) if self.scratchpad else answer
        fields = {"task": "addition", "difficulty": self.digits, "carries": carries}
        return Problem(f"{first}+{second}=", answer, solution, fields)

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return {"correct": 1.0 or 0.0}."""
        return graded(problem, completion)

    def alphabet(self) -> str:
        """All characters that occur in prompts and solutions."""
        return "0123456789+=;"


def _columns(first: int, second: int) -> Iterator[str]:
    carry = 0
    for one, other in zip(reversed(str(first)), reversed(str(second))):
        total = int(one) + int(other) + carry
        yield f"{one}+{other}{'+1' if carry else ''}={total}"
        carry = total // 10


@component(label="modular")
class ModularChain:
    """Problem set: evaluate a chain from left to right, reducing every result modulo `modulus`: "7+3*5-2%10=" is "8".

    There is no precedence: 7+3 is 0, 0*5 is 0, 0-2 is 8 (modulo 10). The worked solution is "7+3=0;0*5=0;0-2=8;8".

    Attributes:
        length: operations in the chain, 1 to 12.
        modulus: 2 to 100.
        scratchpad: whether the worked solution shows the steps.
    """

    length: Annotated[int, between(1, 12)] = 3
    modulus: Annotated[int, between(2, 100)] = 10
    scratchpad: bool = True

    @property
    def name(self) -> str:
        """Name, settings included."""
        return f"modular:length={self.length},modulus={self.modulus}" + ("" if self.scratchpad else ",scratchpad=false")

    @property
    def description(self) -> str:
        """One line for a reader."""
        return f"a chain of {self.length} operations + - * modulo {self.modulus}, from left to right"

    @property
    def count(self) -> int:
        """Number of chains: a number in [0, modulus), then operations, each with a number in [1, modulus)."""
        return self.modulus * int(3 * (self.modulus - 1)) ** self.length

    density = 1.0

    def _chain(self, number: int) -> tuple[int, list[tuple[str, int]]]:
        steps = []
        for _ in range(self.length):
            number, step = divmod(number, 3 * (self.modulus - 1))
            steps.append(("+-*"[step % 3], step // 3 + 1))
        return number, steps

    def key(self, number: int) -> str:
        """Return the prompt."""
        start, steps = self._chain(number)
        return f"{start}{''.join(f'{sign}{value}' for sign, value in steps)}%{self.modulus}="

    def valid(self, number: int) -> bool:
        """Return True: every chain is a problem."""
        return True

    def size(self, split: str) -> int:
        """Number of problems in a split."""
        return space.size(self, split)

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of a split; `fields` has `difficulty` (the length)."""
        number = space.number(self, split, index)
        value, steps = self._chain(number)
        worked = []
        for sign, operand in steps:
            total = value + operand if sign == "+" else value - operand if sign == "-" else value * operand
            worked.append(f"{value}{sign}{operand}={total % self.modulus}")
            value = total % self.modulus
        solution = STEP.join([*worked, str(value)]) if self.scratchpad else str(value)
        return Problem(self.key(number), str(value), solution, {"task": "modular", "difficulty": self.length})

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return {"correct": 1.0 or 0.0}."""
        return graded(problem, completion)

    def alphabet(self) -> str:
        """All characters that occur in prompts and solutions."""
        return "0123456789+-*%=;"


@component(label="sorting")
class Sorting:
    """Problem set: sort digits: "53914=" has the answer "13459".

    Attributes:
        length: digits in the list, 2 to 32.
        symbols: number of different digits, from 0; 2 to 10.
    """

    length: Annotated[int, between(2, 32)] = 5
    symbols: Annotated[int, between(2, 10)] = 10

    @property
    def name(self) -> str:
        """Name, settings included."""
        return f"sorting:length={self.length}" + ("" if self.symbols == 10 else f",symbols={self.symbols}")

    @property
    def description(self) -> str:
        """One line for a reader."""
        return f"sort {self.length} digits"

    @property
    def count(self) -> int:
        """Number of lists of digits."""
        return int(self.symbols**self.length)

    density = 1.0

    def key(self, number: int) -> str:
        """Return the prompt."""
        digits = []
        for _ in range(self.length):
            number, digit = divmod(number, self.symbols)
            digits.append(str(digit))
        return f"{''.join(digits)}="

    def valid(self, number: int) -> bool:
        """Return True: every list is a problem."""
        return True

    def size(self, split: str) -> int:
        """Number of problems in a split."""
        return space.size(self, split)

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of a split; `fields` has `difficulty` (the length)."""
        prompt = self.key(space.number(self, split, index))
        answer = "".join(sorted(prompt[:-1]))
        return Problem(prompt, answer, answer, {"task": "sorting", "difficulty": self.length})

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return {"correct": 1.0 or 0.0}."""
        return graded(problem, completion)

    def alphabet(self) -> str:
        """All characters that occur in prompts and solutions."""
        return "0123456789"[: self.symbols] + "="
