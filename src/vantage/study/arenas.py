"""Arenas: everything of a comparison except the methods, as data. Built-in ones are TOML files in `arena_files/`.

    name = "cartpole"                       # name on the command line
    field = "control"                       # language, control, ...; determines which methods apply
    description = "..."
    task = "cartpole"                       # as for `vantage train --task`
    options = { normalize_rewards = true }  # of the task's engine and policy
    seeds = 5                               # runs of each method

    [budget]                                # budget of each run; never counted in updates
    unit = "environment steps"              # or "samples", "tokens"
    size = 30_000

    [scoring]
    metric = "return"                       # a metric of the task's evaluation
    samples = 20                            # episodes, or completions of each held-out problem
    points = 10                             # evaluations during the run

    [defaults]                              # settings of every method that has them, overridden by the user's own
    lr = 1e-3

    [probe]                                 # reductions for a probe of it (`Small`)
    options = { max_new_tokens = 4 }

A language arena starts from a model: `[model] path = "DIR"`, or one that is made and warm-started (`Model`). A field
without a rollout loop names a Python function instead of a task: `function = "module:function"` (see `vantage.study.jobs`).
Paths are relative to the file.
"""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from vantage.core import at_least, component
from vantage.core.errors import UserError, unknown
from vantage.study.results import Budget, Direction
from vantage.study.schema import decode, plain

UNITS = ("samples", "tokens", "environment steps")
"""Budget units of runs in the training loop. A function has its own."""


@component(label="scoring")
class Scoring:
    """Evaluation of a policy.

    Args:
        metric: a metric of the task's evaluation: `return`, `pass@1`, ...
        direction: whether "higher" or "lower" is better.
        samples: episodes of an evaluation, or completions of each held-out problem.
        points: evaluations after the first, evenly spaced over the budget; at least 1, the last is the final score.
        optimum: the best possible score, where it is known.
        threshold: score for "samples to threshold"; None lets the report choose.
        tasks: names of the strata of the final score, where a function gives several.
        paired: whether a seed determines more than random numbers.
    """

    metric: str
    direction: Direction = "higher"
    samples: Annotated[int, at_least(1)] = 4
    points: Annotated[int, at_least(1)] = 10
    optimum: float | None = None
    threshold: float | None = None
    tasks: tuple[str, ...] = ("score",)
    paired: bool = False


@dataclass(frozen=True)
class Model:
    """Initial model of every run: a folder, or a model that is made once and cached.

    Args:
        path: folder in Hugging Face format; all other settings are then ignored.
        preset, architecture: size and kind of a new model (`vantage new-model`); preset "" takes the task's own model.
        alphabet: characters of its vocabulary; "" for all printable ones.
        seed: seed of its random weights and of its warm start.
        method: method of the warm start.
        steps: training steps of the warm start; 0 leaves the weights random.
        settings: settings of that method.
        task: task of the warm start; "" is the arena's own.
        options: options of that task; None is the arena's own, which they replace otherwise.
    """

    path: str = ""
    preset: str = "tiny"
    architecture: str = "llama"
    alphabet: str = ""
    seed: int = 0
    method: str = "sft"
    steps: int = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task: str = ""
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Calibration:
    """Measured properties of an arena, for information; no result depends on them.

    Args:
        untrained: score before training.
        trained: method -> final score, mean over seeds.
        seconds: CPU seconds per run, mean over the methods.
    """

    untrained: float
    trained: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Small:
    """Reductions of an arena for a probe (`vantage.study.probes`); no result depends on them.

    Args:
        task: replaces the arena's task or function.
        options: override the arena's; with `task` they replace them.
        settings: settings of every method that has them, which override all others.
        size, points: replace the budget's and the scoring's.
    """

    task: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: float | None = None
    points: int | None = None

    def of(self, arena: Arena) -> Arena:
        """Return the reduced arena."""
        arena = replace(
            arena,
            budget=replace(arena.budget, size=self.size or arena.budget.size),
            scoring=replace(arena.scoring, points=self.points or arena.scoring.points),
        )
        if self.task:
            budget = replace(arena.budget, unit=UNITS[0])
            return replace(arena, task=self.task, function="", data="", options=dict(self.options), budget=budget)
        return replace(arena, options={**arena.options, **self.options})


