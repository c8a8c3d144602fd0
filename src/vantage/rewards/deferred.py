"""Deferred execution of a package's `__init__`, so that a worker process need not import torch to compare two strings."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any


def defer(name: str) -> None:
    """Register a package whose `__init__` runs at the first access to one of its attributes.

    Its modules can be imported before that. Has no effect when the package has been imported already.
    """
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    loader, module = spec.loader, importlib.util.module_from_spec(spec)

    def load(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        del module.__dict__["__getattr__"]
        loader.exec_module(module)
        return getattr(module, attribute)

    module.__dict__["__getattr__"] = load
    sys.modules[name] = module
