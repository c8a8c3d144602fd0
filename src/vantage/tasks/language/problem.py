"""Problem of a language task, and the interface of a set of problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from vantage.core.errors import UserError, unknown

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Problem:
    """Prompt with a verifiable answer.

    Attributes:
        prompt: text, or chat messages, each with `role` and `content`.
        answer: reference answer, as the verifier reads it.
        solution: worked text for supervised fine-tuning that ends in the answer in the form that the verifier reads;
            "" when there is none.
        fields: further fields of the problem (`difficulty`, `tests`, `choices`).
    """

    prompt: str | list[dict[str, str]]
    answer: str
    solution: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


class ProblemSet(Protocol):
    """Interface of problems by number in two splits, "train" and "test", that share no problem."""

    @property
    def name(self) -> str:
        """Name, settings included."""
        ...

    @property
    def description(self) -> str:
        """One line for a reader."""
        ...

    def size(self, split: str) -> int:
        """Number of problems in a split."""
        ...

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of a split, the same in every process and version.

        Raises:
            UserError: there is no such split, or the index is outside of [0, size).
        """
        ...

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return the named scores of a completion."""
        ...


def check_split(split: str) -> None:
    """Check the name of a split.

    Raises:
        UserError: the name is neither "train" nor "test".
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)


def check_index(name: str, split: str, index: int, size: int) -> None:
    """Check the number of a problem.

    Raises:
        UserError: the index is outside of [0, size).
    """
    if not 0 <= index < size:
        raise UserError(f"{name}: there is no problem {index} in {split!r}; it has {size}, numbered from 0")
