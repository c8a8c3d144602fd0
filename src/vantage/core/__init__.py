"""Training loop, method, trajectories, context and checkpoints: what every method, task and policy shares."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Eager: the decorator has its module's name, and imports nothing heavy.
from vantage.annotations import above, at_least, at_most, below, between, checked_by, hint, not_empty, one_of
from vantage.core.component import component, memory

if TYPE_CHECKING:
    from vantage.core.context import Context
    from vantage.core.errors import CheckpointError, MissingColumn, TrainingError, UserError
    from vantage.core.method import Method
    from vantage.core.protocols import Evaluation, Prompts
    from vantage.core.trainer import Outcome, Report, Schedule, Trainer
    from vantage.core.trajectories import Trajectories, concatenate
    from vantage.core.walk import reads
    from vantage.metrics import Metrics

# Names are imported when they are first used: an error class, a command's help or a worker's first line need no torch.
_LAZY = {
    "vantage.core.context": ("Context",),
    "vantage.core.errors": ("CheckpointError", "MissingColumn", "TrainingError", "UserError"),
    "vantage.core.method": ("Method",),
    "vantage.core.protocols": ("Evaluation", "Prompts"),
    "vantage.core.trainer": ("Outcome", "Report", "Schedule", "Trainer"),
    "vantage.core.trajectories": ("Trajectories", "concatenate"),
    "vantage.core.walk": ("reads",),
    "vantage.metrics": ("Metrics",),
}

__all__ = [
    "CheckpointError", "Context", "Evaluation", "Method", "Metrics", "MissingColumn", "Outcome", "Prompts", "Report",
    "Schedule", "Trainer", "TrainingError", "Trajectories", "UserError", "above", "at_least", "at_most", "below", "between",
    "checked_by", "component", "concatenate", "hint", "memory", "not_empty", "one_of", "reads"
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'vantage.core' has no attribute {name!r}")
