"""Additions, some with a draft of the answer that may be wrong."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Annotated

from vantage.core import between, component
from vantage.tasks.language import space
from vantage.tasks.language.arithmetic import Addition, graded
from vantage.tasks.language.problem import Problem


@component(label="drafted")
class Drafted:
    """Problem set: additions with a draft before a share of the training problems: "115;58+67=" has the answer "125".

    A wrong draft has one digit of the answer replaced. A policy that imitates these solutions learns to use a draft, and that it
    may be wrong. Held-out problems are plain additions, so that an evaluation measures answers to the question alone.

    Attributes:
        digits: digits of each number, 1 to 18.
        shown: share of the training problems that have a draft, 0 to 1.
        right: share of the drafts that are correct, 0 to 1.
    """

    digits: Annotated[int, between(1, 18)] = 2
    shown: Annotated[float, between(0, 1)] = 0.5
    right: Annotated[float, between(0, 1)] = 0.5

    @property
    def name(self) -> str:
        """Name, settings included."""
        return f"drafted:digits={self.digits},shown={self.shown:g},right={self.right:g}"

    @property
    def description(self) -> str:
        """One line for a reader."""
        return f"add two numbers of {self.digits} digits, some with a draft of the answer"

    @cached_property
    def _plain(self) -> Addition:
        return Addition(self.digits)

    def size(self, split: str) -> int:
        """Number of problems in a split."""
        return self._plain.size(split)

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of a split; `fields` is the addition's, and has `draft` where one is shown."""
        found = self._plain.problem(split, index)
        prompt, fields = str(found.prompt), {**found.fields, "task": "drafted"}
        # The draft is a function of the problem's own text, so that it is the same in every process.
        if split == "train" and space.held_out(f"draft {prompt}", self.shown):
            wrong = not space.held_out(f"right {prompt}", self.right)
            fields["draft"] = _blurred(prompt, found.answer) if wrong else found.answer
            prompt = f"{fields['draft']};{prompt}"
        return Problem(prompt, found.answer, found.solution, fields)

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return {"correct": 1.0 or 0.0}."""
        return graded(problem, completion)

    def alphabet(self) -> str:
        """All characters that occur in prompts, drafts and solutions."""
        return "0123456789+=;"


def _blurred(prompt: str, answer: str) -> str:
    """Return the answer with one digit replaced by another, chosen by the prompt's text."""
    chosen = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "little")
    place, shift = chosen % len(answer), chosen // len(answer) % 9 + 1
    return answer[:place] + str((int(answer[place]) + shift) % 10) + answer[place + 1 :]
