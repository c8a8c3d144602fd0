"""`--device` means the same for train, resume and eval, and is checked before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gymnasium")

import vantage
from vantage import api
from vantage.core.errors import UserError
from vantage.devices import device_of
from vantage.policies.control import ControlPolicy

SHORT: dict[str, Any] = {
    "settings": {"rows": 2, "length": 16, "minibatches": 1, "epochs": 1},
    "steps": 64,
    "evaluate_samples": 1,
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "device='tpu' is not known: cpu, cuda or cuda:N"),
        ("mps", "device='mps' is not known"),
        ("meta", "device='meta' is not known"),
        ("cuda:x", "device='cuda:x' is not known"),
        ("", "device='' is not known"),
        ("cpu:7", "device=cpu:7: there is one CPU device, cpu"),
    ],
)
def test_a_name_that_is_no_device_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        device_of(name)


def test_a_cuda_device_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cuda:1: there is no CUDA device here; give --device cpu"):
        device_of("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="device=cuda:2: this machine has 2 CUDA devices, cuda:0 to cuda:1"):
        device_of("cuda:2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "ppo"
    vantage.train("ppo", "cartpole", out=folder, device="cpu:0", **SHORT)
    return folder


def test_it_is_checked_before_anything_is_loaded(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def loaded(*arguments: Any, **settings: Any) -> Any:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(api, "make_task", loaded)
    monkeypatch.setattr(api, "build_method", loaded)
    for command in (
        lambda: vantage.train("ppo", "cartpole", device="tpu", out=tmp_path / "new"),
        lambda: vantage.resume(run, device="tpu"),
        lambda: vantage.evaluate(run, device="tpu"),
        lambda: vantage.evaluate(run / "model", "cartpole", device="tpu"),
    ):
        with pytest.raises(UserError, match="device='tpu' is not known"):
            command()
    assert not (tmp_path / "new").exists()


def test_train_resume_and_evaluation_put_the_policy_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads((run / "config.json").read_text())["run"]["device"] == "cpu"
    moved: list[torch.device] = []
    to = ControlPolicy.to
    monkeypatch.setattr(ControlPolicy, "to", lambda policy, device: (moved.append(device), to(policy, device))[1])
    vantage.train("ppo", "cartpole", device="cpu:0", **SHORT)
    vantage.resume(run, device="cpu:0", report=lambda text: None)
    vantage.evaluate(run, samples=1)
    vantage.evaluate(run / "model", "cartpole", samples=1, device="cpu")
    assert moved == [torch.device("cpu")] * 4


def test_a_run_of_a_machine_with_cuda_is_evaluated_where_there_is_none_only_when_told(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = run / "config.json"
    text = file.read_text()
    try:
        file.write_text(text.replace('"device": "cpu"', '"device": "cuda"'))
        with pytest.raises(UserError, match="device=cuda: there is no CUDA device here; give --device cpu"):
            vantage.evaluate(run)
        with pytest.raises(UserError, match="device=cuda: there is no CUDA device here; give --device cpu"):
            vantage.resume(run)
        assert "return" in vantage.evaluate(run, samples=1, device="cpu")
        vantage.resume(run, device="cpu", report=lambda text: None)
        assert '"device": "cpu"' in file.read_text()
    finally:
        file.write_text(text)


def test_a_given_policy_stays_where_it_is() -> None:
    task = vantage.task("cartpole")
    policy = task.make_policy(seed=0)
    moved: list[Any] = []
    policy.to = lambda device: (moved.append(device), policy)[1]  # type: ignore[method-assign, assignment]
    parameter = next(policy.parameters())
    vantage.train("ppo", task, policy=policy, **SHORT)
    assert moved == [parameter.device]
