"""Checkpoints: a folder each, written atomically, checked by hash when read, never unpickled into code."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vantage.core.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = 2
"""Format of the state: 2 holds nested components under places of their own; 1 (no number) holds the outermost alone."""
_FOLDER = re.compile(r"step-(\d+)$")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old content or the new, never a mixture."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Write what the system still holds of a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors; a tensor that appears under two names is written once and the alias noted."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        kept[name] = tensor.detach().contiguous()
    save_file(kept, str(path), metadata={"aliases": json.dumps(aliases)})
    share(path)


def share(path: Path) -> None:
    """Give a file the mode of any other that is made beside it: safetensors makes its files private."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.mode")
    probe.touch()
    path.chmod(probe.stat().st_mode)
    probe.unlink()


def load_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read what `save_tensors` wrote."""
    from safetensors import safe_open

    state = load_file(str(path), device=device)
    with safe_open(str(path), framework="pt") as file:
        aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
    for name, target in aliases.items():
        state[name] = state[target]
    return state


def write_checkpoint(
    folder: Path, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write `folder/step-NNN` and drop all but the newest `keep`.

    Files are written into a hidden folder, synced, listed with their hashes in a manifest, and the folder is renamed: a
    crash leaves either no checkpoint of this step or a whole one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    temporary = folder / f".step-{step:08d}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_tensors(weights, temporary / "policy.safetensors")
    torch.save(dict(state), temporary / "state.pt")
    hashes = {path.name: digest(path) for path in sorted(temporary.iterdir())}
    for name in hashes:
        sync(temporary / name)
    write_atomically(temporary / MANIFEST, json.dumps({"step": step, "sha256": hashes}, indent=1))
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)
    sync(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    return target


def upgrade(state: Mapping[str, Any], places: Iterable[str]) -> dict[str, Any]:
    """Return the states of a checkpoint's components by place, as this version has them at `places`.

    In format 1 a component saved what it held as its own state: where the only place that is missing below it is that of one
    inner component, the state moves there.
    """
    parts: dict[str, Any] = dict(state["parts"])
    if state.get("format", 1) >= 2:
        return parts
    known = set(places)
    for place in sorted(set(parts) - known):
        inside = [inner for inner in known - set(parts) if inner.startswith(f"{place}.")]
        if len(inside) == 1:
            parts[inside[0]] = parts.pop(place)
    for place, held in list(parts.items()):
        for index, inner in held.get("transforms", {}).items():
            parts[f"{place}.transforms.{index}"] = inner
    return parts


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first."""
    found = (
        [path for path in folder.glob("step-*") if _FOLDER.match(path.name) and path.is_dir()]
        if folder.is_dir()
        else []
    )
    return sorted(found)


def read_checkpoint(path: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Return (step, policy weights, state) of a checkpoint folder.

    Raises:
        CheckpointError: a file, or one of a named policy, is missing or not what was written; the message names it.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        step, hashes = int(path.name.removeprefix("step-")), dict(manifest["sha256"])
        if manifest["step"] != step or not hashes.keys() >= {"policy.safetensors", "state.pt"}:
            raise ValueError(f"it says step {manifest['step']!r} and lists {sorted(hashes)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} has no {MANIFEST} that can be read and is whole: {error}") from error
    _check_files(path, hashes, f"checkpoint {path}")
    try:
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        weights = load_tensors(path / "policy.safetensors")
        named = dict(state.get("digests", {}))
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    _check_files(path.parent.parent / "policies", named, f"checkpoint {path}: named policy")
    return step, weights, state


def _check_files(folder: Path, hashes: Mapping[str, str], what: str) -> None:
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{what}: {name} is missing")
        if digest(folder / name) != expected:
            raise CheckpointError(f"{what}: {name} is truncated or altered (its hash does not match)")


def newest_checkpoint(folder: Path, report: Any = print) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Return the newest checkpoint that is whole; one that is not is reported and the one before it is tried.

    Raises:
        CheckpointError: no checkpoint is whole, or none was written.
    """
    problems = []
    for path in reversed(checkpoints(folder)):
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            report(f"refused: {error}; trying the one before it")
            problems.append(str(error))
    raise CheckpointError(
        f"no usable checkpoint in {folder}" + (": " + "; ".join(problems) if problems else " (none was written yet)")
    )
