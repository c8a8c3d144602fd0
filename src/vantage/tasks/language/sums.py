"""Sums of several numbers, and the calculator for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from vantage.core import between, component
from vantage.tasks.language import space
from vantage.tasks.language.arithmetic import STEP, graded
from vantage.tasks.language.problem import Problem
from vantage.tasks.language.sft import TURNS

_QUESTION = re.compile(r"([0-9]{1,18})([+*-])([0-9]{1,18})")


def calculate(text: str) -> str | None:
    """Return the calculator's reply to a turn: `=46;` to `12+34`, `=?;` to invalid input, None to an answer.

    A turn that contains one of the signs + - * is a question. Valid is one operation of two whole numbers of at most 18 digits.
    """
    question = text.strip()
    if not any(sign in question for sign in "+-*"):
        return None
    found = _QUESTION.fullmatch(question)
    if found is None:
        return f"=?{STEP}"
    first, sign, second = int(found[1]), found[2], int(found[3])
    value = first + second if sign == "+" else first - second if sign == "-" else first * second
    return f"={value}{STEP}"


@component(label="calculator")
class Sums:
    """Problem set: add `terms` numbers of `digits` digits: "12+34+56=" has the answer "102".

    A share of the worked solutions asks the calculator for each partial sum ("12+34", "=46;", "46+56", "=102;", "102"), the others
    answer at once: a policy that imitates them does both.

    Attributes:
        terms: number of terms, 2 to 6.
        digits: digits of each, 1 to 6.
        asked: share of the worked solutions that ask, 0 to 1.
        checked: share of these that ask one unnecessary question, "102+0", 0 to 1.
    """

    terms: Annotated[int, between(2, 6)] = 3
    digits: Annotated[int, between(1, 6)] = 2
    asked: Annotated[float, between(0, 1)] = 0.5
    checked: Annotated[float, between(0, 1)] = 0.0

    @property
    def name(self) -> str:
        """Name, settings included."""
        shares = {"asked": (self.asked, 0.5), "checked": (self.checked, 0.0)}
        told = "".join(f",{name}={share:g}" for name, (share, usual) in shares.items() if share != usual)
        return f"calculator:terms={self.terms},digits={self.digits}{told}"

    @property
    def description(self) -> str:
        """One line for a reader."""
        return f"add {self.terms} numbers of {self.digits} digits with a calculator at hand"

    @property
    def _least(self) -> int:
        return 10 ** (self.digits - 1) if self.digits > 1 else 0

    @property
    def count(self) -> int:
        """Number of ordered lists of numbers."""
        return int(10**self.digits - self._least) ** self.terms

    density = 1.0

    def _numbers(self, number: int) -> list[int]:
        found = []
        for _ in range(self.terms):
            number, one = divmod(number, 10**self.digits - self._least)
            found.append(one + self._least)
        return found

    def key(self, number: int) -> str:
        """Return the numbers without their order, so that all orders are in the same split."""
        return "+".join(map(str, sorted(self._numbers(number)))) + "="

    def valid(self, number: int) -> bool:
        """Return True: every list is a problem."""
        return True

    def size(self, split: str) -> int:
        """Number of problems in a split."""
        return space.size(self, split)

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of a split; `fields` has `difficulty` (digits) and, where its solution asks, `turns`."""
        terms = self._numbers(space.number(self, split, index))
        answer, prompt = str(sum(terms)), "+".join(map(str, terms)) + "="
        fields = {"task": "calculator", "difficulty": self.digits}
        # Whether it asks is a function of the problem's own text, so that it is the same in every process.
        if not space.held_out(f"ask {prompt}", self.asked):
            return Problem(prompt, answer, answer, fields)
        turns = _conversation([*terms, 0] if space.held_out(f"check {prompt}", self.checked) else terms)
        return Problem(prompt, answer, "".join(turns), {**fields, TURNS: turns})

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return {"correct": 1.0 or 0.0}: whether the last turn is the sum."""
        return graded(problem, completion)

    def alphabet(self) -> str:
        """All characters that occur in prompts, questions and answers."""
        return "0123456789+-*=?;"


def _conversation(terms: Sequence[int]) -> tuple[str, ...]:
    """Return the turns of a worked solution that asks for each partial sum."""
    said, total = [], terms[0]
    for term in terms[1:]:
        question = f"{total}+{term}"
        said += [question, str(calculate(question))]
        total += term
    return (*said, str(total))
