"""Scoring of a batch: cheap verifiers in the calling process, the others in persistent worker processes.

A row on which a verifier crashes or hangs scores 0, and counts under `errors`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import pickle
import selectors
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vantage.core.errors import TrainingError, UserError
from vantage.rewards.verifiers import Rewards, Verifier, named_scores

_START_SECONDS = 300.0
"""Seconds for a worker to start and to import what its verifiers need."""
ROW_SECONDS = 10.0
"""Seconds for a row where the verifier does not define `row_seconds`."""
_LEAST_MEMORY = 2 << 30
_STOOD = 0.5
"""Seconds beyond a wait's timeout from which this process counts as having been stopped."""


class _Failed(str):
    """Reason why a row has no score."""


@dataclass(frozen=True)
class _Scored:
    """Scores of a row, and the verifier's notes."""

    scores: dict[str, float]
    notes: dict[str, float] = field(default_factory=dict)


_Outcome = _Scored | _Failed


def score_all(
    verifiers: Verifier | Rewards | Mapping[str, Verifier],
    problems: Sequence[Any],
    completions: Sequence[str],
    workers: int | None = None,
    timeout: float | None = None,
    failing: float = 1.0,
) -> dict[str, list[float]]:
    """Score N completions by every verifier.

    Args:
        verifiers: one verifier, several by name, or `Rewards`.
        problems: N problems, one for each completion.
        completions: N texts.
        workers: number of processes for the verifiers that need one; by default the number of cores, at most 8. They start
            at the first call that needs them and serve all later ones.
        timeout: seconds for one verifier on one row, above 0; past it the worker is replaced. By default the result of the
            verifier's method `row_seconds(problem)`, or 10 where it has none.
        failing: largest share of the rows on which one verifier may fail.

    Returns:
        Columns of N numbers by name: a verifier's name (`score` for one without), or `name/key` where it returns several;
        NaN where a score is missing. `errors` counts, for each row, the verifiers that crashed, hung or did not return a
        number; these score 0. The first error of each kind is also shown as a warning. Columns `notes/NAME` have the
        verifiers' notes (`grading.Noted`), summed over the verifiers.

    Raises:
        UserError: problems and completions differ in number, a verifier is called `errors`, or the timeout is not above 0.
        TrainingError: a verifier failed on more rows than `failing` allows; the message has the first reason.
    """
    if len(problems) != len(completions):
        raise UserError(f"score_all: {len(problems)} problems for {len(completions)} completions")
    named = verifiers.verifiers if isinstance(verifiers, Rewards) else verifiers
    if not isinstance(named, Mapping):
        named = {"": named}
    if "errors" in named:
        raise UserError("score_all: no verifier can be called 'errors', the name of the column that counts failures")
    if timeout is not None and timeout <= 0:
        raise UserError(f"timeout={timeout} is out of range: it must be above 0")
    outcomes: dict[str, list[_Outcome]] = {}
    packed = {name: _packed(each) for name, each in named.items()}
    sent = [name for name in named if packed[name] is not None]
    if sent and completions:
        jobs = [
            (name, problem, text, timeout or _seconds(named[name], problem))
            for name in sent
            for problem, text in zip(problems, completions)
        ]
        done = _shared(workers).run({name: packed[name] or b"" for name in sent}, jobs)
        for place, name in enumerate(sent):
            outcomes[name] = done[place * len(problems) : (place + 1) * len(problems)]
    for name, each in named.items():
        if packed[name] is None:
            outcomes[name] = [_here(name, each, problem, text) for problem, text in zip(problems, completions)]
    return _columns({name: outcomes.get(name, []) for name in named}, len(completions), failing)


def _packed(each: Verifier) -> bytes | None:
    """Return the verifier as a worker can load it, or None when it runs here: it is cheap, or it cannot be sent."""
    if not getattr(each, "isolated", True):
        return None
    module = getattr(each, "__module__", "") or ""
    if module == "__main__" or getattr(type(each), "__module__", "") == "__main__":
        return None
    try:
        return pickle.dumps(each)
    except Exception:  # for a closure, a lambda, an object with a lock, ... pickle raises exceptions of many types
        return None


