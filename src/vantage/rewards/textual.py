"""Verifiers that read a completion as text: exact, numeric, mathematical, by pattern, by schema, by letter.

Each is a frozen dataclass called with (problem, completion) that returns 1.0 or 0.0. `isolated` says that a call may run
long or crash and belongs in a worker process; the others take microseconds and run where they are called.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Protocol

from vantage.core.errors import UserError, require
from vantage.rewards.specs import within


class Graded(Protocol):
    """What a verifier reads of a problem."""

    @property
    def prompt(self) -> str | list[dict[str, str]]:
        """The question, as text or as chat messages."""
        ...

    @property
    def answer(self) -> str:
        """The reference answer."""
        ...

    @property
    def fields(self) -> Mapping[str, Any]:
        """Whatever else the problem came with."""
        ...


def _after(text: str, marker: str) -> str | None:
    """Return what follows the last `marker`, the whole text when there is no marker to look for, None when it is absent."""
    if not marker:
        return text
    _, found, rest = text.rpartition(marker)
    return rest if found else None


@dataclass(frozen=True)
class Exact:
    """Whether the completion is the reference answer, letter by letter after normalisation.

    Attributes:
        after: compare only what follows the last occurrence of this marker ('' for the whole completion).
        case: whether upper and lower case differ.
        space: whether white space inside counts; at the ends it never does.
    """

    after: str = ""
    case: bool = True
    space: bool = False
    isolated: ClassVar[bool] = False

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when they are the same, else 0.0."""
        found = _after(completion, self.after)
        return float(found is not None and self._normal(found) == self._normal(problem.answer))

    def _normal(self, text: str) -> str:
        text = text.strip() if self.space else " ".join(text.split())
        return text if self.case else text.casefold()


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
        text = _after(completion, self.after)
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
        found = _found(_after(answer, self.after) or answer)
        for each in _values(reversed(found)):
            return each
        raise ValueError(f"the reference answer {answer[:80]!r} has no number")


@dataclass(frozen=True)
class Math:
    """Whether the completion's expression equals the reference's, judged by the library math-verify.

    Attributes:
        seconds: time allowed for reading and for comparing, each; in a thread that is not the main one it is the
            caller's business to end it.

    Raises (when called):
        ImportError: math-verify is not installed.
        ValueError: the reference answer cannot be read as mathematics.
    """

    seconds: int = 5
    isolated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within("verifier math", "seconds", self.seconds, 1, 3600)

    def prepare(self) -> None:
        """Import the library ahead of the first call."""
        _math_verify()

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when the expressions are equal, else 0.0 (also when the time was not enough)."""
        library = _math_verify()
        # The library's clock is SIGALRM, which Python allows in the main thread alone.
        seconds = self.seconds if threading.current_thread() is threading.main_thread() else 0
        latex, plain = library.LatexExtractionConfig(boxed_match_priority=0), library.ExprExtractionConfig()
        marked = "$" in problem.answer or "\\boxed" in problem.answer
        reference = library.parse(
            problem.answer if marked else f"${problem.answer}$", extraction_config=[latex], parsing_timeout=seconds
        )
        if not reference:
            raise ValueError(f"the reference answer {problem.answer[:80]!r} cannot be read as mathematics")
        found = library.parse(completion, extraction_config=[latex, plain], parsing_timeout=seconds)
        return float(library.verify(reference, found, timeout_seconds=seconds))


@functools.cache
def _math_verify() -> Any:
    import logging

    library = require("math_verify", "language")
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return library


@dataclass(frozen=True)
class Regex:
    """Whether the completion holds the pattern; with a group named `answer`, whether that group is the reference answer.

    The dot matches line ends as well. A pattern can take exponential time on text made for it, hence `isolated`.

    Raises:
        UserError: the pattern is not a regular expression.
    """

    pattern: str
    full: bool = False
    case: bool = True
    isolated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        try:
            self._compiled()
        except re.error as error:
            raise UserError(f"verifier regex: pattern={self.pattern!r} is not a regular expression: {error}") from None

    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern, re.DOTALL | (0 if self.case else re.IGNORECASE))

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when the pattern (and its answer) is there, else 0.0."""
        pattern = self._compiled()
        text = completion.strip()
        match = pattern.fullmatch(text) if self.full else pattern.search(text)
        if match is None:
            return 0.0
        if "answer" not in pattern.groupindex:
            return 1.0
        normal = Exact(case=self.case)
        return float(normal._normal(match["answer"] or "") == normal._normal(problem.answer))


_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class JsonSchema:
    """Whether the completion (or its last fenced block) is JSON that satisfies a schema.

    Attributes:
        schema: path of the schema's file; '' to read the schema from the problem's field `schema`.

    Raises:
        UserError: the file is not there, or is not a JSON schema.
    """

    schema: str = ""
    isolated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.schema:
            self._checked()

    def prepare(self) -> None:
        """Import the library ahead of the first call."""
        require("jsonschema", "language")

    def _checked(self) -> Any:
        try:
            text = Path(self.schema).read_text("utf-8")
            return _validator(text)
        except (OSError, ValueError) as error:
            raise UserError(f"verifier json-schema: schema={self.schema!r}: {error}") from None

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when the JSON satisfies the schema, else 0.0."""
        if self.schema:
            validator = self._checked()
        elif "schema" in problem.fields:
            schema = problem.fields["schema"]
            validator = _validator(schema if isinstance(schema, str) else json.dumps(schema))
        else:
            raise ValueError("no schema: give the verifier one, or the problem a field `schema`")
        blocks = _FENCED.findall(completion)
        try:
            value = json.loads(blocks[-1] if blocks else completion)
        except (ValueError, RecursionError):
            return 0.0
        return float(validator.is_valid(value))


@functools.lru_cache(maxsize=256)
def _validator(text: str) -> Any:
    library, referencing = require("jsonschema", "language"), require("referencing", "language")
    schema = json.loads(text)
    maker = library.validators.validator_for(schema)
    try:
        maker.check_schema(schema)
    except library.exceptions.SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.message}") from None
    # A registry of our own: the library's default one would fetch references over the network.
    return maker(schema, registry=referencing.Registry())


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
