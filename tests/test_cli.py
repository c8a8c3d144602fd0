"""The command line from the outside: what it prints, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vantage.cli import main
from vantage.core.runlog import read_metrics


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Run a command that must be refused: exit code 2, one message, no traceback."""
    code = main(list(command))
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "grop", "--task", "addition"], "unknown method 'grop'; did you mean grpo"),
        (["train", "ppo", "--task", "cartpol"], "unknown task 'cartpol'; did you mean cartpole"),
        (["train", "ppo", "--task", "NoSuch-v7"], "unknown environment 'NoSuch-v7'"),
        (["train", "ppo"], "no task: give --task NAME"),
        (["train", "ppo", "--task", "cartpole", "--set", "epoch=3"], "ppo has no setting 'epoch'; did you mean epochs"),
        (["train", "ppo", "--task", "cartpole", "--set", "update.optimizer.rate=3"], "Adam has no 'rate'"),
        (["train", "ppo", "--task", "cartpole", "--set", "gamma=1.5"], "GAE.gamma=1.5 is out of range: 0 to 1"),
        (["train", "ppo", "--task", "cartpole", "--set", "lr=-1"], "Adam.lr=-1.0 is out of range: above 0"),
        (["train", "ppo", "--task", "cartpole", "--set", "epochs=many"], "ppo.epochs='many' is not a whole number"),
        (["train", "ppo", "--task", "cartpole", "--set", "epochs"], "must be written name=value"),
        (["train", "ppo", "--task", "cartpole", "--steps", "0"], "steps=0 is out of range"),
        (["train", "ppo", "--task", "cartpole", "--device", "tpu"], "device='tpu' is not known"),
        (["train", "grpo", "--task", "addition:digit=2"], "digit"),
        (["train", "grpo", "--task", "addition:digits=99"], "digits"),
        (["train", "grpo", "--task", "addition", "--model", "/no/such/folder"], "/no/such/folder"),
        (["show", "ppoo"], "unknown method 'ppoo'"),
        (["methods", "--family", "reasonin"], "unknown family 'reasonin'"),
        (["eval", "/no/such/run"], "there is no folder /no/such/run"),
        (["resume", "/no/such/run"], "/no/such/run is not a run"),
    ],
)
def test_bad_input_is_refused_with_one_message(
    command: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *command)


def test_a_broken_line_of_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"question": "1+1", "answer": "2"}\n{"question": "2+2", "answer"\n')
    said = refused(
        capsys, "train", "grpo", "--data", str(data), "--verifier", "numeric", "--out", str(tmp_path / "run")
    )
    assert "train.jsonl" in said
    assert "2" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_model_folder_without_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-model", str(tmp_path / "model")]) == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    said = refused(
        capsys,
        "train",
        "grpo",
        "--task",
        "addition",
        "--model",
        str(tmp_path / "model"),
        "--out",
        str(tmp_path / "run"),
    )
    assert "tokenizer" in said


def test_nothing_is_overwritten_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    command = ["train", "ppo", "--task", "cartpole", "--steps", "256", "--set", "rows=2", "length=64", "minibatches=2", "epochs=1",
               "--eval-samples", "1"]  # fmt: skip
    assert main([*command, "--out", str(run)]) == 0
    before = (run / "metrics.jsonl").read_bytes()
    assert "--force to overwrite" in refused(capsys, *command, "--out", str(run))
    assert (run / "metrics.jsonl").read_bytes() == before
    assert main([*command, "--out", str(run), "--force", "--seed", "3"]) == 0
    assert (run / "metrics.jsonl").read_bytes() != before
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    assert "overwrites only runs" in refused(capsys, *command, "--out", str(other), "--force")
    assert (other / "thesis.txt").exists()
    (tmp_path / "file").touch()
    assert "is a file" in refused(capsys, *command, "--out", str(tmp_path / "file"))


def test_an_unwritable_folder_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    said = refused(capsys, "train", "ppo", "--task", "cartpole", "--out", str(tmp_path / "file" / "below"))
    assert "cannot be written" in said or "is a file" in said


