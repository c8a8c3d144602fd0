"""Weights & Biases, as a listener; an optional extra."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vantage.config import RunConfig
from vantage.core.errors import require
from vantage.core.trainer import Report


class WandbListener:
    """Sends each step's metrics to the project `config.wandb`.

    Raises:
        ImportError: wandb is not installed; the message names the extra.
    """

    def __init__(self, config: RunConfig, folder: Path | None) -> None:
        wandb: Any = require("wandb", "wandb")
        name = folder.name if folder else f"{config.method}-{config.task}"
        self._run = wandb.init(
            project=config.wandb, name=name, id=name, resume="allow", dir=str(folder) if folder else None,
            config=dataclasses.asdict(config),
        )  # fmt: skip

    def __call__(self, report: Report) -> None:
        """Send one step."""
        self._run.log({**report.metrics, **{f"time/{k}": v for k, v in report.timing.items()}}, step=report.step)

    def __enter__(self) -> WandbListener:
        return self

    def __exit__(self, *error: object) -> None:
        self._run.finish()
