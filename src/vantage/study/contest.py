"""Comparison of methods in an arena: its runs, its cache, and the study with its report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vantage.config import commit, versions
from vantage.core.errors import UserError
from vantage.folders import LOCK
from vantage.methods import registry
from vantage.methods.composition import configure, describe
from vantage.settings import read_settings
from vantage.study.arenas import Arena
from vantage.study.cache import Cache, default_folder
from vantage.study.jobs import TRAINING, Job
from vantage.study.peers import PEERS
from vantage.study.report import write_report
from vantage.study.results import Arm, Run, Study
from vantage.study.runner import Watcher, Work, run_all
from vantage.study.schema import encode
from vantage.tasks.registry import check_needs

STUDY = "study.json"
REPORT = "report.html"


@dataclass(frozen=True)
class Entrant:
    """Method with its settings in an arena.

    Args:
        arm: its entry in the report, with full settings.
        settings: settings that differ from the method's defaults.
        function: function that runs it.
    """

    arm: Arm
    settings: Mapping[str, Any]
    function: str

    def job(self, arena: Arena, seed: int) -> Job:
        """Return the job of one seed."""
        return Job(self.arm.method, self.settings, seed, arena, self.function)


def entrant(arena: Arena, method: str, settings: Mapping[str, Any], *, name: str = "", function: str = "") -> Entrant:
    """Return a method in an arena, with the arena's defaults where it has such settings, overridden by those given.

    Raises:
        UserError: the method or a setting is not known, or the method cannot run in this arena.
    """
    if method in PEERS:
        peer = PEERS[method]
        if peer.field != arena.field:
            raise UserError(f"{method} runs in {peer.field} arenas, not in {arena.name!r} ({arena.field})")
        peer.check(settings)
        chosen = {key: value for key, value in settings.items() if value != peer.settings[key]}
        return Entrant(Arm(name or method, method, {**peer.settings, **settings}), chosen, peer.function)
    runs = function or arena.function or TRAINING
    try:
        page = registry.page(method)
    except UserError:
        if runs == TRAINING:
            raise
        # A field's own function may have baselines without a page.
        return Entrant(Arm(name or method, method, dict(settings)), dict(settings), runs)
    own = page.settings()
    given = {**_fitting(arena.defaults, page), **settings}
    built = page.make(given)
    if runs == TRAINING:
        needs = page.as_method(built).declared("needs")
        check_needs(method, needs, arena.task, data=arena.data, options=arena.options)
    chosen = {key: value for key, value in given.items() if key not in own or own[key] != value}
    parent = registry.parent_of(built)
    arm = Arm(
        name or method,
        method,
        _plain({**own, **given}),
        registry.parts_of(built),
        parent.name if parent is not None else None,
    )
    return Entrant(arm, chosen, runs)


def _fitting(defaults: Mapping[str, Any], page: registry.Page) -> dict[str, Any]:
    """Return the arena's defaults for settings that the method has."""
    own = page.settings()
    fitting = {key: value for key, value in defaults.items() if key in own}
    built = page.make(fitting)
    for path, value in defaults.items():
        if "." in path:
            try:
                configure(built, path, value)
            except UserError:
                continue
            fitting[path] = value
    return fitting


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (str, int, float, bool, list, tuple, dict, type(None))
    return {key: value if isinstance(value, kinds) else describe(value) for key, value in settings.items()}


def read_entry(text: str) -> tuple[str, dict[str, Any]]:
    """Parse `grpo:group_size=16,update.optimizer.lr=1e-3`: the method and its settings. Commas in brackets do not separate.

    Raises:
        UserError: a setting is not written name=value.
    """
    method, _, rest = text.partition(":")
    return method, read_settings(rest)


