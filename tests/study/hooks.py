"""Runs of nothing, for the tests of the pool: functions as an arena names them. They load no network."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from vantage.core.errors import UserError
from vantage.study.jobs import Job, Reporter


def learn(job: Job, report: Reporter) -> float:
    """A curve that rises to the setting `end`, plus a little of the seed; leaves a line where `log` says."""
    _note(job)
    size = job.arena.budget.size
    for part in range(5):
        report.record(size * part / 4, entropy=1.0 - part / 4)
        report.point(size * part / 4, job.settings.get("end", 1.0) * part / 4 + 0.01 * job.seed)
    report.sample("2+2=", "4", 1.0)
    return report.curve[-1].score


def fragile(job: Job, report: Reporter) -> float:
    """Seed 1 raises, seed 2 is killed, seed 3 gives no score, all others learn."""
    if job.seed == 1:
        report.point(0, 0.5)
        raise UserError("the loss is not finite")
    if job.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if job.seed == 3:
        return float("nan")
    return learn(job, report)


def gated(job: Job, report: Reporter) -> float:
    """Seed 0 learns; the others wait for the file `gate` once they have left their process number."""
    folder = Path(job.settings["folder"])
    if job.seed:
        (folder / f"pid-{job.seed}").write_text(str(os.getpid()))
        while not (folder / "gate").exists():
            time.sleep(0.02)
    return learn(job, report)


def two_tasks(job: Job, report: Reporter) -> dict[str, float]:
    """A score for each of two tasks."""
    return {"easy": 1.0, "hard": 0.25}


def _note(job: Job) -> None:
    log = job.settings.get("log")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{job.method} {job.seed}\n")
