"""Schema of a study's results, which a comparison writes and the report reads.

A `Study` is frozen, checks itself when it is built, and round-trips through JSON:

    study = Study(name="arithmetic", arena="arithmetic", metric="accuracy", direction="higher",
                  budget=Budget("samples", 51200), seeds=(0, 1), arms=(Arm("grpo", "grpo"),), runs=...)
    study.save("study.json");  study == Study.load("study.json")

Every error is a `UserError` that names the place (`runs[3].curve[2].score`) and the remedy. A number that is not finite is
refused, except in diagnostics, where a run may diverge: JSON has `null` there and Python NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from vantage.core import above, below, component
from vantage.core.errors import UserError, unknown
from vantage.study.schema import NAN_IS_NULL, decode, encode, plain, write_atomically

Direction = Literal["higher", "lower"]
Status = Literal["ok", "crashed", "running"]
Diagnostic = Annotated[float, NAN_IS_NULL]

SCHEMA = 1
"""Version of the JSON. A reader refuses a file of a newer version instead of guessing."""


@component(label="budget")
class Budget:
    """Budget of each run, the same for every arm.

    Args:
        unit: unit in the plural: "samples", "tokens", "environment steps".
        size: number of units, above 0.
    """

    unit: str
    size: Annotated[float, above(0), below(math.inf)]


@dataclass(frozen=True)
class Arm:
    """Method with its settings: a column of the comparison.

    Args:
        name: unique name in the report ("grpo", "grpo:group_size=16").
        method: name of the method page that it runs.
        settings: its settings, as JSON values (a tuple becomes a list; a number that is not finite, its text).
        parts: stage of the training loop -> text of its component ("objective" -> "Clip(low=0.2, high=0.28)").
        parent: name of its base recipe, if any.
    """

    name: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("an arm's name is empty: give the name for the report")
        object.__setattr__(self, "settings", plain(self.settings, f"arm {self.name!r}: settings"))


@dataclass(frozen=True)
class Point:
    """One evaluation during a run.

    Args:
        samples: spent budget, in its unit (0 is the untrained policy).
        score: the study's metric, averaged over its tasks.
        seconds: wall-clock time since the run began, without evaluations where the runner measures them.
    """

    samples: float
    score: float
    seconds: float = 0.0


@dataclass(frozen=True)
class Run:
    """One seed of one arm.

    Args:
        arm: name of the arm.
        seed: the seed.
        status: "ok" (spent its budget), "crashed", or "running". A seed of the study without a run is waiting.
        curve: evaluations, `samples` strictly increasing.
        final: task -> final score; an ok run has every task of the study.
        diagnostics: name -> ((samples, value), ...), for instance entropy, kl, clip_fraction, length,
            zero_advantage_groups, gradient_norm, pass@8. A value may be NaN.
        duration: seconds from start to end, or so far.
        error: error of a crashed run.
    """

    arm: str
    seed: int
    status: Status = "ok"
    curve: tuple[Point, ...] = ()
    final: Mapping[str, float] = field(default_factory=dict)
    diagnostics: Mapping[str, tuple[tuple[float, Diagnostic], ...]] = field(default_factory=dict)
    duration: float | None = None
    error: str = ""

    def __post_init__(self) -> None:
        where = f"run of {self.arm!r}, seed {self.seed}"
        if self.status not in get_args(Status):
            raise unknown("status", self.status, get_args(Status), where)
        for index, point in enumerate(self.curve):
            if not all(map(math.isfinite, (point.samples, point.score, point.seconds))):
                raise UserError(f"{where}: curve[{index}] holds a number that is not finite: {point}")
            if index and point.samples <= self.curve[index - 1].samples:
                raise UserError(
                    f"{where}: curve[{index}].samples is {point.samples:g}, not above the point before it "
                    f"({self.curve[index - 1].samples:g}); give the points in the order in which they were measured"
                )
        for task, score in self.final.items():
            if not math.isfinite(score):
                raise UserError(f"{where}: final[{task!r}] is {score}; a run without a score is 'crashed', not 'ok'")
        if self.status == "ok" and not self.final:
            raise UserError(f"{where}: is 'ok' but has no final score; set final={{task: score}}")

    @property
    def score(self) -> float | None:
        """Final score averaged over tasks; None before there is one."""
        return sum(self.final.values()) / len(self.final) if self.final else None

    def save(self, path: str | Path) -> None:
        """Write this run alone as JSON, atomically, as a comparison does for each finished run."""
        write_atomically(path, json.dumps(encode(self), allow_nan=False))

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read what `save` wrote.

        Raises:
            UserError: the file is not there, is not JSON, or does not hold a run.
        """
        return decode(cls, _read(path), "run")


@dataclass(frozen=True)
class Sample:
    """One completion for the report. Prompt and completion are untrusted text and remain text.

    Args:
        arm: name of the arm.
        seed: seed of the run that wrote it.
        prompt: the prompt.
        completion: the policy's completion.
        reward: its reward, where there is one.
    """

    arm: str
    seed: int
    prompt: str
    completion: str
    reward: float | None = None


