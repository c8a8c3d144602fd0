"""Mixture of problem sets, as of different difficulty."""

from __future__ import annotations

import functools
import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from vantage.core import above, below, component, not_empty
from vantage.core.errors import UserError
from vantage.tasks.language.problem import Problem, ProblemSet, check_index, check_split


@component(label="mixed")
class Mixed:
    """Problem set that interleaves several sets so that every stretch of it has the given weights.

    A split is as large as the weights allow without repeating a problem of any set. The difficulty of a problem is its
    own `fields["difficulty"]`; `fields["part"]` is the number of its set.

    Attributes:
        parts: the problem sets.
        weights: a positive number for each, of any sum; () for equal ones.

    Raises:
        UserError: there is no set, there are not as many weights as sets, or a weight is not positive and finite.
    """

    parts: Annotated[tuple[ProblemSet, ...], not_empty]
    weights: tuple[Annotated[float, above(0), below(math.inf)], ...] = ()

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.parts):
            raise UserError(f"mixed: {len(self.weights)} weights for {len(self.parts)} parts")

    @property
    def name(self) -> str:
        """Names of the sets."""
        return " | ".join(part.name for part in self.parts)

    @property
    def description(self) -> str:
        """One line for a reader."""
        return "; ".join(part.description for part in self.parts)

    def size(self, split: str) -> int:
        """Number of problems in a split."""
        check_split(split)
        return len(_order(self, split)[0])

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of a split."""
        check_index("mixed", split, index, self.size(split))
        parts, places = _order(self, split)
        part = int(parts[index])
        found = self.parts[part].problem(split, int(places[index]))
        return Problem(found.prompt, found.answer, found.solution, {**found.fields, "part": part})

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return the scores by the problem's own set."""
        return self.parts[problem.fields["part"]].score(problem, completion)


@functools.lru_cache(maxsize=16)
def _order(mixed: Mixed, split: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return, for each problem, its set and its index there. Index j of n is placed at (j + 1/2) / n of the whole."""
    weights = np.array(mixed.weights or (1.0,) * len(mixed.parts))
    weights /= weights.sum()
    sizes = np.array([part.size(split) for part in mixed.parts])
    total = float((sizes / weights).min())
    counts = np.minimum((total * weights + 1e-6).astype(int), sizes)
    parts = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    places = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    order = np.argsort(np.concatenate([(np.arange(count) + 0.5) / count for count in counts]), kind="stable")
    return parts[order], places[order]
