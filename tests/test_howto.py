"""The how-to pages: their files are written, their commands are run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

pytest.importorskip("gymnasium")

import vantage
from vantage.cli import main
from vantage.core import Schedule, Trainer

DOCS = Path(__file__).parents[1] / "docs"
OFF_POLICY = (DOCS / "howto-off-policy.md").read_text()
SMALL = {"length": 4, "batch": 8, "warmup": 12}


def written(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", OFF_POLICY, flags=re.DOTALL)
    (folder / "sac.py").write_text(code)
    return str(folder / "sac.py")


def test_the_off_policy_method_resumes_to_the_last_bit(tmp_path: Path) -> None:
    method = vantage.method(written(tmp_path), **SMALL)
    assert method.asked("engine_options") == {"normalize_rewards": False}

    def trainer(name: str, steps: int) -> Trainer:
        task = vantage.task("pendulum")
        torch.manual_seed(3)
        policy = method.policy_for(task, seed=3)
        engine = method.engine_for(task, policy, seed=3)
        (tmp_path / name).mkdir(exist_ok=True)
        return Trainer(method, task, policy, engine, Schedule(steps, save_every=2), seed=3, folder=tmp_path / name)

    whole = trainer("whole", 6)
    whole.run()
    trainer("cut", 4).run()
    resumed = trainer("cut", 6)
    resumed.restore()
    assert resumed.context.step == 4
    resumed.run()
    for name, value in whole.context.policy.state_dict().items():
        assert torch.equal(value, resumed.context.policy.state_dict()[name]), name


@pytest.mark.slow
def test_the_off_policy_method_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    (commands,) = re.findall(r"```sh\n(.*?)```", OFF_POLICY, flags=re.DOTALL)
    for command in commands.splitlines():
        assert main(shlex.split(command)[1:]) == 0
    first, *_, last = (json.loads(line) for line in (tmp_path / "sac" / "metrics.jsonl").read_text().splitlines())
    assert first["eval/return"] < -900
    assert last["eval/return"] > -600