def test_a_run_folder_holds_what_it_promises_and_evaluates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = [
        "train",
        "a2c",
        "--task",
        "cartpole",
        "--steps",
        "2000",
        "--set",
        "rows=4",
        "--out",
        str(run),
        "--eval-samples",
        "2",
    ]
    assert main(command) == 0
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "metrics.jsonl", "timing.jsonl", "checkpoints", "model", "curves.png"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    config = json.loads((run / "config.json").read_text())
    assert config["status"] == "finished"
    assert config["run"]["method"] == "a2c"
    assert config["run"]["settings"] == {"rows": 4}
    assert "torch" in config["versions"]
    assert len(read_metrics(run)) == 101
    capsys.readouterr()
    assert main(["eval", str(run), "--samples", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["return"] > 0


def test_listings_are_valid_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ppo"]["id"] == "S043"
    assert rows["ppo"]["arxiv"] == "1707.06347"
    assert set(rows["ppo"]) == {
        "id", "name", "family", "kind", "summary", "base", "needs", "settings", "title", "arxiv", "source", "page",
    }  # fmt: skip
    assert (Path("src") / rows["ppo"]["page"]).name == "ppo.py"
    assert main(["tasks", "--json"]) == 0
    assert {"addition", "cartpole"} <= {row["name"] for row in json.loads(capsys.readouterr().out)}


def test_show_marks_what_differs_from_the_parent_and_cite_gives_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "dapo", "--full"]) == 0
    shown = capsys.readouterr().out
    assert "parent    grpo" in shown
    assert "* averaging     token-mean" in shown
    assert "low=0.2, high=0.28" in shown
    assert main(["show", "dapo", "--set", "eps_high=0.3"]) == 0
    assert "low=0.2, high=0.3," in capsys.readouterr().out
    assert main(["cite", "dapo"]) == 0
    cited = capsys.readouterr().out
    assert "2503.14476" in cited
    assert "2402.03300" in cited


def test_interrupt_and_resume_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "vantage", "train", "ppo", "--task", "cartpole", "--steps", "200000", "--out", str(run),
               "--set", "rows=2", "length=64", "minibatches=2", "epochs=1", "--eval-samples", "0"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def interrupt(process: int, after: int) -> None:
        """Send SIGINT when the run has done a step after this one."""
        deadline = time.monotonic() + 120
        while (read_metrics(run) or [{"step": 0}])[-1]["step"] <= after:
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
        os.kill(process, signal.SIGINT)

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    interrupt(process.pid, 3)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "vantage resume" in said
    done = read_metrics(run)[-1]["step"]
    assert done >= 4
    waiting = threading.Thread(target=interrupt, args=(os.getpid(), done + 2))
    waiting.start()
    assert main(["resume", str(run)]) == 130
    waiting.join()
    assert f"resumed from step {done}" in capsys.readouterr().out
    steps = [line["step"] for line in read_metrics(run)]
    assert steps == list(range(len(steps)))
    assert steps[-1] >= done + 3


def test_data_is_read_once_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from vantage.tasks.language import data as reader

    calls: list[str] = []
    load = reader.load_problems

    def counted(path: str, **options: object) -> object:
        calls.append(str(path))
        return load(path, **options)

    monkeypatch.setattr(reader, "load_problems", counted)
    data, model, run = tmp_path / "sums.jsonl", tmp_path / "model", tmp_path / "run"
    data.write_text("".join(json.dumps({"question": f"{n}+1=", "answer": str(n + 1)}) + "\n" for n in range(20)))
    assert main(["new-model", str(model)]) == 0
    command = ["train", "grpo", "--data", str(data), "--model", str(model), "--steps", "1", "--eval-samples", "0"]
    small = ["--set", "prompts=2", "group_size=2", "--option", "max_new_tokens=2", "--out", str(run)]
    assert main([*command, *small]) == 0
    assert calls == [str(data)]
    calls.clear()
    assert main(["resume", str(run)]) == 0
    assert calls == [str(data)]
