"""Additions, half of them easy, half hard with hints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated

from vantage.core import between, component
from vantage.tasks.language import space
from vantage.tasks.language.arithmetic import Addition, graded
from vantage.tasks.language.problem import Problem, check_index

PARTS = 4
"""Largest number of steps of a hint."""


@component(label="hinted")
class Hinted:
    """Problem set: one-digit additions, which are few and repeat, in turn with harder ones that have hints.

    Held-out problems are hard ones, without a hint in the prompt. The hints are in a hard problem's `fields`:
    {stage: steps}, with at most four steps per stage. For 658+671=, whose columns add up to 9, 12 and 12:

        knowledge   0 1 1 2      whether each column carries, the units first, and how many do
        planning    4 9 12 12    digits of the answer, its last one, and the sums of the other columns without carries
        solution    1 3 2 9      the answer, digit by digit

    Attributes:
        digits: digits of a hard problem's numbers, 2 to 3.
        shown: share of the hard training problems whose prompt has a hint, as "K0 1;658+671=" has the first two steps of
            the stage `knowledge`; 0 to 1. A policy that imitates these solutions learns to use hints.
    """

    digits: Annotated[int, between(2, 3)] = 3
    shown: Annotated[float, between(0, 1)] = 0.0

    @property
    def name(self) -> str:
        """Name, settings included."""
        return f"hinted:digits={self.digits}" + (f",shown={self.shown:g}" if self.shown else "")

    @property
    def description(self) -> str:
        """One line for a reader."""
        return f"add two numbers of 1 digit, or of {self.digits} digits with hints"

    @cached_property
    def _parts(self) -> tuple[Addition, Addition]:
        return Addition(1), Addition(self.digits)

    def size(self, split: str) -> int:
        """Number of problems in a split."""
        return self._parts[1].size(split) * (2 if split == "train" else 1)

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of a split; `fields` has `difficulty` (digits) and, of a hard one, `hints`."""
        check_index(self.name, split, index, self.size(split))
        easy, hard = self._parts
        if split == "train":
            index, second = divmod(index, 2)
            if not second:
                found = easy.problem(split, index % easy.size(split))
                return Problem(found.prompt, found.answer, found.solution, {**found.fields, "task": "hinted"})
        found = hard.problem(split, index)
        prompt = str(found.prompt)
        given = hints(prompt, found.answer)
        fields = {**found.fields, "task": "hinted", "hints": given}
        # The hint is a function of the problem's own text, so that it is the same in every process.
        if split == "train" and space.held_out(f"hint {prompt}", self.shown):
            level = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "little")
            stage = list(given)[level % len(given)]
            part = level // len(given) % len(given[stage]) + 1
            prompt = f"{stage[0].upper()}{' '.join(given[stage][:part])};{prompt}"
        return Problem(prompt, found.answer, found.solution, fields)

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return {"correct": 1.0 or 0.0}."""
        return graded(problem, completion)

    def alphabet(self) -> str:
        """All characters that occur in prompts, hints and solutions."""
        return "0123456789+=; KPS"


def hints(prompt: str, answer: str) -> Mapping[str, tuple[str, ...]]:
    """Return the hints of an addition "658+671=": {stage: steps}, the weakest stage first."""
    first, _, second = prompt.rstrip("=").partition("+")
    columns = [int(one) + int(other) for one, other in zip(reversed(first), reversed(second), strict=True)]
    carries: list[int] = []
    for column in columns:
        carries.append(int(column + (carries[-1] if carries else 0) > 9))
    return {
        "knowledge": (*map(str, carries), str(sum(carries))),
        "planning": (str(len(answer)), answer[-1], *map(str, columns[1:])),
        "solution": tuple(answer),
    }
