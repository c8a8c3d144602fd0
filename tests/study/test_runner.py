"""Runs are processes of their own: kept when they finish, told when they crash, and gone when the one that waits is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vantage.cli import main
from vantage.core.errors import UserError
from vantage.study.arenas import Arena, Scoring
from vantage.study.cache import Cache
from vantage.study.contest import Contest, claim_folder, entrant
from vantage.study.jobs import Reporter, carry_out
from vantage.study.live import Live, seconds_left
from vantage.study.results import Budget, Study
from vantage.study.runner import Work

ROOT = Path(__file__).parents[2]


def toy(function: str, **scoring: Any) -> Arena:
    return Arena(
        "toy", "toy", Budget("pulls", 100), Scoring("gain", **scoring), function=f"tests.study.hooks:{function}"
    )


def contest(where: Arena, seeds: int, *entries: tuple[str, dict[str, Any]]) -> Contest:
    return Contest(where, [entrant(where, name, settings) for name, settings in entries], range(seeds), command="...")


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that is to come about soon."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def test_a_job_in_this_process_gives_its_record() -> None:
    where = toy("learn")
    told: list[dict[str, Any]] = []
    record = carry_out(entrant(where, "bandit", {"end": 0.5}).job(where, 3), "arm", told.append)
    assert [point.samples for point in record.run.curve] == [0, 25, 50, 75, 100]
    assert [point.score for point in record.run.curve] == pytest.approx([0.03, 0.155, 0.28, 0.405, 0.53])
    assert record.run.score == pytest.approx(0.53)
    assert record.run.diagnostics["entropy"][-1] == (100, 0.0)
    assert [(sample.arm, sample.seed, sample.reward) for sample in record.samples] == [("arm", 3, 1.0)]
    assert [message["spent"] for message in told if "score" in message] == [0, 25, 50, 75, 100]
    assert record.versions["torch"]


def test_diagnostics_are_averaged_within_a_sixtieth_of_the_budget() -> None:
    report = Reporter("a", 0, 600.0)
    for step in range(1, 601):
        report.record(step, value=float(step))
    report.point(600, 1.0)
    points = report.run(None, ("score",)).diagnostics["value"]
    assert len(points) == 61
    assert points[1] == (14.5, 14.5)


def test_a_score_a_task_is_kept_and_others_are_refused() -> None:
    where = toy("two_tasks", tasks=("easy", "hard"))
    assert carry_out(entrant(where, "x", {}).job(where, 0), "x").run.score == 0.625
    other = replace(where, scoring=replace(where.scoring, tasks=("score",)))
    with pytest.raises(UserError, match=r"scored \['easy', 'hard'\]"):
        carry_out(entrant(other, "x", {}).job(other, 0), "x")


def test_crashes_are_told_and_stop_no_other_and_finished_runs_are_kept(tmp_path: Path) -> None:
    cache, log = Cache(tmp_path / "cache"), tmp_path / "log"
    arms = [("weak", {"end": 0.5, "log": str(log)})]
    first = contest(toy("fragile"), 4, *arms)
    study = first.run(cache, jobs=2, out=tmp_path / "out")
    runs = {run.seed: run for run in study.runs}
    assert [runs[seed].status for seed in range(4)] == ["ok", "crashed", "crashed", "crashed"]
    assert runs[1].error == "UserError: the loss is not finite"
    assert [point.score for point in runs[1].curve] == [0.5]
    assert "SIGKILL" in runs[2].error
    assert runs[3].status == "crashed"
    assert "nan" in runs[3].error
    assert "UserError: the loss is not finite" in (tmp_path / "out/logs/weak-s1.log").read_text()
    # Again: what had finished is taken, what had crashed is tried again.
    assert log.read_text() == "weak 0\n"
    again = contest(toy("fragile"), 2, *arms)
    assert [run.status for run in again.run(cache, jobs=2).runs] == ["ok", "crashed"]
    assert [work.cached for work in again.works] == [True, False]
    assert log.read_text() == "weak 0\n"
    # A fresh start runs it anyway, and so do other settings.
    contest(toy("fragile"), 1, *arms).run(cache, jobs=1, fresh=True)
    assert log.read_text() == "weak 0\nweak 0\n"


def test_killing_the_comparison_loses_no_finished_run_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "arena.toml").write_text(
        'name = "toy"\nfield = "toy"\nfunction = "tests.study.hooks:gated"\n'
        '[budget]\nunit = "pulls"\nsize = 100\n[scoring]\nmetric = "gain"\n'
    )
    command = [
        *("compare", f"one:folder={tmp_path},log={tmp_path / 'log'}"),
        *("--arena", str(tmp_path / "arena.toml"), "--seeds", "2", "--jobs", "2", "--out", str(tmp_path / "out")),
    ]
    monkeypatch.setenv("VANTAGE_CACHE", str(tmp_path / "cache"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    program = [sys.executable, "-m", "vantage", *command]
    running = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL)
    try:
        until(lambda: bool(list(tmp_path.glob("cache/runs/*/*.json"))) and (tmp_path / "pid-1").exists())
        worker = int((tmp_path / "pid-1").read_text() or 0)
        os.kill(running.pid, signal.SIGKILL)
    finally:
        running.kill()
        running.wait()
    until(lambda: not Path(f"/proc/{worker}").exists() or "Z (zombie)" in _status(worker), 20)
    (tmp_path / "gate").touch()
    assert main(command) == 0
    assert "kept from before" in capsys.readouterr().out
    # Seed 0 ran once, before the kill; seed 1 had to begin again.
    assert (tmp_path / "log").read_text().splitlines() == ["one 0", "one 1"]
    study = Study.load(tmp_path / "out/study.json")
    assert [(run.seed, run.status) for run in study.runs] == [(0, "ok"), (1, "ok")]
    assert "<!doctype html>" in (tmp_path / "out/report.html").read_text().lower()


def _status(process: int) -> str:
    try:
        return Path(f"/proc/{process}/status").read_text()
    except OSError:
        return "Z (zombie)"


def test_a_folder_of_another_comparison_is_refused(tmp_path: Path) -> None:
    where = toy("learn")
    one = contest(where, 1, ("a", {}))
    one.study().save(tmp_path / "study.json")
    claim_folder(tmp_path, one, force=False)
    with pytest.raises(UserError, match="holds another comparison"):
        claim_folder(tmp_path, contest(where, 1, ("b", {})), force=False)
    claim_folder(tmp_path, contest(where, 1, ("b", {})), force=True)
    (tmp_path / "killed early" / "logs").mkdir(parents=True)
    claim_folder(tmp_path / "killed early", one, force=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").touch()
    with pytest.raises(UserError, match="holds no comparison"):
        claim_folder(tmp_path / "other", one, force=False)


def test_the_same_entrant_twice_and_none_at_all_are_refused() -> None:
    with pytest.raises(UserError, match="enters twice"):
        contest(toy("learn"), 1, ("a", {}), ("a", {}))
    with pytest.raises(UserError, match="nothing to compare"):
        contest(toy("learn"), 1)


def works(count: int) -> list[Work]:
    return contest(toy("learn"), count, ("a", {})).works


def test_time_left_is_judged_by_runs_of_the_same_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    four = works(4)
    assert seconds_left(four, 2) is None
    four[0].state, four[0].began, four[0].ended = "ok", 90.0, 100.0
    four[1].state, four[1].began, four[1].spent = "running", 105.0, 50.0
    # 10 s a run: half a run and two whole ones on two processes.
    assert seconds_left(four, 2) == pytest.approx(12.5)
    # On eight processes the longest of them is what it takes.
    assert seconds_left(four, 8) == pytest.approx(10.0)


def test_plain_lines_tell_scores_crashes_and_what_was_kept(capsys: pytest.CaptureFixture[str]) -> None:
    two = works(2)
    with Live("toy", two, 2, live=False) as live:
        two[0].state, two[0].error = "crashed", "UserError: no"
        live.changed(two[0])
        two[1].state, two[1].cached = "ok", True
        live.changed(two[1])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "toy: 2 runs, 2 at a time"
    assert out[1] == "a seed 0  crashed: UserError: no"
    assert out[2].startswith("a seed 1  kept from before")


def test_the_terminal_shows_every_run_and_every_arm() -> None:
    from rich.console import Console

    three = works(3)
    three[0].state, three[0].began, three[0].spent = "running", time.monotonic() - 5, 50.0
    three[1].state, three[1].error = "crashed", "UserError: [bold]no[/bold]"
    live = Live("toy", three, 2, live=True)
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(live._table())
    shown = console.export_text()
    assert "a seed 0" in shown
    assert "left 5s" in shown
    assert "UserError: [bold]no[/bold]" in shown
    assert "▸✗·" in shown
