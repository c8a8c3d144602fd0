"""Weights & Biases, as a listener; an optional extra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vantage.core.errors import require
from vantage.core.trainer import Report


class WandbListener:
    """Sends each step's metrics to a project.

    Args:
        settings: of the run (the fields of `RunConfig`); `wandb` names the project.
        folder: of the run, whose name the run has there; without one it is METHOD-TASK.

    Raises:
        ImportError: wandb is not installed; the message names the extra.
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path | None) -> None:
        wandb: Any = require("wandb", "wandb")
        name = folder.name if folder else f"{settings['method']}-{settings['task']}"
        self._run = wandb.init(
            project=settings['wandb'], name=name, id=name, resume="allow", dir=str(folder) if folder else None,
            config=dict(settings),
        )  # fmt: skip

    def __call__(self, report: Report) -> None:
        """Send one step."""
        self._run.log({**report.metrics, **{f"time/{k}": v for k, v in report.timing.items()}}, step=report.step)

    def __enter__(self) -> WandbListener:
        return self

    def __exit__(self, *error: object) -> None:
        self._run.finish()
