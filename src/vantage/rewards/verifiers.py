"""Verifiers, which score a completion as an answer to a problem: made from a specification, mixed by name and weight.

verifier("numeric:tolerance=1e-6,after=####")      rewards(["correct=math", "format*0.2=regex:<answer>.*</answer>"])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from types import MappingProxyType
from typing import Annotated, Any, Protocol

from vantage.core import component, not_empty
from vantage.core.errors import UserError, unknown
from vantage.rewards.choice import MultipleChoice
from vantage.rewards.mathematics import Math
from vantage.rewards.numeric import Numeric
from vantage.rewards.programs import Code, PythonFunction
from vantage.rewards.specs import build, parse
from vantage.rewards.textual import Exact, Graded, JsonSchema, Regex

__all__ = [
    "VERIFIERS",
    "Code",
    "Exact",
    "Graded",
    "JsonSchema",
    "Math",
    "MultipleChoice",
    "Numeric",
    "PythonFunction",
    "Regex",
    "Rewards",
    "Score",
    "Verifier",
    "named_scores",
    "rewards",
    "verifier",
]

Score = float | Mapping[str, float] | None
"""A number (NaN or None: missing), or several by name."""


class Verifier(Protocol):
    """Interface of a verifier: any function of (problem, completion).

    It may also have `isolated` (True: run it in a worker process, False: in the calling process; functions without it run in
    a worker where they can be pickled) and `prepare()`, called once in a worker before its first row.
    """

    def __call__(self, problem: Any, completion: str, /) -> Score:
        """Return the score of `completion` as an answer to `problem`."""
        ...


VERIFIERS: Mapping[str, Callable[..., Verifier]] = MappingProxyType(
    {
        "exact": Exact,
        "numeric": Numeric,
        "math": Math,
        "regex": Regex,
        "json-schema": JsonSchema,
        "choice": MultipleChoice,
        "multiple-choice": MultipleChoice,
        "python": PythonFunction,
        "code": Code,
    }
)
_PRIMARY = {"regex": "pattern", "json-schema": "schema", "python": "path"}


def verifier(spec: str) -> Verifier:
    """Make a verifier from a specification: "math", "numeric:tolerance=1e-6", "regex:PATTERN", "python:file.py:function".

    Raises:
        UserError: a verifier or setting is unknown (with the nearest names), or a value is invalid.
    """
    name, settings = parse("verifier", spec, VERIFIERS, _PRIMARY)
    made: Verifier = build("verifier", name, VERIFIERS[name], settings)
    return made


def named_scores(name: str, score: Any) -> dict[str, float]:
    """Return a verifier's result as numbers by name: `name` for a number, `name/key` for several ("" adds nothing).

    Raises:
        ValueError: the score, or one of them, is not a number, or is infinite.
    """
    if isinstance(score, Mapping):
        return {f"{name}/{key}" if name else str(key): _number(key, value) for key, value in score.items()}
    return {name or "score": _number(name, score)}


def _number(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"the score {name!r} is {value!r:.80}, not a number") from None
    if math.isinf(number):
        raise ValueError(f"the score {name!r} is infinite")
    return number


@component(label="rewards")
class Rewards:
    """Several verifiers by name, recorded separately and summed by weight.

    Raises:
        UserError: there is no verifier, or a weight has an unknown name or is not finite.
    """

    verifiers: Annotated[Mapping[str, Verifier], not_empty]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name.partition("/")[0] not in self.verifiers:
                raise unknown("reward", name, self.verifiers, "the weights")
            if not math.isfinite(weight):
                raise UserError(f"rewards: the weight of {name!r} is {weight}; it must be finite")

    def __call__(self, problem: Any, completion: str) -> dict[str, float]:
        """Return every score by name."""
        found: dict[str, float] = {}
        for name, each in self.verifiers.items():
            found |= named_scores(name, each(problem, completion))
        return found

    def weight(self, column: str) -> float:
        """Return the weight of a score: its own, else its verifier's, else 1."""
        return self.weights.get(column, self.weights.get(column.partition("/")[0], 1.0))

    def total(self, scores: Mapping[str, float]) -> float:
        """Return the weighted sum of one row's scores; missing ones (NaN) add nothing, and all missing is NaN."""
        present = {name: score for name, score in scores.items() if not math.isnan(score) and name != "errors"}
        return sum(self.weight(name) * score for name, score in present.items()) if present else math.nan


def rewards(specs: Sequence[str]) -> Rewards:
    """Make rewards from specifications `[NAME[*WEIGHT]=]VERIFIER`; a verifier without NAME has its own name.

    Raises:
        UserError: a specification is invalid, or a name is given twice.
    """
    made: dict[str, Verifier] = {}
    weights: dict[str, float] = {}
    for spec in specs:
        head, equals, rest = spec.partition("=")
        # The first "=" of "numeric:tolerance=0" is in the settings.
        name, body = (head, rest) if equals and ":" not in head else (spec.partition(":")[0], spec)
        name, star, weight = name.strip().partition("*")
        name = name.strip()
        if name in made or not name or name == "errors":
            raise UserError(
                f"reward {spec!r}: the name {name!r} is {'taken' if name else 'empty'}; write NAME=VERIFIER"
            )
        if star:
            try:
                weights[name] = float(weight)
            except ValueError:
                raise UserError(f"reward {spec!r}: the weight {weight!r} is not a number") from None
        made[name] = verifier(body)
    return Rewards(made, weights)
