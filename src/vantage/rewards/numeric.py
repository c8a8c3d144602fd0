"""Verifier `numeric`: the numbers in a text, and whether the right one is the reference answer's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from vantage.rewards.specs import within
from vantage.rewards.textual import Graded, after_marker

_NUMBER = re.compile(
    r"(?<![\w.])\$?([-+]?)\\?\$?((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE]([-+]?[0-9]{1,3})(?![0-9]))?"
    r"(?:\s?/\s?([0-9]+(?:\.[0-9]+)?)(?![0-9]))?(?:\s?\\?(%))?"
)
_LONGEST = 400


def numbers(text: str) -> list[tuple[Fraction, bool]]:
    """Return the numbers in a text, exact, each with whether a percent sign follows it.

    Read are signs, thousands separators, decimals, exponents up to three digits, and fractions a/b. A minus after a digit
    is a subtraction, not a sign. Numbers of more than 400 digits and fractions over zero are left out.
    """
    return list(_values(_found(text)))


def _found(text: str) -> list[tuple[str, ...]]:
    return _NUMBER.findall(text.replace("\u2212", "-"))


def _values(found: Iterable[tuple[str, ...]]) -> Iterator[tuple[Fraction, bool]]:
    for sign, digits, exponent, below, percent in found:
        if len(digits) > _LONGEST or len(below) > _LONGEST:
            continue
        value = Fraction(digits.replace(",", "") if digits[0] != "." else "0" + digits)
        if exponent:
            value *= Fraction(10) ** int(exponent)
        if below:
            if not Fraction(below):
                continue
            value /= Fraction(below)
        yield (-value if sign == "-" else value), bool(percent)


@dataclass(frozen=True)
class Numeric:
    """Whether the completion's number is the reference answer's.

    The completion's last number counts, or the first after the last `after` marker. Commas, currency signs, fractions and
    percentages are read ("50%" answers 50 and 0.5).

    Attributes:
        tolerance: allowed absolute difference.
        relative: allowed difference as a share of the reference; the wider of the two holds.
        after: the marker that the answer must follow, such as "####"; '' for none.

    Raises (when called):
        ValueError: the reference answer has no number.
    """

    tolerance: float = 1e-6
    relative: float = 0.0
    after: str = ""
    isolated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        within("verifier numeric", "tolerance", self.tolerance, 0.0, 1e300)
        within("verifier numeric", "relative", self.relative, 0.0, 1.0)

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when the numbers agree, else 0.0."""
        reference, percent = self._reference(problem.answer)
        text = after_marker(completion, self.after)
        found = _found(text) if text is not None else []
        value, parts = next(_values(found if self.after else reversed(found)), (None, False))
        if value is None:
            return 0.0
        near = max(Fraction(self.tolerance), Fraction(self.relative) * abs(reference))
        values = (
            [value, value / 100]
            if parts and not percent
            else [value, value * 100]
            if percent and not parts
            else [value]
        )
        return float(any(abs(each - reference) <= near for each in values))

    def _reference(self, answer: str) -> tuple[Fraction, bool]:
        found = _found(after_marker(answer, self.after) or answer)
        for each in _values(reversed(found)):
            return each
        raise ValueError(f"the reference answer {answer[:80]!r} has no number")
