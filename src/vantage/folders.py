"""Folder of a run: locked by one process at a time, and replaced only when the new run has its first checkpoint."""

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
    """Lock the folder for this process, until the end of the context or of the process.

    Raises:
        UserError: another process has the lock; the message has its number and its machine.
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
    """Lock an empty folder for a run.

    With `force`, the folder's contents are moved aside. The yielded function removes them: call it once the run has a
    checkpoint. If the run ends by an error before that, the folder is restored.

    Args:
        folder: folder of the run.
        replaces: whether a folder's contents may be replaced.
        force: replace the contents.
        again: how to continue with the contents, for the message.

    Raises:
        UserError: the folder is a file, is not empty, is locked by another process, or cannot be written.
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
            # A run that was to replace it was killed before its first checkpoint.
            shutil.rmtree(aside, ignore_errors=True)
        if held and aside.exists() and not checkpoints(folder / "checkpoints"):
            _empty(
                folder
            )  # of a run that was killed before its first checkpoint: the previous contents are still aside
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