def _seconds(each: Verifier, problem: Any) -> float:
    """Return the time that a verifier may take for a problem."""
    ask = getattr(each, "row_seconds", None)
    return float(ask(problem)) if ask is not None else ROW_SECONDS


def _here(name: str, each: Verifier, problem: Any, completion: str) -> _Outcome:
    try:
        score = each(problem, completion)
        return _Scored(named_scores(name, score), dict(getattr(score, "notes", {})))
    except Exception as error:
        return _Failed(f"{type(error).__name__}: {error}")


def _columns(outcomes: Mapping[str, Sequence[_Outcome]], rows: int, failing: float) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    notes: dict[str, list[float]] = {}
    errors = [0.0] * rows
    for name, results in outcomes.items():
        keys = dict.fromkeys(key for result in results if isinstance(result, _Scored) for key in result.scores)
        for key in keys or [name or "score"]:
            columns[key] = [
                result.scores.get(key, math.nan) if isinstance(result, _Scored) else 0.0 for result in results
            ]
        for place, result in enumerate(results):
            for key, value in result.notes.items() if isinstance(result, _Scored) else ():
                notes.setdefault(f"notes/{key}", [0.0] * rows)[place] += value
        failed = {place: result for place, result in enumerate(results) if isinstance(result, _Failed)}
        for place in failed:
            errors[place] += 1.0
        if failed:
            place, why = next(iter(failed.items()))
            if len(failed) > failing * rows:
                raise TrainingError(
                    f"verifier {name or 'score'!r} failed on {len(failed)} of {rows} rows, more than the share of {failing:g} that"
                    f" the option `failing` allows; row {place}: {why}"
                )
            warnings.warn(
                f"verifier {name or 'score'!r} failed on {len(failed)} of {rows} rows, which score 0; row {place}: {why}",
                RuntimeWarning,
                stacklevel=3,
            )
    return columns | notes | {"errors": errors}


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    deadline: float
    rows: deque[int] = field(default_factory=deque)
    ready: bool = False
    begun: bool = False
    unread: bytes = b""


