"""Training of small networks by Adam, with a cache in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vantage.core.checkpoint import load_tensors, save_tensors
from vantage.fields.compression.network import Network


def cache_folder() -> Path:
    """Return the folder of trained networks: `networks` in $VANTAGE_CACHE, or in `vantage` in the user's cache folder."""
    own = os.environ.get("VANTAGE_CACHE")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vantage"
    return base / "networks"


def trained(
    network: Network, decides: Mapping[str, Any], sources: tuple[str, ...], train: Callable[[], None]
) -> Network:
    """Return the network with the weights of `train`, from the cache where they are stored.

    Args:
        network: its model has its initial weights, and is trained in place.
        decides: everything besides code that determines the weights, as JSON values.
        sources: files whose code determines them.
        train: trains the model in place, deterministically.
    """
    code = [hashlib.sha256(Path(source).read_bytes()).hexdigest() for source in (*sources, __file__)]
    key = json.dumps({"decides": dict(decides), "code": code, "torch": torch.__version__}, sort_keys=True)
    path = cache_folder() / f"{network.name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    if path.is_file():
        try:
            network.model.load_state_dict(load_tensors(path))
            return network
        except Exception:  # a file that cannot be read counts as missing
            path.unlink(missing_ok=True)
    train()
    # Where the cache cannot be written, the next run trains again.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(descriptor)
        save_tensors(network.model.state_dict(), Path(temporary))
        os.replace(temporary, path)
    return network


def fit(network: Network, *, steps: int, batch: int, lr: float, seed: int, decay: float = 0.0) -> None:
    """Train a model by Adam on the mean loss of batches in a random order, with a cosine learning rate."""
    generator = torch.Generator().manual_seed(seed)
    total = len(network.train[0])
    optimizer = torch.optim.AdamW(network.model.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.randperm(total, generator=generator)
    start = 0
    network.model.train()
    for _ in range(steps):
        if start + batch > total:
            order, start = torch.randperm(total, generator=generator), 0
        rows = tuple(column[order[start : start + batch]] for column in network.train)
        start += batch
        optimizer.zero_grad(set_to_none=True)
        network.losses(rows).mean().backward()
        optimizer.step()
        schedule.step()
    network.model.eval()


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module with initial weights determined by the seed; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
