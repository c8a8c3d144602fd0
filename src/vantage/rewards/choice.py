"""Verifier `choice`: which letter of a multiple-choice question a completion states as its answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from vantage.rewards.specs import within
from vantage.rewards.textual import Graded

_LETTER = r"\(?\**([A-Z])\**\)?"
_CHOICES = (
    re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*" + _LETTER),
    re.compile(rf"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*\**\s*{_LETTER}(?![A-Za-z'])"),
    re.compile(rf"^\s*{_LETTER}\s*[.):]?(?:\s|$)", re.MULTILINE),
)


@dataclass(frozen=True)
class MultipleChoice:
    r"""Whether the completion chooses the reference's letter: "\boxed{B}", "the answer is (B)", "B." at a line's start.

    The reference is a letter, a number that counts from 0, or the text of one of the problem's field `choices`. The last
    match of the first form that occurs counts.

    Attributes:
        letters: how many there are, from A; a letter beyond them is not an answer.

    Raises (when called):
        ValueError: the reference answer is none of these.
    """

    letters: int = 10
    isolated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        within("verifier choice", "letters", self.letters, 2, 26)

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when the letters agree, else 0.0."""
        reference = self._reference(problem)
        for pattern in _CHOICES:
            found = [letter for letter in pattern.findall(completion) if ord(letter) - 65 < self.letters]
            if found:
                return float(found[-1] == reference)
        return 0.0

    def _reference(self, problem: Graded) -> str:
        answer = problem.answer.strip().strip("().")
        choices = [str(choice).strip() for choice in problem.fields.get("choices", ()) or ()]
        if answer in choices:
            return chr(65 + choices.index(answer))
        if len(answer) == 1 and 0 <= ord(answer.upper()) - 65 < self.letters:
            return answer.upper()
        if answer.isdecimal() and int(answer) < self.letters:
            return chr(65 + int(answer))
        raise ValueError(
            f"the reference answer {problem.answer[:80]!r} is neither a letter, a number nor one of the choices"
        )
