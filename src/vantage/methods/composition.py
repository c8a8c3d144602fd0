"""Describe a method as text, list where two methods differ, and change one setting of a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from vantage.core.errors import UserError, nearest
from vantage.core.method import HIDDEN, PLACES, Method
from vantage.settings import tuples

M = TypeVar("M")


def describe(part: Any) -> str:
    """Return a component as text that shows its settings: `Clip(low=0.2, high=0.28)`."""
    if part is None:
        return "none"
    if isinstance(part, str):
        return part
    if isinstance(part, tuple | list):
        return ", ".join(describe(inner) for inner in part) or "none"
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        shown = []
        for f in fields(part):
            if not f.repr:
                continue
            value = getattr(part, f.name)
            nested = dataclasses.is_dataclass(value) or isinstance(value, tuple | list)
            shown.append(f"{f.name}={describe(value) if nested else _plain(value)}")
        return f"{type(part).__name__}({', '.join(shown)})"
    return _plain(part)


def _plain(value: Any) -> str:
    if isinstance(value, Callable) and hasattr(value, "__name__"):  # type: ignore[arg-type]
        return str(value.__name__)
    return repr(value)


def differences(method: Method, other: Method) -> dict[str, tuple[str, str]]:
    """Return the components in which two methods differ: place -> (in `method`, in `other`), as text."""
    return {
        place: (describe(getattr(method, place)), describe(getattr(other, place)))
        for place in PLACES
        if describe(getattr(method, place)) != describe(getattr(other, place))
    }


def configure(method: M, path: str, value: Any) -> M:
    """Return a method (or any frozen dataclass) with one setting changed: `configure(m, "update.optimizer.lr", 1e-4)`.

    A number is an index in a tuple of components: `regularizers.0.coefficient`.

    Raises:
        UserError: the path names no component or setting; the message lists the known ones.
    """
    changed: M = _set(method, path.split("."), value, path)
    return changed


def _set(holder: Any, keys: list[str], value: Any, path: str) -> Any:
    key, rest = keys[0], keys[1:]
    if isinstance(holder, tuple):
        if not key.isdigit() or int(key) >= len(holder):
            raise UserError(
                f"setting {path!r}: {key!r} is no index of the {len(holder)} components (0 to {len(holder) - 1})"
            )
        index = int(key)
        changed = _set(holder[index], rest, value, path) if rest else value
        return (*holder[:index], changed, *holder[index + 1 :])
    if not dataclasses.is_dataclass(holder):
        raise UserError(f"setting {path!r}: {describe(holder)} has no settings")
    known = [f.name for f in fields(holder) if f.init and f.name not in HIDDEN]
    if key not in known:
        raise UserError(
            f"setting {path!r}: {type(holder).__name__} has no {key!r}{nearest(key, known)} (it has: {', '.join(known) or 'none'})"
        )
    current = getattr(holder, key)
    new = _set(current, rest, value, path) if rest else _coerce(value, current, path)
    if isinstance(holder, Method):
        return holder.replace(**{key: new})
    try:
        return dataclasses.replace(holder, **{key: new})  # type: ignore[type-var]
    except UserError as error:
        raise UserError(f"setting {path!r}: {error}") from error


def _coerce(value: Any, current: Any, path: str) -> Any:
    """Convert a value given as text or a number to the type of the present one."""
    if isinstance(current, bool) and not isinstance(value, bool):
        raise UserError(f"setting {path!r} is true or false, not {value!r}")
    if isinstance(current, int) and not isinstance(current, bool):
        if isinstance(value, float) and value == int(value):
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"setting {path!r} is a whole number, not {value!r}")
    if isinstance(current, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"setting {path!r} is a number, not {value!r}")
        return float(value)
    if isinstance(current, tuple) and isinstance(value, list):
        return tuples(value)
    return value
