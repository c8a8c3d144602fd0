"""Execution of jobs in parallel processes, with a cache of finished runs.

Every process has one thread. A job whose record is in the cache is not run again; a crashed one is reported and does not stop
the others. A process writes its own record when it has finished, so that killing the parent loses no finished run; and it ends
when the parent has ended, for whatever reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vantage.core.errors import TrainingError
from vantage.study import cache as caches
from vantage.study.arenas import Arena
from vantage.study.cache import Cache
from vantage.study.jobs import Job, Record
from vantage.study.results import Point
from vantage.study.schema import encode

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "1",
}
"""Environment variables of a process: one thread, and deterministic hashing."""


@dataclass
class Work:
    """Job with its progress.

    Attributes:
        arm: name of the arm.
        job: the job.
        state: "waiting", "running", "ok" or "crashed".
        spent: spent budget so far.
        curve: points so far.
        record: record of a finished run.
        cached: whether the record is from the cache.
        error: error of a crashed run.
        began, ended: seconds of `time.monotonic`.
    """

    arm: str
    job: Job
    state: str = "waiting"
    spent: float = 0.0
    curve: list[Point] = field(default_factory=list)
    record: Record | None = None
    cached: bool = False
    error: str = ""
    began: float = 0.0
    ended: float = 0.0
    key: str = ""

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.job.seed

    @property
    def share(self) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        return 1.0 if self.state == "ok" else min(1.0, self.spent / self.job.arena.budget.size)

    @property
    def seconds(self) -> float:
        """Seconds since its beginning, or of its duration."""
        return (self.ended or time.monotonic()) - self.began if self.began else 0.0

    @property
    def score(self) -> float | None:
        """Last score."""
        if self.record is not None:
            return self.record.run.score
        return self.curve[-1].score if self.curve else None


class Watcher(Protocol):
    """Interface of an observer of the runs."""

    def changed(self, work: Work) -> None:
        """Handle a run that has begun, has a new score, or has ended."""
        ...

    def tick(self) -> None:
        """Handle the passing of time; called a few times per second."""
        ...


def default_jobs() -> int:
    """Return the number of parallel processes: the processors that this process may use."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:
        return os.cpu_count() or 1


def run_all(
    works: Sequence[Work],
    cache: Cache,
    *,
    jobs: int | None = None,
    fresh: bool = False,
    logs: Path | None = None,
    watchers: Sequence[Watcher] = (),
) -> None:
    """Run all works; each ends "ok" with its record or "crashed" with its error.

    Args:
        works: the works, in order.
        cache: cache of records.
        jobs: number of parallel processes; None takes all processors.
        fresh: run everything again, cached runs included.
        logs: folder for the processes' output; None discards it.
        watchers: observers.

    Raises:
        TrainingError: the model that the runs start from could not be made.
    """
    for work in works:
        work.key = caches.key_of_job(work.job, caches.code_of_job(work.job))
        if not fresh and _take(work, cache):
            for watcher in watchers:
                watcher.changed(work)
    waiting = [work for work in works if work.state == "waiting"]
    for arena in dict.fromkeys(_Held(work.job.arena) for work in waiting):
        _prepare(arena.arena, [work for work in waiting if work.job.arena == arena.arena], cache, logs)
    pool = _Pool(cache, logs, watchers)
    try:
        pool.run(waiting, jobs or default_jobs(), fresh)
    finally:
        pool.stop()


def _take(work: Work, cache: Cache) -> bool:
    """Load the record of a finished run from the cache, if there is one."""
    found = cache.load(work.key)
    if found is not None:
        work.record, work.cached, work.state = found.named(work.arm), True, "ok"
    return found is not None


@dataclass(frozen=True)
class _Held:
    """Hashable wrapper of an arena, which contains dicts."""

    arena: Arena

    def __hash__(self) -> int:
        return hash(self.arena.name)


def _prepare(arena: Arena, works: Sequence[Work], cache: Cache, logs: Path | None) -> None:
    """Make the initial model of the arena's runs, unless it exists, and set it in them."""
    if arena.model is None:
        return
    folder = Path(arena.model.path) if arena.model.path else cache.model_path(caches.key_of_model(arena))
    if not (folder / "config.json").is_file():
        order = {"kind": "model", "arena": encode(arena), "result": str(folder)}
        with _Process(order, _log(logs, f"model-{arena.name}")) as process:
            ending = process.wait()
        if "error" in ending:
            raise TrainingError(f"the model of arena {arena.name} could not be made: {ending['error']}")
    for work in works:
        work.job = Job(work.job.method, work.job.settings, work.job.seed, arena, work.job.function, str(folder))


