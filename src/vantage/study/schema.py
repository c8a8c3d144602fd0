"""Conversion of frozen dataclasses to JSON and back, with checks of types and of missing and unknown fields."""

from __future__ import annotations

import dataclasses
import math
import os
import secrets
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from vantage.core.errors import UserError, nearest

Record = TypeVar("Record")

NAN_IS_NULL = "a number that may be NaN; null in JSON"
"""Mark for `Annotated[float, NAN_IS_NULL]`."""


def encode(value: Any) -> Any:
    """Convert a dataclass to JSON values: tuples to lists, mappings to dicts, numbers that are not finite to None."""
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def decode(kind: type[Record], value: object, where: str) -> Record:
    """Build a `kind` from JSON values.

    Args:
        kind: a dataclass whose fields are annotated with str, int, float, bool, Any, Literal, `X | None`,
            `Mapping[str, X]`, `tuple[X, ...]`, `tuple[X, Y]`, `Annotated[float, NAN_IS_NULL]` or further dataclasses.
        value: result of `json.loads`.
        where: name of the place in an error.

    Raises:
        UserError: a field is missing, unknown or of another type.
    """
    result: Record = _decode(kind, value, where)
    return result


def plain(value: Any, where: str) -> Any:
    """Return a copy of JSON values alone: tuples to lists, numpy scalars to numbers, inf and nan to their text.

    Raises:
        UserError: a value (a tensor, an object) has no JSON form; the caller should give its text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item(), where)
    raise UserError(f"{where} is of type {type(value).__name__}, which JSON cannot hold; give its text, str(value)")


def write_atomically(path: str | Path, text: str) -> None:
    """Write text atomically: a reader finds the old file or the complete new one.

    Raises:
        UserError: the file cannot be written there.
    """
    path = Path(path)
    # Not tempfile: its files are private, and a result is as readable as any other file that the user makes.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(draft, "x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _decode(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    origin, args = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return math.nan if value is None and NAN_IS_NULL in args else _decode(args[0], value, where)
    if origin in (Union, types.UnionType):
        return None if value is None else _decode(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise _wrong(f"one of {', '.join(map(repr, args))}", value, where)
        return value
    if origin is tuple:
        return _tuple(args, value, where)
    if origin is not None:  # the only other generic of a schema is Mapping[str, X]
        if not isinstance(value, dict):
            raise _wrong("an object", value, where)
        return {key: _decode(args[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong("a number", value, where)
        return float(value)
    # bool is an int in Python and must not pass for one here.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _wrong({int: "a whole number", str: "text", bool: "true or false"}[kind], value, where)
    return value


def _tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong("a list", value, where)
    if args[-1] is Ellipsis:
        return tuple(_decode(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if len(value) != len(args):
        raise _wrong(f"a list of {len(args)}", value, where)
    return tuple(
        _decode(arg, item, f"{where}[{index}]") for index, (arg, item) in enumerate(zip(args, value, strict=True))
    )


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong("an object", value, where)
    hints, fields = _hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise UserError(f"{where}: unknown field {name!r}{nearest(name, fields)} (known: {', '.join(fields)})")
    for name, f in fields.items():
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: the field {name!r} is missing")
    return kind(**{name: _decode(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _wrong(expected: str, value: object, where: str) -> UserError:
    shown = repr(value)
    return UserError(f"{where}: expected {expected}, got {shown if len(shown) <= 60 else shown[:57] + '...'}")
