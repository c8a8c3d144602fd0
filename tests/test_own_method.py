"""A method in one file outside the package: composed, shown, trained and resumed by its path."""

from __future__ import annotations

from pathlib import Path

import pytest

import vantage
from vantage.cli import main
from vantage.config import read_config

PAGE = '''"""Half-clip: PPO whose clip holds on one side only."""
from dataclasses import dataclass

import torch

from vantage.core import Method
from vantage.methods.control.ppo import ppo
from vantage.methods.registry import Paper, method


@dataclass(frozen=True)
class OneSided:
    high: float = 0.2
    wants = frozenset({"logp"})

    def __call__(self, evaluation, batch, context):
        ratio = (evaluation.logp - batch.logp_old).exp()
        return -torch.minimum(ratio * batch.advantage, ratio.clamp(max=1 + self.high) * batch.advantage)


@method(family="mine", papers=Paper("Half-clip", "A. Person", 2026))
def half_clip(high: float = 0.2, length: int = 64) -> Method:
    return ppo(rows=4, length=length, minibatches=2, epochs=2).replace(objective=OneSided(high))
'''


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "half_clip.py"
    path.write_text(PAGE)
    return path


def test_a_file_outside_the_package_is_a_method(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = [
        "train",
        str(page),
        "--task",
        "cartpole",
        "--steps",
        "1024",
        "--out",
        str(out),
        "--set",
        "high=0.3",
        "--eval-samples",
        "1",
    ]
    assert main(command) == 0
    assert read_config(out).settings == {"high": 0.3}
    assert (out / "model").is_dir()
    assert main(["show", str(page), "--full"]) == 0
    shown = capsys.readouterr().out
    assert "parent    ppo" in shown
    assert "* objective     OneSided(high=0.2)" in shown
    assert vantage.method(str(page), high=0.5).objective.high == 0.5


def test_a_file_without_a_method_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    assert main(["train", str(empty), "--task", "cartpole"]) == 2
    assert "defines 0 methods" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "none.py"), "--task", "cartpole"]) == 2
    assert "there is no file" in capsys.readouterr().err