class Pool:
    """Pool of worker processes for verifiers, started when they are needed, kept until `close`, replaced when they die."""

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise UserError(f"workers={workers} is out of range: it must be at least 1")
        self._size = workers
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def run(self, verifiers: Mapping[str, bytes], jobs: Sequence[tuple[str, Any, str, float]]) -> list[_Outcome]:
        """Run every job (verifier's name, problem, completion, seconds allowed); a failed one returns the reason.

        Args:
            verifiers: name -> pickled verifier.
            jobs: jobs to run.
        """
        with self._lock:
            try:
                return self._run(verifiers, jobs)
            except BaseException:
                self._stop()  # the workers' unfinished jobs are obsolete
                raise

    def _run(self, verifiers: Mapping[str, bytes], jobs: Sequence[tuple[str, Any, str, float]]) -> list[_Outcome]:
        outcomes: list[_Outcome | None] = [None] * len(jobs)
        # Several chunks per worker, so that slow rows even out; long enough that communication costs little.
        length = max(1, min(32, -(-len(jobs) // (4 * self._size))))
        waiting = deque(deque(range(first, min(first + length, len(jobs)))) for first in range(0, len(jobs), length))
        busy: list[_Worker] = []
        with selectors.DefaultSelector() as selector:
            while waiting or busy:
                idle = [worker for worker in self._workers if worker not in busy]
                while waiting and len(busy) < self._size:
                    worker = idle.pop() if idle else self._start()
                    worker.rows, worker.begun = waiting.popleft(), False
                    worker.deadline = time.monotonic() + _START_SECONDS
                    busy.append(worker)
                    assert worker.process.stdout is not None
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                    self._send(worker, (verifiers, [jobs[row] for row in worker.rows]))
                before = time.monotonic()
                left = max(min(worker.deadline for worker in busy) - before, 0.0)
                events = selector.select(left)
                waited = time.monotonic() - before
                if waited > left + _STOOD:
                    # This process was stopped (SIGSTOP, a suspended laptop): that time does not count.
                    for worker in busy:
                        worker.deadline += waited
                    events = events or selector.select(0)
                for key, _ in events:
                    worker = key.data
                    part = os.read(key.fd, 1 << 16)
                    why = self._read(worker, part, outcomes, jobs) if part else self._death(worker)
                    if why or not worker.rows:
                        self._finish(worker, why, busy, selector, outcomes, waiting)
                now = time.monotonic()
                for worker in [each for each in busy if each.deadline <= now]:
                    given = jobs[worker.rows[0]][3] if worker.begun else _START_SECONDS
                    self._finish(worker, f"no result after {given:g} s", busy, selector, outcomes, waiting)
        return [outcome if outcome is not None else _Failed("lost") for outcome in outcomes]

    def _start(self) -> _Worker:
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from vantage.rewards.deferred import defer; defer('vantage.core'); "
            f"from vantage.rewards.worker import main; main({os.getpid()}, {_memory(self._size)})"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            start_new_session=True,
        )
        worker = _Worker(process, 0.0)
        self._workers.append(worker)
        return worker

    @staticmethod
    def _send(worker: _Worker, message: Any) -> None:
        data = pickle.dumps(message)
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(len(data).to_bytes(8, "little") + data)
            worker.process.stdin.flush()
        except BrokenPipeError:
            return  # it has died; reading from it says so

    def _read(
        self,
        worker: _Worker,
        part: bytes,
        outcomes: list[_Outcome | None],
        jobs: Sequence[tuple[str, Any, str, float]],
    ) -> str:
        """Read the worker's output; return the reason to replace it, "" where there is none."""
        *lines, worker.unread = (worker.unread + part).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "ready" in message:
                worker.ready = True
            elif "fatal" in message:
                # Independent of the rows, and the same in every worker.
                raise UserError(f"a verifier cannot be loaded in a worker process: {message['fatal']}")
            elif "begin" in message:
                worker.begun = True
            else:
                row = worker.rows.popleft()
                held = message.get("scores")
                outcomes[row] = _Scored(held, message["notes"]) if held is not None else _Failed(message["error"])
            running = worker.begun and worker.rows
            worker.deadline = time.monotonic() + (jobs[worker.rows[0]][3] if running else _START_SECONDS)
        return ""

    @staticmethod
    def _death(worker: _Worker) -> str:
        code = worker.process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if not worker.ready:
            raise RuntimeError(f"a worker process for verifiers did not start ({how}); its message is above")
        return f"the worker process died ({how})"

    def _finish(
        self,
        worker: _Worker,
        why: str,
        busy: list[_Worker],
        selector: selectors.BaseSelector,
        outcomes: list[_Outcome | None],
        waiting: deque[deque[int]],
    ) -> None:
        """Release the worker from its chunk. When it is replaced, its current row fails and the others wait for another worker."""
        assert worker.process.stdout is not None
        selector.unregister(worker.process.stdout)
        busy.remove(worker)
        if why:
            outcomes[worker.rows.popleft()] = _Failed(why)
            if worker.rows:
                waiting.appendleft(worker.rows)
            self._workers.remove(worker)
            _end(worker)

    def _stop(self) -> None:
        for worker in self._workers:
            _end(worker)
        self._workers.clear()

    def close(self) -> None:
        """End the workers."""
        if os.getpid() == self._owner:
            with self._lock:
                self._stop()


def _memory(workers: int) -> int:
    """Return a worker's memory limit in bytes: its share of the machine's memory, and enough for any library."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        whole = 0
    return max(whole // (workers + 1), _LEAST_MEMORY)


def _end(worker: _Worker) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    for stream in (worker.process.stdin, worker.process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


_pools: dict[tuple[int, int], Pool] = {}


def _shared(workers: int | None) -> Pool:
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
    key = (os.getpid(), workers)
    if key not in _pools:
        _pools[key] = Pool(workers)
        atexit.register(_pools[key].close)
    return _pools[key]
