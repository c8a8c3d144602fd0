"""A run folder has one writer, and what it held is lost only to a run that has replaced it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vantage
from vantage.cli import main
from vantage.core.errors import UserError
from vantage.folders import LOCK, locked

RUN = ("train", "a2c", "--task", "cartpole", "--eval-samples", "0", "--set", "rows=2", "length=4")


def start(out: Path, *more: str, steps: int = 16) -> int:
    return main([*RUN[:4], "--steps", str(steps), *RUN[4:], "--out", str(out), *more])


def lines(out: Path) -> str:
    return (out / "metrics.jsonl").read_text()


def test_a_second_process_is_refused_by_the_first_ones_number(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from vantage.folders import locked
with locked(Path({str(tmp_path)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"is in use by process {other.pid} on "), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path):  # a process that was killed holds nothing
        pass


def test_a_run_that_is_running_is_neither_resumed_nor_replaced(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert start(out) == 0
    before = lines(out)
    with locked(out):
        with pytest.raises(UserError, match="is in use by"):
            vantage.resume(out)
        assert start(out, "--force") == 2
    assert lines(out) == before


@pytest.mark.parametrize(
    "wrong",
    [
        ("--device", "cuda:99"),
        ("--steps", "0"),
        ("--save-every", "-1"),
        ("--model", "missing"),
        ("--option", "max_new_tokens=0"),
        ("--set", "lr=-1"),
        ("--wandb", "x"),
    ],
)
def test_force_with_something_wrong_leaves_the_old_run(wrong: tuple[str, ...], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    assert start(out) == 0
    before = {
        path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != LOCK
    }
    assert start(out, "--force", *wrong) != 0
    assert {
        path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != LOCK
    } == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert "Traceback" not in capsys.readouterr().err


def test_force_replaces_a_run_once_the_new_one_has_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert start(out) == 0
    seen = []

    def watch(report: Any) -> None:
        seen.append((report.step, sorted(path.name for path in tmp_path.iterdir())))

    assert len(lines(out).splitlines()) == 3
    vantage.train(
        "a2c",
        "cartpole",
        steps=8,
        evaluate_samples=0,
        out=out,
        force=True,
        settings={"rows": 2, "length": 4},
        listeners=[watch],
    )
    assert (0, [".run.replaced", "run"]) in seen
    assert len(lines(out).splitlines()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_model_inside_the_run_that_would_be_replaced_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert start(out) == 0
    assert start(out, "--force", "--model", str(out / "model")) == 2
    assert (out / "model").is_dir()


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    assert start(tmp_path / "run", "--model", "missing") == 2
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_writes_follows_the_umask(tmp_path: Path) -> None:
    assert start(tmp_path / "run") == 0
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    assert {
        path.name for path in (tmp_path / "run").rglob("*") if path.is_file() and path.stat().st_mode != usual
    } == set()
