"""Python values as text that can be parsed without execution. Runs in the sandbox as well: standard library alone.

A value is described by literals: numbers, texts, bytes, None, True and False describe themselves, everything else is a tuple
that begins with its type: ("list", [...]), ("Counter", [(key, count), ...]). Subclasses become the type that they extend, by
that type's own methods, so that a class's own `==` has no effect.
"""

from __future__ import annotations

import ast
import collections
import decimal
import fractions
import math
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_ASCII = ascii
_LONG = 10_000
"""Number of bits beyond which whole numbers are written in base 16, whose length Python does not limit."""
_MOST = 10_000
"""Largest number of items that are read from an iterator."""
_LAZY: tuple[type, ...] = (types.GeneratorType, map, filter, zip, enumerate, reversed)
_EMPTY: Any = ([], (), range(0), set(), {}, "")
_ITERATORS: tuple[type, ...] = (*_LAZY, *(type(iter(one)) for one in _EMPTY))


class NotPlainError(TypeError):
    """Value without a description: a function, a file, an object of a class of the program's own."""


def describe(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """Return the description of a value.

    Args:
        value: value to describe.
        other: describes values without a description of their own; NotPlainError is raised without it.

    Raises:
        NotPlainError: a value has no description, or an iterator has too many items.
    """
    if value is None or value is True or value is False:
        return value
    if value is Ellipsis:
        return ("Ellipsis",)
    if isinstance(value, int):
        number = int.__index__(value)
        return number if number.bit_length() < _LONG else ("int", hex(number))
    if isinstance(value, float):
        number_ = float.__float__(value)
        return number_ if math.isfinite(number_) else ("float", float.__repr__(number_))
    if isinstance(value, complex):
        return ("complex", describe(complex.__pos__(value).real), describe(complex.__pos__(value).imag))
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return bytes.__getitem__(value, slice(None))
    if isinstance(value, bytearray):
        return ("bytearray", bytes(value))
    if isinstance(value, list):
        return ("list", [describe(one, other) for one in list.__iter__(value)])
    if isinstance(value, tuple):
        return ("tuple", [describe(one, other) for one in tuple.__iter__(value)])
    if isinstance(value, set):
        return ("set", [describe(one, other) for one in set.__iter__(value)])
    if isinstance(value, frozenset):
        return ("frozenset", [describe(one, other) for one in frozenset.__iter__(value)])
    if isinstance(value, dict):
        kinds = (collections.Counter, collections.OrderedDict)
        name = next((one.__name__ for one in kinds if isinstance(value, one)), "dict")
        return (name, [(describe(key, other), describe(one, other)) for key, one in dict.items(value)])
    if isinstance(value, collections.deque):
        return ("deque", [describe(one, other) for one in collections.deque.__iter__(value)], value.maxlen)
    if isinstance(value, range):
        return ("range", value.start, value.stop, value.step)
    if isinstance(value, fractions.Fraction):
        return ("Fraction", describe(value.numerator), describe(value.denominator))
    if isinstance(value, decimal.Decimal):
        return ("Decimal", decimal.Decimal.__str__(value))
    if isinstance(value, (type({}.keys()), type({}.values()), type({}.items()))):
        kept: Any = value
        return describe(list(kept) if isinstance(value, type({}.values())) else set(kept), other)
    if isinstance(value, _ITERATORS):
        taken: list[Any] = []
        each: Any = value
        for one in each:
            taken.append(describe(one, other))
            if len(taken) > _MOST:
                raise NotPlainError(f"an iterator of more than {_MOST} items")
        return ("iterator", taken)
    if other is not None:
        return other(value)
    raise NotPlainError(f"{type(value).__name__} has no description")


def build(described: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """Return the value of a description.

    Args:
        described: as `describe` gives it, or anything at all.
        other: inverse of `other` of `describe`.

    Raises:
        NotPlainError: `described` is not a description.
    """
    if not isinstance(described, tuple):
        return described
    match described:
        case ("Ellipsis",):
            return Ellipsis
        case ("int", str(text)):
            return int(text, 16)
        case ("float", str(text)):
            return float(text)
        case ("complex", real, imag):
            return complex(build(real), build(imag))
        case ("bytearray", bytes(text)):
            return bytearray(text)
        case (("list" | "tuple" | "set" | "frozenset" | "iterator") as name, list(items)):
            made = [build(one, other) for one in items]
            return (
                iter(made)
                if name == "iterator"
                else {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[name](made)
            )
        case (("dict" | "Counter" | "OrderedDict") as name, list(pairs)):
            kind = {"dict": dict, "Counter": collections.Counter, "OrderedDict": collections.OrderedDict}[name]
            made_dict: Any = kind()
            for key, one in pairs:
                made_dict[build(key, other)] = build(one, other)
            return made_dict
        case ("deque", list(items), None | int() as most):
            return collections.deque([build(one, other) for one in items], most)
        case ("range", int(start), int(stop), int(step)):
            return range(start, stop, step)
        case ("Fraction", numerator, denominator):
            return fractions.Fraction(build(numerator), build(denominator))
        case ("Decimal", str(text)):
            return decimal.Decimal(text)
    if other is not None:
        return other(described)
    raise NotPlainError(f"{described!r:.80} is no description of a value")


def to_text(described: Any) -> str:
    """Return a description as one line of ASCII."""
    return _ASCII(described)


def from_text(text: str) -> Any:
    """Return the description in a line.

    Raises:
        NotPlainError: the line is not made of literals.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise NotPlainError(f"{text[:80]!r} is no description: {error}") from None
