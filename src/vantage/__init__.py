"""Vantage: policy optimisation as a composition of small components in one training loop."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vantage.api import Run, evaluate, method, resume, train
    from vantage.core import Context, Evaluation, Method, Trajectories, UserError
    from vantage.tasks.registry import make_task as task

# Names are imported at first use, so that `import vantage` is fast and loads no optional library.
_LAZY = {
    "Context": "vantage.core",
    "Evaluation": "vantage.core",
    "Method": "vantage.core",
    "Run": "vantage.api",
    "Trajectories": "vantage.core",
    "UserError": "vantage.core.errors",
    "evaluate": "vantage.api",
    "method": "vantage.api",
    "resume": "vantage.api",
    "train": "vantage.api",
    "task": "vantage.tasks.registry",
}

__all__ = [
    "Context",
    "Evaluation",
    "Method",
    "Run",
    "Trajectories",
    "UserError",
    "evaluate",
    "method",
    "resume",
    "task",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'vantage' has no attribute {name!r}")
    attribute = "make_task" if name == "task" else name
    return getattr(importlib.import_module(_LAZY[name]), attribute)
