"""Loading of a user's own Python files by path, with errors that name file and line."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from vantage.core.errors import UserError

PREFIX = "vantage_file_"
"""Prefix of the module names of such files, which errors do not show."""


def load(path: Path, kind: str) -> ModuleType:
    """Run a file as a module. Its own folder is the last one on the search path of its imports.

    Args:
        path: path of the file, as the user gave it.
        kind: "page" or "task"; files of one name do not replace each other across kinds.

    Raises:
        UserError: the file does not exist, is not valid Python, or raises an error; the message names file and line.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"{PREFIX}{kind}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[spec.name] = module
    try:
        with errors_in(path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


@contextlib.contextmanager
def errors_in(path: str | Path) -> Iterator[None]:
    """Convert an error that is raised in a file, or below it, to a UserError that names file and line.

    An error outside of the file, such as a setting that is refused before its code runs, is unchanged.
    """
    own = Path(path).resolve()
    try:
        yield
    except SyntaxError as error:
        if not _same(error.filename, own):
            raise
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        line, trace = None, error.__traceback__
        while trace is not None:
            if _same(trace.tb_frame.f_code.co_filename, own):
                line = trace.tb_lineno
            trace = trace.tb_next
        if line is None:
            raise
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and not isinstance(error, UserError):
            told += "; install it, or put its file beside this one"
        raise UserError(f"{path}, line {line}: {told}") from error


def _same(name: str | None, path: Path) -> bool:
    return bool(name) and Path(str(name)).resolve() == path


def is_own(module: str) -> bool:
    """Return whether a module is a user's file that was loaded by its path."""
    return module.startswith(PREFIX)


def called(function: Callable[..., Any]) -> str:
    """Return the name of a function for errors, with its module unless the error names file and line."""
    name = getattr(function, "__qualname__", repr(function))
    return name if is_own(function.__module__) else f"{function.__module__}.{name}"


def shown(path: str | Path) -> str:
    """Return a path relative to the working folder where it is below that, else the absolute path."""
    found, here = Path(path).resolve(), Path.cwd()
    return str(found.relative_to(here)) if found.is_relative_to(here) else str(found)
