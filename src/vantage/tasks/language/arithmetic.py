"""Addition, chained modular arithmetic and sorting: tasks whose answer is one string."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from vantage.core import between, component
from vantage.tasks.language import space
from vantage.tasks.language.problem import Problem

STEP = ";"
"""Ends a step of a worked solution; the answer stands after the last one."""


def final(completion: str) -> str:
    """Return the answer of a completion: what stands after its last step, without white space around it."""
    return completion.rpartition(STEP)[2].strip()


def graded(problem: Problem, completion: str) -> dict[str, float]:
    """Score 1 when the completion's answer is the problem's, letter by letter, else 0."""
    return {"correct": float(final(completion) == problem.answer)}


@component(label="addition")
class Addition:
    """Add two numbers of `digits` digits: "58+67=" has the answer "125".

    The scratchpad adds column by column from the right, each column with its carry: "8+7=15;5+6+1=12;125".

    Attributes:
        digits: digits of each number, 1 to 18.
        scratchpad: whether the worked solution shows the columns.
    """

    digits: Annotated[int, between(1, 18)] = 2
    scratchpad: bool = False

    @property
    def name(self) -> str:
        """The name, settings included."""
        return f"addition:digits={self.digits}" + (",scratchpad=true" if self.scratchpad else "")

    @property
    def description(self) -> str:
        """One line for people."""
        return f"add two numbers of {self.digits} digits"

    @property
    def _least(self) -> int:
        return 10 ** (self.digits - 1) if self.digits > 1 else 0

    @property
    def count(self) -> int:
        """Ordered pairs of numbers."""
        return int(10**self.digits - self._least) ** 2

    density = 1.0

    def _pair(self, number: int) -> tuple[int, int]:
        first, second = divmod(number, 10**self.digits - self._least)
        return first + self._least, second + self._least

    def key(self, number: int) -> str:
        """The pair without its order: a+b and b+a fall on the same side."""
        return "{}+{}=".format(*sorted(self._pair(number)))

    def valid(self, number: int) -> bool:
        """Every pair is a problem."""
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
        """Every character that a prompt or a solution can hold."""
        return "0123456789+=;"


def _columns(first: int, second: int) -> Iterator[str]:
    carry = 0
    for one, other in zip(reversed(str(first)), reversed(str(second))):
        total = int(one) + int(other) + carry
        yield f"{one}+{other}{'+1' if carry else ''}={total}"
        carry = total // 10


@component(label="modular")
class ModularChain:
    """Work from left to right, every result reduced modulo `modulus`: "7+3*5-2%10=" has the answer "8".

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
        """The name, settings included."""
        return f"modular:length={self.length},modulus={self.modulus}" + ("" if self.scratchpad else ",scratchpad=false")

    @property
    def description(self) -> str:
        """One line for people."""
        return f"a chain of {self.length} operations + - * modulo {self.modulus}, from left to right"

    @property
    def count(self) -> int:
        """First number in [0, modulus), then operations, each with a number in [1, modulus)."""
        return self.modulus * int(3 * (self.modulus - 1)) ** self.length

    density = 1.0

    def _chain(self, number: int) -> tuple[int, list[tuple[str, int]]]:
        steps = []
        for _ in range(self.length):
            number, step = divmod(number, 3 * (self.modulus - 1))
            steps.append(("+-*"[step % 3], step // 3 + 1))
        return number, steps

    def key(self, number: int) -> str:
        """The prompt."""
        start, steps = self._chain(number)
        return f"{start}{''.join(f'{sign}{value}' for sign, value in steps)}%{self.modulus}="

    def valid(self, number: int) -> bool:
        """Every chain is a problem."""
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
        """Every character that a prompt or a solution can hold."""
        return "0123456789+-*%=;"


@component(label="sorting")
class Sorting:
    """Sort digits: "53914=" has the answer "13459".

    Attributes:
        length: digits in the list, 2 to 32.
        symbols: how many different digits occur, from 0; 2 to 10.
    """

    length: Annotated[int, between(2, 32)] = 5
    symbols: Annotated[int, between(2, 10)] = 10

    @property
    def name(self) -> str:
        """The name, settings included."""
        return f"sorting:length={self.length}" + ("" if self.symbols == 10 else f",symbols={self.symbols}")

    @property
    def description(self) -> str:
        """One line for people."""
        return f"sort {self.length} digits"

    @property
    def count(self) -> int:
        """Lists of digits."""
        return int(self.symbols**self.length)

    density = 1.0

    def key(self, number: int) -> str:
        """The prompt."""
        digits = []
        for _ in range(self.length):
            number, digit = divmod(number, self.symbols)
            digits.append(str(digit))
        return f"{''.join(digits)}="

    def valid(self, number: int) -> bool:
        """Every list is a problem."""
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
        """Every character that a prompt or a solution can hold."""
        return "0123456789"[: self.symbols] + "="
