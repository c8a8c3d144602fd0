"""Paths of a run: it resumes from any folder, and says what is missing and how to give it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import vantage
from vantage.cli import main
from vantage.config import RunConfig, read_config

TASK = """from vantage.tasks.preference.bandit import task_from_spec


def task(arms=6):
    return task_from_spec(f"preference:arms={arms},features=3")
"""
METHOD = """from vantage.core import Method
from vantage.methods.preference.dpo import dpo
from vantage.methods.registry import Paper, method


@method(papers=Paper("Mine", "A. Person", 2026), base=dpo)
def mine(base: Method) -> Method:
    return base
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, a task, a method, and a run that starts from them by relative paths."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    (home / "arms.py").write_text(TASK)
    (home / "mine.py").write_text(METHOD)
    small = ["--steps", "2", "--set", "prompts=4", "--eval-samples", "0"]
    assert main(["train", "dpo", "--task", "./arms.py:arms=6", "--out", "first", *small]) == 0
    command = ["train", "./mine.py", "--task", "./arms.py:arms=6", "--model", "first/model", "--seed", "3"]
    assert main([*command, "--out", "run", *small]) == 0
    return home


def weights(run: Path) -> dict[str, torch.Tensor]:
    made = vantage.task("preference:arms=6,features=3").make_policy(model=str(run / "model"))
    return {name: value.clone() for name, value in made.state_dict().items()}


def test_a_run_resumes_from_any_folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(place / "run")
    assert (config.model, config.method) == (str(place / "first/model"), str(place / "mine.py"))
    assert config.task == f"{place / 'arms.py'}:arms=6"
    before = weights(place / "run")
    for folder in ("checkpoints", "model"):  # as if it had been killed before its first checkpoint
        shutil.rmtree(place / "run" / folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["resume", "../home/run"]) == 0
    after = weights(place / "run")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(after[name], value) for name, value in weights(place / "first").items())
    assert main(["eval", "../home/run"]) == 0


def test_what_is_missing_is_named_with_the_way_to_give_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*told: str) -> None:
        capsys.readouterr()
        assert main(["resume", str(run)]) == 2
        error = capsys.readouterr().err
        for text in told:
            assert text in error

    run = place / "run"
    moved = tmp_path / "moved"
    moved.mkdir()
    for name, flag in (("first/model", "model PATH"), ("mine.py", "method PATH"), ("arms.py", "task PATH:arms=6")):
        (place / name).rename(moved / Path(name).name)
        told = f"give its present place, `vantage resume {run} --{flag}`"
        refused(f"the run {run} has the {flag.split()[0]} {place / name}, which is not there: if it was moved, {told}")
        new = str(moved / Path(name).name)
        given = [f"--{flag.split()[0]}", flag.split()[1].replace("PATH", new)]
        assert main(["resume", str(run), *given]) == 0
        assert new in vars(read_config(run))[flag.split()[0]]  # and is kept
    # A run of an older version has relative paths: those of the working folder.
    content = json.loads((run / "config.json").read_text())
    content["run"]["model"] = "model"
    (run / "config.json").write_text(json.dumps(content))
    monkeypatch.chdir(place)
    refused(f"has the model model, which is not there in the working folder {place}: if it was moved", "--model PATH`")
    monkeypatch.chdir(moved)
    assert main(["resume", str(run)]) == 0
    assert read_config(run).model == str(moved / "model")


def test_paths_of_all_kinds_are_absolute_and_other_texts_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "score.py", "held.jsonl", "schema.json", "a.tsp"):
        (tmp_path / name).write_text("")
    for name in ("instances", "tiny", "cartpole"):
        (tmp_path / name).mkdir()
    given = RunConfig(
        "grpo",
        task="tsp:file=instances,nodes=20",
        model="models/../start",
        data="train.jsonl",
        verifier="correct=python:score.py:good format*0.2=regex:. && json-schema:schema.json",
        options={"test": "held.jsonl", "preset": "tiny", "top_p": 0.5, "stop_strings": "."},
        settings={"file": "a.tsp", "lr": 1e-3},
    )
    made = given.placed()
    assert made.model == str(tmp_path / "start")
    assert made.data == str(tmp_path / "train.jsonl")
    assert made.task == f"tsp:file={tmp_path}/instances,nodes=20"
    assert made.verifier == (
        f"correct=python:{tmp_path}/score.py:good format*0.2=regex:. && json-schema:{tmp_path}/schema.json"
    )
    assert made.options == {"test": f"{tmp_path}/held.jsonl", "preset": "tiny", "top_p": 0.5, "stop_strings": "."}
    assert made.settings == {"file": f"{tmp_path}/a.tsp", "lr": 1e-3}
    assert made.placed() == made
    plain = RunConfig("ppo", task="cartpole", data="trl-lib/ultrafeedback_binarized")
    assert plain.placed() == plain
    plain.check_paths(tmp_path)