@dataclass
class Contest:
    """Comparison in progress: its jobs, and the study of the results so far.

    Args:
        arena: the arena.
        entrants: the methods; the first is the baseline.
        seeds: seeds of each method.
        name: name of the study.
        command: command that repeats it.
    """

    arena: Arena
    entrants: Sequence[Entrant]
    seeds: Sequence[int]
    name: str = ""
    command: str = ""
    works: list[Work] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [one.arm.name for one in self.entrants]
        twice = [name for name in names if names.count(name) > 1]
        if not names:
            raise UserError("there is nothing to compare: give at least one method")
        if twice:
            raise UserError(f"{twice[0]!r} enters twice; the same method again needs other settings")
        # Ordered by seed, so that the report compares all methods early.
        self.works = [Work(one.arm.name, one.job(self.arena, seed)) for seed in self.seeds for one in self.entrants]
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        self._commit, self._versions = commit(), versions()

    def run(
        self,
        cache: Cache | None = None,
        *,
        jobs: int | None = None,
        fresh: bool = False,
        out: Path | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> Study:
        """Run the jobs that are not in the cache, and return the study; with `out`, its file and report are kept up to date."""
        writer = [Writer(self, out)] if out is not None else []
        run_all(
            self.works,
            cache or Cache(default_folder()),
            jobs=jobs,
            fresh=fresh,
            logs=out / "logs" if out is not None else None,
            watchers=[*writer, *watchers],
        )
        for each in writer:
            each.write()
        return self.study()

    def study(self) -> Study:
        """Return the study of the results so far."""
        arena, scoring = self.arena, self.arena.scoring
        return Study(
            name=self.name or f"{len(self.entrants)} methods on {arena.name}",
            arena=arena.name,
            metric=scoring.metric,
            direction=scoring.direction,
            budget=arena.budget,
            seeds=tuple(self.seeds),
            arms=tuple(one.arm for one in self.entrants),
            runs=tuple(_run_of(work) for work in self.works if work.state != "waiting"),
            samples=tuple(sample for work in self.works if work.record for sample in work.record.samples),
            description=arena.description,
            command=self.command,
            created=self._began,
            commit=self._commit,
            versions=self._versions,
            settings=_shown(arena),
            tasks=scoring.tasks,
            threshold=scoring.threshold,
            optimum=scoring.optimum,
            paired=scoring.paired,
        )


def _run_of(work: Work) -> Run:
    if work.record is not None:
        return work.record.run
    state = "running" if work.state == "running" else "crashed"
    return Run(work.arm, work.seed, state, tuple(work.curve), duration=work.seconds, error=work.error)  # type: ignore[arg-type]


def _shown(arena: Arena) -> dict[str, Any]:
    """Return the report's settings of the arena."""
    held = encode(arena)
    kept = ("task", "function", "options", "data", "verifier", "model", "scoring", "defaults")
    return {name: held[name] for name in kept if held[name]}


class Writer:
    """Watcher that writes the study's file and report into a folder: at the start, at the end, and every few seconds between."""

    def __init__(self, contest: Contest, folder: Path, every: float = 5.0) -> None:
        self.contest, self.folder, self.every = contest, folder, every
        self._changed = True
        self._written = float("-inf")

    def changed(self, work: Work) -> None:
        """Note that there is a change to write."""
        self._changed = True

    def tick(self) -> None:
        """Write, if there is a change and some time has passed."""
        if self._changed and time.monotonic() - self._written > self.every:
            self.contest.study().save(self.folder / STUDY)
            self._changed, self._written = False, time.monotonic()

    def write(self) -> None:
        """Write the study and its report."""
        study = self.contest.study()
        study.save(self.folder / STUDY)
        write_report(study, self.folder / REPORT)


def claim_folder(folder: Path, contest: Contest, force: bool) -> None:
    """Make the folder of a comparison, or continue in the one in which it was begun.

    Raises:
        UserError: the folder holds another comparison, or something else, or it cannot be written.
    """
    # A comparison that was killed while its model was made has its logs alone.
    if folder.is_dir() and any(path.name not in (LOCK, "logs") for path in folder.iterdir()) and not force:
        if not (folder / STUDY).is_file():
            raise UserError(f"--out {folder} is not empty and holds no comparison: give another folder, or --force")
        before = Study.load(folder / STUDY)
        if (before.arena, [arm.name for arm in before.arms]) != (
            contest.arena.name,
            [one.arm.name for one in contest.entrants],
        ):
            raise UserError(
                f"--out {folder} holds another comparison ({', '.join(arm.name for arm in before.arms)} on"
                f" {before.arena}): give another folder, or --force"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror or error}") from error


def seeds_of(count: int) -> tuple[int, ...]:
    """Return the first `count` seeds.

    Raises:
        UserError: `count` is less than 1.
    """
    if count < 1:
        raise UserError(f"--seeds {count} is out of range: at least 1")
    return tuple(range(count))
