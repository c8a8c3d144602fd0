"""Removal of folders that an untrusted program has filled."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator


def remove(folder: str) -> None:
    """Remove a folder of any content and depth, whatever its modes and path lengths.

    Each subfolder is moved to the top, where its files are removed one by one. What cannot be removed remains.
    """
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)
    numbers = itertools.count()
    with contextlib.suppress(OSError):
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            left = _emptied(top, top, numbers)
            for name in left:
                with contextlib.suppress(OSError):
                    os.chmod(name, 0o700, dir_fd=top)
                    handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                    try:
                        left += _emptied(handle, top, numbers)
                    finally:
                        os.close(handle)
                    os.rmdir(name, dir_fd=top)
        finally:
            os.close(top)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _emptied(handle: int, top: int, numbers: Iterator[int]) -> list[str]:
    """Remove the files in a folder and move its folders to the top; return the new names of these."""
    moved = []
    for entry in [*os.scandir(handle)]:
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                name = f"{next(numbers)}.{os.getpid()}"
                os.chmod(entry.name, 0o700, dir_fd=handle)
                os.rename(entry.name, name, src_dir_fd=handle, dst_dir_fd=top)
                moved.append(name)
            else:
                os.unlink(entry.name, dir_fd=handle)
    return moved
