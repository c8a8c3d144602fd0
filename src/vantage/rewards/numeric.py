"""Verifier `numeric`: extraction of numbers from a text, and comparison with the reference answer's."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, ClassVar

from vantage.annotations import at_least, between
from vantage.core.component import component
from vantage.rewards.textual import Graded, after_marker

_DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3})(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?<![\w.])(?:[$€£¥₹]\s?)?(?P<sign>[-+]?)\\?(?:[$€£¥₹]\s?)?(?:(?P<digits>{_DIGITS})"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,3})(?![0-9])|\s?(?:[x*×]|\\times|\\cdot)\s?10\s?\^\s?\{?(?P<ten>[-+]?[0-9]{1,3})\}?|"
    r"\s?\^\s?\{?(?P<power>[-+]?[0-9]{1,3})\}?(?![0-9]))?)"
    r"(?:\s?/\s?(?P<below>[0-9]+(?:\.[0-9]+)?)(?![0-9])|"
    r"[ \t]+(?P<above>[0-9]+)\s?/\s?(?P<under>[0-9]+)(?![0-9/]|\.[0-9]))?"
    r"(?:\s?(?P<percent>\\?%|per\s?cent\b|٪))?"
)
_LONGEST = 400
_TRANSLATION = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2010\u2011\ufe63\uff0d", "-"), "\uff05": "%", "\uff0e": ".", "\uff0c": ",", "\u2044": "/",
        **{raised: f"^{plain}" for raised, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)},
        **{
            sign: " " + unicodedata.normalize("NFKC", sign).replace("\u2044", "/")
            for sign in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
        },
    }
)  # fmt: skip


def numbers(text: str) -> list[tuple[Fraction, bool]]:
    """Return the numbers in a text, exact, each with whether a percent sign follows it.

    Read are signs (a minus after a digit is a subtraction; one before a space is a sign after "=", "is" and the like, and
    before a number that is the whole text), separators of thousands (1,234; 1'234; 1{,}234; no plain spaces), decimals,
    exponents up to three digits (2e-7, 2 x 10^-7, 10^3), fractions (3/4, \\frac{3}{4}, ¾), mixed numbers (1 1/2), and digits of any
    script. A number after a letter is part of a name. Numbers of more than 400 digits and fractions over zero are left out.
    """
    return [each for match in _NUMBER.finditer(_plain(text)) for each in _values(match)]


def _plain(text: str) -> str:
    """Return the text with its numbers written in ASCII."""
    text = text.translate(_TRANSLATION)
    if not text.isascii():
        text = re.sub(r"[^\W_a-zA-Z0-9]", lambda match: str(unicodedata.digit(match[0], match[0])), text)
    text = re.sub(r"\^(\d)((?:\^\d)+)", lambda match: f"^{match[1]}{match[2].replace('^', '')}", text)
    text = re.sub(r"(?<=[0-9])(?:\{,\}|\\,|[\u00a0\u2009\u202f'’_])(?=[0-9]{3}(?![0-9]))", ",", text)
    text = re.sub(r"\\[dt]?frac\s*(?:\{\s*([0-9.]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9.]+)\s*\}|([0-9]))", _fraction, text)
    text = re.sub(r"^\s*([-+])\s+(?=\S+(?:[ \t]+[0-9]+/[0-9]+)?\s*$)", r"\1", text)
    return re.sub(
        r"([=:(<>≈]|\b(?:is|are|be|was|equals?|gives?|gets?)\b)([ \t]*[-+])[ \t]+(?=[$€£]?[0-9.])", r"\1\2", text
    )


def _fraction(match: re.Match[str]) -> str:
    # After a whole number it is the fraction of a mixed number.
    space = " " if match.start() and match.string[match.start() - 1].isdigit() else ""
    return f"{space}{match[1] or match[2]}/{match[3] or match[4]}"


def _values(match: re.Match[str]) -> Iterator[tuple[Fraction, bool]]:
    if any(len(part) > _LONGEST for part in match.groupdict().values() if part):
        return
    sign = -1 if match["sign"] == "-" else 1
    value = Fraction(match["digits"].replace(",", "").rjust(2, "0"))
    power, percent = int(match["power"] or 1), match["percent"] is not None
    if power != 1 and (value.denominator != 1 or value > 10**6 or (not value and power < 0)):
        yield sign * value, False
        value, power = Fraction(power), 1
    value = value**power * Fraction(10) ** int(match["exponent"] or match["ten"] or 0)
    if match["below"]:
        if Fraction(match["below"]):
            yield sign * value / Fraction(match["below"]), percent
    elif match["above"]:
        above, under = int(match["above"]), int(match["under"])
        if 0 < above < under and value.denominator == 1:
            yield sign * (value + Fraction(above, under)), percent
        else:
            yield sign * value, False
            if under:
                yield Fraction(above, under), percent
    else:
        yield sign * value, percent


@component(label="verifier numeric")
class Numeric:
    """Verifier that scores 1 where the completion's number equals the reference answer's.

    The completion's number is its last one, or the first after the last `after` marker; see `numbers`. Units are not
    compared. "50%" equals 50 and 0.5.

    Attributes:
        tolerance: allowed absolute difference; none for 1e-6, times the reference where that is below 1, so that 2e-7 is not 1e-7.
        relative: allowed difference as a share of the reference; the larger of the two applies.
        after: the marker that the answer must follow, such as "####"; '' for none.

    Raises (when called):
        ValueError: the reference answer has no number.
    """

    tolerance: Annotated[float, at_least(0)] | None = None
    relative: Annotated[float, between(0, 1)] = 0.0
    after: str = ""
    isolated: ClassVar[bool] = False

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when the numbers agree, else 0.0."""
        reference, percent = self._reference(problem.answer)
        text = after_marker(completion, self.after)
        value, parts = self._stated(text if text is not None else "", last=not self.after) or (None, False)
        if value is None:
            return 0.0
        size = abs(reference)
        near = min(size, Fraction(1)) / 10**6 if self.tolerance is None else Fraction(self.tolerance)
        near = max(near, Fraction(self.relative) * size)
        values = (
            [value, value / 100]
            if parts and not percent
            else [value, value * 100]
            if percent and not parts
            else [value]
        )
        return float(any(abs(each - reference) <= near for each in values))

    @staticmethod
    def _stated(text: str, last: bool) -> tuple[Fraction, bool] | None:
        matches = list(_NUMBER.finditer(_plain(text)))
        for match in reversed(matches) if last else matches:
            found = list(_values(match))
            if found:
                return found[-1 if last else 0]
        return None

    def _reference(self, answer: str) -> tuple[Fraction, bool]:
        found = self._stated(after_marker(answer, self.after) or answer, last=True)
        if found is None:
            raise ValueError(f"the reference answer {answer[:80]!r} has no number")
        return found
