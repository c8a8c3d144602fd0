"""The worked examples of docs/architecture.md: every file is written, every command is run."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vantage.cli import main
from vantage.core.checkpoint import newest_checkpoint
from vantage.userfile import PREFIX

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
SECTIONS = {title: body for title, _, body in (part.partition("\n") for part in TEXT.split("\n## "))}
EXAMPLES = [title for title in SECTIONS if title.startswith("How to add")]


def blocks(body: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", body, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for body in SECTIONS.values():
        for code in blocks(body, "python"):
            found = re.match(r"# (\w+\.py)\n", code)
            assert found, "an example begins with its file's name"
            (tmp_path / found[1]).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("bandits",) or name.startswith(PREFIX):
            del sys.modules[name]


def test_there_is_an_example_for_each_kind() -> None:
    kinds = ("method", "component", "task", "field", "policy")
    assert [f"How to add a {kind}" for kind in kinds] == EXAMPLES


@pytest.mark.parametrize("title", EXAMPLES)
def test_the_example_runs(title: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line for block in blocks(SECTIONS[title], "sh") for line in block.splitlines() if line]
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "vantage"
        assert main(words[1:]) == 0, f"{command}\n{capsys.readouterr().err}"
    shown = capsys.readouterr().out
    if title == "How to add a method":
        assert re.search(r"\* advantage +MedianCentred", shown)
        assert (folder / "median" / "model" / "config.json").is_file()
    if title == "How to add a component":
        assert re.search(r"\* advantage +RunningBaseline\(rate=0\.1, start='own'\)", shown)
        refused = ["train", "./running_grpo.py", "--task", "addition:digits=1", "--set", "rate=2", "--out", "refused"]
        assert main(refused) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert "RunningBaseline.rate=2.0 is out of range: above 0, at most 1" in told
        _, _, state = newest_checkpoint(folder / "running" / "checkpoints")
        assert 0.0 <= state["parts"]["advantage"]["mean"] < 0.5  # of untrained answers to additions
    if title == "How to add a field":
        first, *_, last = (json.loads(line) for line in (folder / "pulls" / "metrics.jsonl").read_text().splitlines())
        assert abs(first["eval/paid"] - 0.2) < 1e-6  # untrained: one arm in five
        assert last["eval/paid"] > 0.8
    if title == "How to add a policy":
        last = json.loads((folder / "factored" / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["eval/paid"] > 0.5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("./nowhere.py", r"there is no file nowhere\.py"),
        ("./bandits.py:armz=3", r"has no setting 'armz'.*did you mean arms"),
        ("./bandits.py:arms", r"'arms' must be written name=value"),
        ("./median_grpo.py", r"has no function `task`"),
    ],
)
def test_a_task_file_that_is_wrong_says_what_is(
    spec: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "grpo", "--task", spec, "--steps", "1", "--out", "x"]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_files_and_folders_that_the_document_names_exist() -> None:
    package = ROOT / "src" / "vantage"
    top = "core|rollouts|rewards|advantages|selection|updates|policies|study|tasks|methods|tests"
    names = re.findall(rf"`((?:{top})/[\w/.]*)`", TEXT)
    assert len(names) > 20
    for name in names:
        if not any(word in name for word in ("FAMILY", "NAME")):
            assert (package / name).exists() or (ROOT / name).exists(), name
