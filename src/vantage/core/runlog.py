"""Logs of a run: metrics, timings and TensorBoard events."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vantage.core.checkpoint import write_atomically


class RunLog:
    """Appends one line of JSON per step to `metrics.jsonl`, and the same to TensorBoard.

    `metrics.jsonl` holds nothing that depends on the clock, so that two runs can be compared byte by byte; seconds go to
    `timing.jsonl`. After a resume from step `done`, lines of later steps are cut: they will be written again. -1 cuts all.
    """

    def __init__(self, folder: Path, done: int = -1, tensorboard: bool = True) -> None:
        self.folder = folder
        for name in ("metrics.jsonl", "timing.jsonl"):
            _cut(folder / name, done)
        self._metrics = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the run
        self._timing = open(folder / "timing.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._events: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder), purge_step=done + 1 if done >= 0 else None)

    def write(self, step: int, metrics: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """Append one step."""
        line = {"step": step, **{name: _plain(value) for name, value in sorted(metrics.items())}}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        self._timing.write(
            json.dumps({"step": step, **{name: round(value, 6) for name, value in timing.items()}}) + "\n"
        )
        self._timing.flush()
        if self._events is not None:
            for name, value in {**metrics, **{f"time/{k}": v for k, v in timing.items()}}.items():
                if math.isfinite(value):
                    self._events.add_scalar(name, value, step)

    def sync(self) -> None:
        """Write buffered lines to disk (before a checkpoint relies on them)."""
        for file in (self._metrics, self._timing):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._timing.close()
        if self._events is not None:
            self._events.close()


def _plain(value: float) -> float | None:
    # JSON has no NaN; null reads back as "not measured".
    return float(value) if math.isfinite(value) else None


def _cut(path: Path, done: int) -> None:
    """Keep the lines up to step `done`; a last line that was only half written is removed too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if int(json.loads(line)["step"]) <= done:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` as dicts."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
