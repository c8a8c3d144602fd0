"""Policy folders: `model.safetensors` and `config.json`, each written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vantage.core.checkpoint import load_tensors, save_tensors, write_atomically
from vantage.core.errors import UserError

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors of any device as safetensors, atomically: the old file is replaced by the complete new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_tensors({name: tensor.cpu() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_policy(folder: Any, kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a policy of this kind into a folder, which is created if needed; `config` is its constructor's plain data."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, path / WEIGHTS)
    write_atomically(path / CONFIG, json.dumps({"policy": kind, **config}, indent=1))


def read_policy(folder: Any, kind: str, words: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return (config, tensors) of a policy that `write_policy` wrote, the tensors on the CPU.

    Args:
        folder: path.
        kind: expected kind.
        words: name of the kind in messages.

    Raises:
        UserError: the folder holds no such policy; the message says what is missing or wrong.
    """
    path = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise UserError(f"{path} holds no {words}: {name} is missing")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path / CONFIG} cannot be read: {error}") from error
    found = config.pop("policy", None) if isinstance(config, dict) else None
    if found != kind:
        raise UserError(f"{path / CONFIG} describes no {words}: 'policy' is {found!r}, not {kind!r}")
    return config, load_tensors(path / WEIGHTS)
