"""Checks of values against annotations: ranges, choices and conditions that are declared with a type.

The vocabulary is that of `annotated_types`. The check is ours: attrs makes no dataclasses, of which `fields` and `replace` are used
everywhere; pydantic (156 ms to import) and beartype (110 ms; 1 is no float to it) report in texts of their own and refuse settings
that change during the run. Both also refuse names that a module imports for type checkers alone; here such a name is not checked.
"""

from __future__ import annotations

import builtins
import dataclasses
import difflib
import inspect
import sys
import types
from collections.abc import Callable, Collection, Iterable
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MinLen

Number = int | float


def above(low: Number) -> Gt:
    """Range of a number: above `low`. Combine it as in `Annotated[float, above(0), at_most(1)]`."""
    return Gt(low)


def at_least(low: Number) -> Ge:
    """Range of a number: `low` or more."""
    return Ge(low)


def below(high: Number) -> Lt:
    """Range of a number: below `high`."""
    return Lt(high)


def at_most(high: Number) -> Le:
    """Range of a number: `high` or less."""
    return Le(high)


def between(low: Number, high: Number) -> Interval:
    """Range of a number: `low` to `high`, both ends included."""
    return Interval(ge=low, le=high)


@dataclasses.dataclass(frozen=True, eq=False)  # an annotation is hashed, `known` may be a dictionary
class OneOf:
    """Choices: the members of a collection; use `Literal` where they are few and fixed."""

    known: Collection[Any]


def one_of(known: Collection[Any]) -> OneOf:
    """Choices: the members (or keys) of `known`, as they are when a value is checked."""
    return OneOf(known)


not_empty = MinLen(1)
"""Range of a text or a tuple: it is not empty."""


@dataclasses.dataclass(frozen=True)
class CheckedBy:
    """Condition on one value that is neither a range nor a choice."""

    function: Callable[[Any], Any]


def checked_by(function: Callable[[Any], Any]) -> CheckedBy:
    """Condition: `function(value)` raises a ValueError that says what the value is not (`'[' is not a regular expression`)."""
    return CheckedBy(function)


@dataclasses.dataclass(frozen=True)
class Hint:
    """Remedy for a value that is out of range, printed in the error."""

    text: str


def hint(text: str) -> Hint:
    """Remedy that follows the range in an error: `Annotated[float, above(0), hint("0 is greedy=True")]`."""
    return Hint(text)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return '; did you mean a, b?' for the known names nearest to `name`, or '' when none is near."""
    found = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; did you mean {', '.join(found)}?" if found else ""


class Check(NamedTuple):
    """Check of the values of one annotation."""

    noun: str
    fits: Callable[[Any], bool]  # whether the value is of the kind
    wrong: Callable[[str, Any], str | None]  # error message for a value that is not of the kind or out of its range


@cache
def checks_of(cls: Any) -> tuple[tuple[str, str, Check], ...]:
    """Return the checks of a dataclass's settings, cached: (field, name in errors, check)."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        names = _Names(vars(sys.modules.get(base.__module__, types)))
        for name, hint in inspect.get_annotations(base).items():
            hints[name] = eval(hint, {}, names) if isinstance(hint, str) else hint
    place = cls.__dict__.get("__place__", f"{cls.__name__}.")
    found = ((f.name, compiled(hints[f.name])) for f in dataclasses.fields(cls) if f.init)
    return tuple((name, f"{place}{name}", one) for name, one in found if one is not None)


class _Elsewhere(type):
    """Stand-in for a name that is imported for type checkers alone; every operation in an annotation is allowed."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, key: Any) -> Any:
        return cls


class _Anything(metaclass=_Elsewhere):
    pass


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):
            raise KeyError(name)
        return getattr(builtins, name, _Anything)


def compiled(hint: Any) -> Check | None:
    """Return the check of an annotation, None where nothing is checked."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _ranged(compiled(arguments[0]), hint.__metadata__)
    if origin is Literal:
        return _literal(arguments)
    if origin is Union or origin is types.UnionType:
        return _union([compiled(one) for one in arguments])
    if origin is tuple and arguments:
        return _sequence(arguments)
    return _PLAIN.get(hint) if isinstance(hint, type) else None


def _kind(noun: str, fits: Callable[[Any], bool]) -> Check:
    return Check(noun, fits, lambda place, value: None if fits(value) else f"{place}={value!r} is not {noun}")


_PLAIN = {
    bool: _kind("true or false", lambda v: isinstance(v, bool)),
    int: _kind("a whole number", lambda v: type(v) is int or _number(v, Integral)),
    float: _kind("a number", lambda v: type(v) is float or _number(v, Real)),
    str: _kind("text", lambda v: isinstance(v, str)),
    type(None): _kind("none", lambda v: v is None),
}