@dataclass(frozen=True)
class Arena:
    """Everything of a comparison except the methods. The module's docstring describes the file."""

    name: str
    field: str
    budget: Budget
    scoring: Scoring
    description: str = ""
    task: str = ""
    function: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: str = ""
    verifier: str = ""
    model: Model | None = None
    seeds: int = 5
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    imports: tuple[str, ...] = ()
    """Modules, beyond the task's and the function's, that a result depends on."""
    calibration: Calibration | None = None
    probe: Small = dataclasses.field(default_factory=Small)

    def __post_init__(self) -> None:
        where = f"arena {self.name!r}"
        if not self.name:
            raise UserError("an arena needs a name")
        if bool(self.function) == bool(self.task or self.data):
            raise UserError(f"{where}: give either a task (or data), or a function that runs a method")
        if self.function and ":" not in self.function:
            raise UserError(f"{where}: function={self.function!r} must be written module:function")
        if not self.function and self.budget.unit not in UNITS:
            raise unknown("unit", self.budget.unit, UNITS, f"{where}: budget")
        if not self.function and self.scoring.tasks != ("score",):
            raise UserError(f"{where}: scoring.tasks goes with a function; a task gives one score")
        if self.seeds < 1:
            raise UserError(f"{where}: seeds={self.seeds} is out of range: at least 1")
        for name in ("options", "defaults"):
            object.__setattr__(self, name, plain(getattr(self, name), f"{where}: {name}"))

    def decides(self) -> dict[str, Any]:
        """Return the properties that determine a result, as JSON values; files and folders by their contents."""
        from vantage.study.fingerprint import files_digest
        from vantage.study.schema import encode

        held = encode(replace(self, description="", defaults={}, seeds=1, calibration=None, imports=(), probe=Small()))
        scoring = held.pop("scoring")
        held["scoring"] = {name: scoring[name] for name in ("metric", "samples", "points")}
        held["name"] = held["field"] = ""
        del held["probe"]
        name, _, settings = self.task.partition(":")
        if name.endswith(".py"):
            held["task"] = f"{Path(name).name}:{settings}"  # its behaviour is in the digest of its code
        if self.data:
            held["data"] = files_digest(Path(self.data))
        if self.model is not None and self.model.path:
            held["model"] = {"files": files_digest(Path(self.model.path))}
        return dict(held)


def names() -> list[str]:
    """Return the names of the built-in arenas."""
    files = resources.files("vantage.study").joinpath("arena_files").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def arena(name: str) -> Arena:
    """Return a built-in arena by its name, or the one that a TOML file defines.

    Raises:
        UserError: no arena has this name, or the file is not an arena; the message names the line.
    """
    if name.endswith(".toml"):
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot read the arena {path}: {error.strerror or error}") from error
        made = parse(text, str(path), path.parent)
        if made.function and str(path.parent.resolve()) not in sys.path:
            # The function may be in a file beside the arena's.
            sys.path.append(str(path.parent.resolve()))
        return made
    if name not in names():
        raise unknown("arena", name, names())
    file = resources.files("vantage.study").joinpath("arena_files", f"{name}.toml")
    return parse(file.read_text(encoding="utf-8"), f"arena {name}", None)


def arenas() -> list[Arena]:
    """Return the built-in arenas, by field and name."""
    return sorted((arena(name) for name in names()), key=lambda each: (each.field, each.name))


def parse(text: str, where: str, folder: Path | None) -> Arena:
    """Read an arena from TOML; paths in it are relative to `folder`.

    Raises:
        UserError: the text is not TOML, a field is missing, unknown or of the wrong type, or a path does not exist.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not TOML: {error}") from error
    try:
        made = decode(Arena, content, where)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    name, colon, settings = made.task.partition(":")
    if name.endswith(".py"):
        made = replace(made, task=_found(name, folder, f"{where}: task") + colon + settings)
    if made.data:
        made = replace(made, data=_found(made.data, folder, f"{where}: data"))
    if made.model is not None and made.model.path:
        made = replace(made, model=replace(made.model, path=_found(made.model.path, folder, f"{where}: model.path")))
    return made


def _found(path: str, folder: Path | None, where: str) -> str:
    full = Path(path) if folder is None else folder / path
    if not full.exists():
        raise UserError(f"{where}: there is no {full}")
    return str(full.resolve())
