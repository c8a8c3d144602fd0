"""Interface of one run of a comparison: its input (`Job`), its reports (`Reporter`) and its stored result (`Record`).

A field without a rollout loop brings its own function, which an arena or a claim names as "module:function":

    def run(job: Job, report: Reporter) -> float | Mapping[str, float] | None:
        for spent, score in my_method(job.method, **job.settings, seed=job.seed, limit=job.arena.budget.size):
            report.point(spent, score)                  # a point of the learning curve; 0 is the untrained policy
            report.record(spent, entropy=...)           # diagnostics
        return final                                    # one score, one per task, or None: the last point's

The training loop's own is `vantage.study.training:run`.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC
from typing import Annotated, Any

from vantage.core.errors import UserError
from vantage.study.arenas import Arena
from vantage.study.results import Point, Run, Sample
from vantage.study.schema import NAN_IS_NULL

TRAINING = "vantage.study.training:run"
BINS = 60
"""A diagnostic is averaged over this many equal parts of the budget."""

Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """Run of one method, with all its settings, on one seed of an arena.

    Args:
        method: name of a page, path of a file that defines one, or name of a peer.
        settings: settings of the recipe and of components: the paper's, overridden by the arena's and then by the user's.
        seed: random seed.
        arena: the arena.
        function: "module:function" that runs the job.
        model: folder of the initial model; "" for none.
    """

    method: str
    settings: Mapping[str, Any]
    seed: int
    arena: Arena
    function: str = TRAINING
    model: str = ""


@dataclass(frozen=True)
class Record:
    """Stored result of a finished run.

    Args:
        run: the run, under its first arm's name.
        samples: completions for the report.
        cpu_seconds: user and system time of the process, start included.
        created: end of the run, ISO 8601.
        versions: library -> version.
    """

    run: Run
    samples: tuple[Sample, ...] = ()
    cpu_seconds: float = 0.0
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def named(self, arm: str) -> Record:
        """Return the record under another arm's name."""
        return replace(
            self, run=replace(self.run, arm=arm), samples=tuple(replace(sample, arm=arm) for sample in self.samples)
        )


class Reporter:
    """Collector of a run's curve, diagnostics and samples, which also reports its progress."""

    def __init__(self, arm: str, seed: int, size: float, send: Send = lambda message: None) -> None:
        self.arm, self.seed, self.size = arm, seed, size
        self.curve: list[Point] = []
        self.samples: list[Sample] = []
        self._sums: dict[str, dict[int, list[float]]] = {}
        self._send = send
        self._started = time.perf_counter()
        self._paused = 0.0
        self._told = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the start, without evaluations."""
        return time.perf_counter() - self._started - self._paused

    def pause(self, seconds: float) -> None:
        """Subtract the time of an evaluation from the clock."""
        self._paused += seconds

    def progress(self, spent: float) -> None:
        """Report the spent budget; cheap enough to be called at every step."""
        now = time.perf_counter()
        if now - self._told > 0.25:
            self._told = now
            self._send({"spent": spent})

    def point(self, spent: float, score: float) -> None:
        """Add a point to the learning curve; `spent` increases from call to call.

        Raises:
            UserError: the score is not finite.
        """
        if not math.isfinite(score):
            raise UserError(f"the score after {spent:g} is {score}: a run needs a finite one")
        self.curve.append(Point(float(spent), float(score), max(0.0, self.seconds)))
        self._send({"spent": float(spent), "score": float(score), "seconds": self.curve[-1].seconds})

    def record(self, spent: float, values: Mapping[str, float] | None = None, **named: float) -> None:
        """Add values of diagnostics; those within one 60th of the budget are averaged."""
        place = min(BINS, int(BINS * spent / self.size)) if self.size else 0
        for name, value in {**(values or {}), **named}.items():
            held = self._sums.setdefault(name, {}).setdefault(place, [0.0, 0.0, 0.0])
            held[0] += 1
            held[1] += spent
            held[2] += value

    def sample(self, prompt: str, completion: str, reward: float | None = None) -> None:
        """Add a completion for the report."""
        self.samples.append(Sample(self.arm, self.seed, prompt, completion, reward))

    def run(self, final: float | Mapping[str, float] | None, tasks: tuple[str, ...]) -> Run:
        """Return the finished run.

        Raises:
            UserError: there is no final score, or its tasks are not the arena's.
        """
        if final is None:
            if not self.curve:
                raise UserError("the run reported no score: call report.point, or return one")
            final = self.curve[-1].score
        scores = (
            {str(k): float(v) for k, v in final.items()} if isinstance(final, Mapping) else {tasks[0]: float(final)}
        )
        if set(scores) != set(tasks):
            raise UserError(f"the run scored {sorted(scores)}; the arena's tasks are {sorted(tasks)}")
        diagnostics: dict[str, tuple[tuple[float, Annotated[float, NAN_IS_NULL]], ...]] = {
            name: tuple((spent / count, value / count) for _, (count, spent, value) in sorted(bins.items()))
            for name, bins in self._sums.items()
        }
        duration = time.perf_counter() - self._started
        return Run(self.arm, self.seed, "ok", tuple(self.curve), scores, diagnostics, duration)


def function_of(name: str) -> Callable[[Job, Reporter], Any]:
    """Return the function of "module:function".

    Raises:
        UserError: there is no such module or function.
    """
    module, _, attribute = name.partition(":")
    try:
        held = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise UserError(f"function {name!r}: there is no module {module!r}") from error
    if not callable(getattr(held, attribute, None)):
        raise UserError(f"function {name!r}: the module {module!r} has no function {attribute!r}")
    found: Callable[[Job, Reporter], Any] = getattr(held, attribute)
    return found


def carry_out(job: Job, arm: str, send: Send = lambda message: None) -> Record:
    """Run a job in this process and return its record; `cpu_seconds` is the process's so far."""
    import resource
    from datetime import datetime

    from vantage.study.fingerprint import versions

    report = Reporter(arm, job.seed, job.arena.budget.size, send)
    final = function_of(job.function)(job, report)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Record(
        run=report.run(final, job.arena.scoring.tasks),
        samples=tuple(report.samples),
        cpu_seconds=used.ru_utime + used.ru_stime,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
    )