def _number(value: Any, kind: type) -> bool:
    return (isinstance(value, kind) and not isinstance(value, bool)) or callable(value)


def _ranged(inner: Check | None, metadata: tuple[Any, ...]) -> Check:
    """Add to the check of a kind the ranges, choices and conditions that are declared with it."""
    marks = [part for mark in metadata for part in (mark if isinstance(mark, GroupedMetadata) else (mark,))]
    tests = [test for mark in marks if (test := _test(mark, _range_text(marks))) is not None]
    number = any(isinstance(mark, Gt | Ge | Lt | Le) for mark in marks)
    kind = inner or _kind("anything", lambda value: True)

    def wrong(place: str, value: Any) -> str | None:
        problem = kind.wrong(place, value)
        if problem is None and not (number and callable(value)):
            for right, refuse in tests:
                if not right(value):
                    return refuse(place, value)
        return problem

    return Check(kind.noun, kind.fits, wrong)


def _test(mark: Any, text: str) -> tuple[Callable[[Any], bool], Callable[[str, Any], str]] | None:
    """Return a test of a value against one mark, and a function that makes its error; each range is false for NaN."""

    def refuse(place: str, value: Any) -> str:
        return f"{place}={value!r} is out of range: {text}"

    match mark:
        case Gt(gt=low):
            return lambda value: value > low, refuse
        case Ge(ge=low):
            return lambda value: value >= low, refuse
        case Lt(lt=high):
            return lambda value: value < high, refuse
        case Le(le=high):
            return lambda value: value <= high, refuse
        case MinLen(min_length=least):
            return lambda value: len(value) >= least, lambda place, value: f"{place} is empty"
        case OneOf(known=known):
            return lambda value: value in known, lambda place, value: _not_known(place, value, known)
        case CheckedBy(function=function):
            return (
                lambda value: not _reason(function, value),
                lambda place, value: f"{place}={value!r}: {_reason(function, value)}",
            )
    return None


def _not_known(place: str, value: Any, known: Collection[Any]) -> str:
    names = [str(name) for name in known]
    return f"{place}={value!r} is not known{nearest(str(value), names)} (known: {', '.join(names)})"


def _reason(function: Callable[[Any], Any], value: Any) -> str:
    try:
        function(value)
    except ValueError as error:
        return str(error)
    return ""


def _range_text(marks: list[Any]) -> str:
    words = {Gt: "above", Ge: "at least", Lt: "below", Le: "at most"}
    match [mark for mark in marks if type(mark) in words]:
        case [Ge(ge=low), Le(le=high)]:
            text = f"{low} to {high}"
        case ranges:
            text = ", ".join(f"{words[type(mark)]} {dataclasses.astuple(mark)[0]}" for mark in ranges)  # type: ignore[index]
    return "; ".join([text, *(mark.text for mark in marks if isinstance(mark, Hint))])


def _literal(known: tuple[Any, ...]) -> Check:
    kinds = {type(one) for one in known}
    pairs = {(type(one), one) for one in known}  # True is not 1

    def fits(value: Any) -> bool:
        return type(value) in kinds

    def wrong(place: str, value: Any) -> str | None:
        return None if fits(value) and (type(value), value) in pairs else _not_known(place, value, known)

    return Check(f"one of {', '.join(map(str, known))}", fits, wrong)


def _union(members: list[Check | None]) -> Check | None:
    checks = [one for one in members if one is not None]
    if not checks:
        return None
    anything = len(checks) < len(members)
    none = ", or none" if _PLAIN[type(None)] in checks else ""
    kind = _kind(
        " or ".join(one.noun for one in checks), lambda value: anything or any(one.fits(value) for one in checks)
    )

    def wrong(place: str, value: Any) -> str | None:
        problems = []
        for one in checks:
            if one.fits(value):
                problem = one.wrong(place, value)
                if problem is None:
                    return None
                problems.append(problem)
        return f"{problems[0]}{none}" if problems else kind.wrong(place, value)

    return Check(kind.noun, kind.fits, wrong)


def _sequence(arguments: tuple[Any, ...]) -> Check:
    """Check tuples (or lists) of one kind, or with one kind per position."""
    same = len(arguments) == 2 and arguments[1] is Ellipsis
    inner = [compiled(one) for one in (arguments[:1] if same else arguments)]

    def fits(value: Any) -> bool:
        return isinstance(value, tuple | list) and (same or len(value) == len(inner))

    kind = _kind("a list" if same else f"a list of {len(inner)}", fits)

    def wrong(place: str, value: Any) -> str | None:
        problem = kind.wrong(place, value)
        if problem is not None:
            return problem
        for index, held in enumerate(value):
            one = inner[0 if same else index]
            problem = one.wrong(f"{place}[{index}]", held) if one is not None else None
            if problem is not None:
                return problem
        return None

    return Check(kind.noun, fits, wrong)
