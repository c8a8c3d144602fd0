"""The folder of a run: one process at a time writes it, and what it held is lost only when something has replaced it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from vantage.core.checkpoint import checkpoints
from vantage.core.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process, until the context or the process ends, however it ends.

    Raises:
        UserError: another process holds it; the message has its number and its machine.
    """
    path = folder / LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{folder} is in use by {_holder(path)}: wait for its end, or give another folder"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        os.close(handle)


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return f"process {held['pid']} on {held['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextlib.contextmanager
def claimed(
    folder: Path, replaces: Callable[[Path], bool], force: bool, again: str = ""
) -> Iterator[Callable[[], None]]:
    """Give an empty folder to a run, which holds it.

    With `force`, what the folder held is moved aside. The function that is given removes it: call it once the run has something to
    show. If the run ends by an error before that, the folder is as it was.

    Args:
        folder: of the run.
        replaces: whether a folder holds what may be replaced.
        force: replace it.
        again: how to go on with what is there, for the message.

    Raises:
        UserError: the folder is a file, holds something, is held by another process, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; give a folder")
    held = folder.is_dir() and any(path.name != LOCK for path in folder.iterdir())
    if held and not force:
        raise UserError(f"--out {folder} is not empty: give another folder, or --force to overwrite{again}")
    if held and not replaces(folder):
        raise UserError(f"--out {folder} is not empty and not a run: --force overwrites only runs")
    aside = folder.with_name(f".{folder.name}.replaced")
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror or error}") from error
    with locked(folder):
        if aside.exists() and not held:
            # A run that was to replace it was killed before it had anything.
            shutil.rmtree(aside, ignore_errors=True)
        if held and aside.exists() and not checkpoints(folder / "checkpoints"):
            _empty(folder)  # of a run that was killed before it had anything: what it was to replace is still aside
        elif held:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for path in folder.iterdir():
                if path.name != LOCK:
                    path.rename(aside / path.name)

        def drop() -> None:
            shutil.rmtree(aside, ignore_errors=True)

        try:
            yield drop
        except BaseException as error:
            if aside.exists() or (isinstance(error, UserError) and not checkpoints(folder / "checkpoints")):
                _empty(folder)
            if aside.exists():
                for path in aside.iterdir():
                    path.rename(folder / path.name)
            drop()
            if made and [path.name for path in folder.iterdir()] == [LOCK]:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        drop()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