@dataclass(frozen=True)
class Study:
    """All data of a report.

    Args:
        name: name of the study.
        arena: what is fixed: task, split, network, budget, evaluation.
        metric: name of the score ("accuracy on 512 held-out sums").
        direction: whether "higher" or "lower" scores are better.
        budget: budget of each run.
        seeds: seeds of every arm.
        arms: the methods, in the order of the command.
        runs: the runs so far.
        samples: completions for the report.
        description: a sentence or two on the arena.
        command: the command that makes the study again.
        created: date and time, ISO 8601.
        commit: the code's commit.
        versions: library -> version.
        settings: what the arena fixes (network size, evaluation, ...), as JSON values.
        tasks: the strata of the final score; a single name for most arenas.
        baseline: name of the arm that the others are measured against; "" is the first arm.
        threshold: score for "samples to threshold"; None lets the report take 90 % of the baseline's gain.
        optimum: the best possible score, where it is known (1.0 for an accuracy).
        paired: whether a seed fixes more than random numbers (the same data, the same instances), so that arms are
            compared seed by seed. Part of the design: decided before the results are seen.
        schema: version of this schema.
    """

    name: str
    arena: str
    metric: str
    direction: Direction
    budget: Budget
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    runs: tuple[Run, ...] = ()
    samples: tuple[Sample, ...] = ()
    description: str = ""
    command: str = ""
    created: str = ""
    commit: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ("score",)
    baseline: str = ""
    threshold: float | None = None
    optimum: float | None = None
    paired: bool = False
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise UserError(f"study {self.name!r} has schema {self.schema}; this version of vantage reads {SCHEMA}")
        if self.direction not in get_args(Direction):
            raise unknown("direction", self.direction, get_args(Direction), f"study {self.name!r}")
        for what, items in (("arms", self.arms), ("seeds", self.seeds), ("tasks", self.tasks)):
            if not items:
                raise UserError(f"study {self.name!r} has no {what}: give at least one")
        object.__setattr__(self, "settings", plain(self.settings, "settings"))
        names = [arm.name for arm in self.arms]
        _no_repeat(names, "arms", "each arm needs a name of its own")
        _no_repeat(self.seeds, "seeds", "each seed runs once")
        _no_repeat([(run.arm, run.seed) for run in self.runs], "runs", "an arm has one run a seed")
        if self.baseline and self.baseline not in names:
            raise unknown("arm", self.baseline, names, "study.baseline")
        known, seeds, tasks = set(names), set(self.seeds), set(self.tasks)
        for index, run in enumerate(self.runs):
            if run.arm not in known:
                raise unknown("arm", run.arm, names, f"runs[{index}].arm")
            if run.seed not in seeds:
                raise UserError(f"runs[{index}].seed is {run.seed}, which is not one of the seeds {list(self.seeds)}")
            if run.status == "ok" and set(run.final) != tasks:
                raise UserError(
                    f"runs[{index}] ({run.arm!r}, seed {run.seed}) has final scores for {sorted(run.final)}; "
                    f"the study's tasks are {sorted(tasks)}"
                )
        for index, sample in enumerate(self.samples):
            if sample.arm not in known:
                raise unknown("arm", sample.arm, names, f"samples[{index}].arm")

    @property
    def reference(self) -> str:
        """Name of the arm that the others are measured against."""
        return self.baseline or self.arms[0].name

    def runs_of(self, arm: str, status: Status | None = None) -> tuple[Run, ...]:
        """Return the runs of an arm in the order of the seeds, or those of one status."""
        found = {run.seed: run for run in self.runs if run.arm == arm and status in (None, run.status)}
        return tuple(found[seed] for seed in self.seeds if seed in found)

    def scores(self, arm: str) -> list[list[float]]:
        """Return the final scores [R, K] of the arm's R ok runs on the K tasks, in the order of the seeds."""
        return [[run.final[task] for task in self.tasks] for run in self.runs_of(arm, "ok")]

    def to_json(self, indent: int | None = None) -> str:
        """Return the study as JSON text (strict JSON: no NaN)."""
        return json.dumps(encode(self), allow_nan=False, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Study:
        """Read what `to_json` wrote.

        Raises:
            UserError: the text is not JSON or not a study; the message names the place.
        """
        try:
            data = json.loads(text, parse_constant=_refuse)
        except json.JSONDecodeError as error:
            raise UserError(f"not JSON: {error}") from error
        return _study(cls, data)

    def save(self, path: str | Path) -> None:
        """Write the study as JSON, atomically."""
        write_atomically(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read what `save` wrote.

        Raises:
            UserError: the file is not there, is not JSON, or is not a study; the message names the place.
        """
        return _study(cls, _read(path))


def _study(cls: type[Study], data: object) -> Study:
    # A newer schema may hold fields unknown here: say that, rather than complain of the first such field.
    if isinstance(data, dict) and data.get("schema", SCHEMA) != SCHEMA:
        raise UserError(f"the study has schema {data['schema']!r}; this version of vantage reads {SCHEMA}")
    return decode(cls, data, "study")


def _no_repeat(items: Sequence[object], what: str, remedy: str) -> None:
    seen: set[object] = set()
    for item in items:
        if item in seen:
            raise UserError(f"{what}: {item!r} is there twice; {remedy}")
        seen.add(item)


def _refuse(constant: str) -> None:
    raise UserError(f"{constant} is not a number of JSON; write null in a diagnostic, and nowhere else")


def _read(path: str | Path) -> object:
    try:
        return json.loads(Path(path).read_text("utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
