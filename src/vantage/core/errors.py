"""Errors that a user can correct, and the import of optional libraries."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from vantage.annotations import nearest as nearest


class UserError(ValueError):
    """Invalid input of the user. The message names the value, the place and the remedy.

    The command line prints the message alone and exits with code 2; from Python it is an ordinary ValueError.
    """


class MissingColumn(UserError, AttributeError):
    """A component read a column of the trajectories that nothing has filled."""


class ShapeError(UserError, TypeError):
    """A tensor function was called with a tensor of another shape or type than it takes."""


class MissingLibrary(UserError, ImportError):
    """An optional library is not installed; the message names the extra that installs it."""


class TrainingError(RuntimeError):
    """Training cannot continue (a loss that is not finite, a checkpoint that is not whole)."""


class CheckpointError(TrainingError):
    """A checkpoint is truncated, altered or of another run."""


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """Build the error for an unknown name: the name, its place, near names, known names."""
    names = sorted(known)
    listed = ", ".join(names) if len(names) <= 30 else f"{len(names)} names; list them with `vantage {kind}s`"
    place = f" in {where}" if where else ""
    return UserError(f"unknown {kind} {name!r}{place}{nearest(name, names)} (known: {listed})")


def out_of_range(place: str, value: Any, allowed: str) -> UserError:
    """Build the error for a value that is out of its range; for conditions over several fields."""
    return UserError(f"{place}={value!r} is out of range: {allowed}")


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library, or say which extra installs it.

    Raises:
        MissingLibrary: the library is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):
            raise
        raise MissingLibrary(
            f"{module.split('.')[0]} is needed here and is not installed: pip install 'vantage[{extra}]'"
        ) from error