def _log(logs: Path | None, name: str) -> Path | None:
    if logs is None:
        return None
    logs.mkdir(parents=True, exist_ok=True)
    clean = "".join(c if c.isalnum() or c in "-._=" else "-" for c in name)
    return logs / f"{clean}.log"


class _Process:
    """Worker process with its job, and the pipe of its messages."""

    def __init__(self, order: dict[str, Any], log: Path | None) -> None:
        read, write = os.pipe()
        self.channel = os.fdopen(read, "rb", buffering=0)
        self._rest = b""
        self._output = open(log, "wb") if log is not None else subprocess.DEVNULL  # noqa: SIM115
        self.log = log
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "vantage.study.worker", str(write)],
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                env=os.environ | ENVIRONMENT | {"PYTHONPATH": _search_path()},
                # Ctrl-C is handled by the parent, which stops the others.
                start_new_session=True,
            )
        finally:
            os.close(write)
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps(order | {"path": sys.path}) + "\n").encode())
        self.process.stdin.flush()  # and left open: when it closes, the worker ends

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield its messages since the last call; the last one has "done" or "error"."""
        part = self.channel.read(65_536) or b""
        *lines, self._rest = (self._rest + part).split(b"\n")
        ended = False
        for line in lines:
            message = json.loads(line)
            ended |= "done" in message or "error" in message
            yield message
        if not part and not ended:
            code = self.process.wait()
            yield {"error": f"the process ended with {_signal(code)}{self._last_words()}"}

    def wait(self) -> dict[str, Any]:
        """Return its last message."""
        while True:
            for message in self.messages():
                if "done" in message or "error" in message:
                    return message

    def _last_words(self) -> str:
        if self.log is None:
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, if it has not ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.channel.close()
        if not isinstance(self._output, int):
            self._output.close()


def _search_path() -> str:
    """Return PYTHONPATH with the package's own folder and this process's search path."""
    own = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, [own, os.environ.get("PYTHONPATH", "")]))


def _signal(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class _Pool:
    """Pool of a limited number of parallel processes."""

    def __init__(self, cache: Cache, logs: Path | None, watchers: Sequence[Watcher]) -> None:
        self.cache, self.logs, self.watchers = cache, logs, watchers
        self.selector = selectors.DefaultSelector()
        self.running: dict[Any, tuple[_Process, Work]] = {}

    def run(self, works: Sequence[Work], jobs: int, fresh: bool) -> None:
        """Run all works."""
        waiting = list(works)
        while waiting or self.running:
            while waiting and len(self.running) < jobs:
                self._start(waiting.pop(0), fresh)
            for key, _ in self.selector.select(timeout=0.25):
                self._hear(key.fileobj)
            for watcher in self.watchers:
                watcher.tick()

    def stop(self) -> None:
        """End the running processes."""
        for process, _ in self.running.values():
            with contextlib.suppress(OSError):
                process.process.kill()
        for process, _ in self.running.values():
            process.close()
        self.running.clear()
        self.selector.close()

    def _start(self, work: Work, fresh: bool) -> None:
        # Another comparison may have finished it in the meantime.
        if not fresh and _take(work, self.cache):
            self._tell(work)
            return
        if caches.key_of_job(work.job, caches.code_of_job(work.job)) != work.key:
            work.state, work.error = "crashed", "the code that it depends on was changed after the comparison began"
            self._tell(work)
            return
        result = self.cache.record_path(work.key)
        order = {"kind": "run", "arm": work.arm, "job": encode(work.job), "result": str(result)}
        process = _Process(order, _log(self.logs, f"{work.arm}-s{work.seed}"))
        self.selector.register(process.channel, selectors.EVENT_READ)
        self.running[process.channel] = (process, work)
        work.state, work.began = "running", time.monotonic()
        self._tell(work)

    def _hear(self, channel: Any) -> None:
        process, work = self.running[channel]
        for message in process.messages():
            if "spent" in message:
                work.spent = message["spent"]
            if "score" in message:
                work.curve.append(Point(message["spent"], message["score"], message["seconds"]))
                self._tell(work)
            if "done" in message or "error" in message:
                self._end(channel, message.get("error", ""))
                return

    def _end(self, channel: Any, error: str) -> None:
        process, work = self.running.pop(channel)
        self.selector.unregister(channel)
        process.close()
        work.ended = time.monotonic()
        if not error:
            found = self.cache.load(work.key)
            error = "" if found is not None else f"its record is not in {self.cache.record_path(work.key)}"
            work.record = found.named(work.arm) if found is not None else None
        work.state, work.error = ("crashed" if error else "ok"), error
        self._tell(work)

    def _tell(self, work: Work) -> None:
        for watcher in self.watchers:
            watcher.changed(work)
