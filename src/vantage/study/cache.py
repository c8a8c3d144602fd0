"""Cache of finished runs and warm-started models, keyed by a hash of everything that determines them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vantage.core.errors import UserError
from vantage.study import fingerprint
from vantage.study.arenas import Arena, Model
from vantage.study.jobs import TRAINING, Job, Record
from vantage.study.schema import decode

FORMAT = 1
"""Version of the record's format, incremented when a field changes its meaning."""

_MODEL_MODULES = ("vantage.study.models",)


def default_folder() -> Path:
    """Return the folder of results: $VANTAGE_CACHE, or `vantage` in the user's cache folder."""
    own = os.environ.get("VANTAGE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vantage"


@dataclass(frozen=True)
class Cache:
    """Folder of results, written atomically; a file that cannot be read counts as missing."""

    folder: Path

    def record_path(self, key: str) -> Path:
        """Return the path of a run's record."""
        return self.folder / "runs" / key[:2] / f"{key}.json"

    def model_path(self, key: str) -> Path:
        """Return the path of a warm-started model."""
        return self.folder / "models" / key

    def load(self, key: str) -> Record | None:
        """Return the record of a finished run, None where there is none."""
        path = self.record_path(key)
        try:
            return decode(Record, json.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError):
            return None


def code_of_job(job: Job) -> dict[str, str]:
    """Return module -> digest of the code that determines a job's result, its model's included."""
    roots = _roots(job.arena, job.function, job.method)
    model = job.arena.model
    if model is not None and not model.path:
        roots += [*_MODEL_MODULES, *_roots(job.arena, TRAINING, model.method)]
    return fingerprint.code_of(roots)


def key_of_job(job: Job, code: Mapping[str, str]) -> str:
    """Return the hash of everything that determines a job's result: code, settings, arena, seed, model, versions."""
    decided: dict[str, Any] = {
        "format": FORMAT,
        "method": Path(job.method).name,
        "settings": dict(job.settings),
        "seed": job.seed,
        "arena": job.arena.decides(),
        "function": job.function,
        "code": dict(code),
        "versions": fingerprint.versions(),
    }
    return fingerprint.digest_of(decided)


def key_of_model(arena: Arena) -> str:
    """Return the hash of everything that determines an arena's initial model."""
    model = arena.model or Model()
    code = fingerprint.code_of([*_MODEL_MODULES, *_roots(arena, TRAINING, model.method)])
    held = arena.decides()
    decided = {name: held[name] for name in ("model", "task", "options", "data", "verifier")}
    return fingerprint.digest_of({"format": FORMAT, "code": code, "versions": fingerprint.versions(), **decided})


def _roots(arena: Arena, function: str, method: str) -> list[str]:
    """Return the modules from which all code of a run can be reached by imports."""
    from vantage.methods import registry
    from vantage.study.peers import PEERS
    from vantage.tasks.language.problems import PROBLEM_SETS, Mixed
    from vantage.tasks.registry import TASKS

    roots = [function.partition(":")[0], *arena.imports]
    if method in PEERS:
        pass  # all in the function's module
    elif method.endswith(".py"):
        roots.append(method)
    else:
        try:
            roots.append(registry.page(method).module)
        except UserError:
            # A function may have methods of its own.
            if function == TRAINING:
                raise
    if arena.data:
        roots.append("vantage.tasks.language.task")
    tasks = [arena.task, arena.model.task if arena.model is not None else ""]
    for name in (spec.partition(":")[0] for spec in tasks if spec):
        if name.endswith(".py"):
            roots.append(name)
            continue
        roots.append(TASKS[name].module if name in TASKS else "vantage.tasks.control.task")
        if name in PROBLEM_SETS:
            roots += [PROBLEM_SETS[name].__module__, Mixed.__module__]
    return list(dict.fromkeys(roots))
