"""Settings of a run, stored as one JSON file."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vantage.core.checkpoint import write_atomically
from vantage.core.errors import UserError
from vantage.upgrade import upgraded

FORMAT = 1


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run as the user gave them. `placed` makes its paths absolute, so that it can be resumed from any folder.

    Attributes:
        method: name of a method, or path of a file that defines one.
        settings: settings of the recipe (`group_size`), and of components (`update.optimizer.lr`).
        task: name of a task with its options (`addition:digits=3`), "" when `data` determines it.
        model: folder of the model to start from, "" for a fresh one where the task makes one.
        data: file of the user's own problems, "" for none.
        verifier: verifier of the answers (`math`), "" for the task's own.
        options: options of the task's engine and policy (`max_new_tokens`, `normalize`).
        steps: length in the task's unit (`Task.unit`): training steps, or environment steps.
        seed: random seed.
        save_every, evaluate_every: in training steps; 0: by the clock, and before and after the run alone.
        evaluate_samples: samples per held-out problem, or episodes; 0 for no evaluation.
        device: device of the policy.
        threads: number of CPU threads of the run, 0 for the default.
        wandb: name of a Weights & Biases project, "" for none.
    """

    method: str
    task: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    data: str = ""
    verifier: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 100
    seed: int = 0
    save_every: int = 0
    evaluate_every: int = 0
    evaluate_samples: int = 4
    device: str = "cpu"
    threads: int = 0
    wandb: str = ""

    def placed(self) -> RunConfig:
        """Return the configuration with every relative path made absolute, from the working folder.

        Paths are the model and the data, and files that exist: of a method or task of the user's own, in the settings of a task
        (`tsp:file=FOLDER`) or verifier (`python:mine.py:score`), and as the value of an option or setting (`test=FILE`).
        """
        return dataclasses.replace(
            self,
            model=_absolute(self.model) if self.model else "",
            data=_absolute(self.data) if Path(self.data).exists() and self.data else self.data,
            method=_with_absolute_paths(self.method),
            task=_with_absolute_paths(self.task),
            verifier=_with_absolute_paths(self.verifier),
            options={name: _value(value) for name, value in self.options.items()},
            settings={name: _value(value) for name, value in self.settings.items()},
        )

    def check_paths(self, folder: Path) -> None:
        """Check that the model, the data and the files of method and task are where the run has them.

        Args:
            folder: of the run, for the message.

        Raises:
            UserError: one is not there; the message says how to give its present place.
        """
        files = (("method", self.method), ("task", self.task.partition(":")[0]))
        given = [("model", self.model), *((name, file) for name, file in files if file.endswith(".py"))]
        # Without a suffix or a folder the data may be a name that the library `datasets` knows.
        given += [("data", self.data)] if Path(self.data).suffix or Path(self.data).is_absolute() else []
        for name, path in given:
            if path and not Path(path).exists():
                place = "" if Path(path).is_absolute() else f" in the working folder {Path.cwd()}"
                whole = f"PATH{self.task[len(path) :]}" if name == "task" else "PATH"
                raise UserError(
                    f"the run {folder} has the {name} {path}, which is not there{place}: if it was moved, give its present place,"
                    f" `vantage resume {folder} --{name} {whole}`"
                )

    def write(self, folder: Path, status: str = "running") -> None:
        """Write `config.json`."""
        content = {
            "format": FORMAT,
            "run": dataclasses.asdict(self),
            "versions": versions(),
            "commit": commit(),
            "status": status,
        }
        write_atomically(folder / "config.json", json.dumps(content, indent=2) + "\n")


def _absolute(path: str) -> str:
    return os.path.abspath(path)


def _with_absolute_paths(text: str) -> str:
    """Return a specification in which the paths of existing files are absolute, and those of folders after `file=` and so on."""

    def placed(found: re.Match[str]) -> str:
        path, named = found[0], text[: found.start()].endswith(("file=", "data=", "model="))
        return _absolute(path) if Path(path).is_file() or (named and Path(path).is_dir()) else path

    return re.sub(r"[^\s,=:]+", placed, text)


def _value(value: Any) -> Any:
    return _absolute(value) if isinstance(value, str) and value and Path(value).is_file() else value


def read_config(folder: Path) -> RunConfig:
    """Read the settings of a run.

    Raises:
        UserError: the folder is not a run, or its file cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run: it has no config.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        run: Mapping[str, Any] = content["run"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the configuration of a run: {error}") from error
    if content.get("format") != FORMAT:
        raise UserError(f"{path} has format {content.get('format')!r}; this version reads {FORMAT}")
    run = upgraded(run)
    known = {f.name for f in dataclasses.fields(RunConfig)}
    odd = sorted(set(run) - known)
    if odd:
        raise UserError(f"{path} holds settings that are not known: {', '.join(odd)}")
    return RunConfig(**run)


def is_run(folder: Path) -> bool:
    """Return whether the folder is that of a run."""
    try:
        return "run" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def versions() -> dict[str, str]:
    """Return the versions of the libraries on which a result depends."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()}-{platform.machine()}"}
    for name in ("vantage", "torch", "numpy", "transformers", "tokenizers", "gymnasium", "mujoco"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the commit of the running code, with "+" when files are changed; "" outside a checkout."""
    root = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "."],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed else "")
