"""Runs a method end to end in the toy world of `tests.core.toy`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.core.toy import ToyEngine, ToyPolicy, ToyTask
from vantage.core import Method, Schedule, Trainer
from vantage.core.checkpoint import load_tensors


def trainer(method: Method, steps: int = 60, folder: Path | None = None, task: Any = None, **options: Any) -> Trainer:
    """A trainer of a fresh toy policy."""
    torch.manual_seed(0)
    policy = ToyPolicy(**options)
    schedule = Schedule(steps, save_every=2, evaluate_samples=1)
    return Trainer(method, task or ToyTask(), policy, ToyEngine(policy), schedule, seed=3, folder=folder)


def gain(method: Method, steps: int = 60, **options: Any) -> float:
    """How much more probable the right symbols are after training (they begin near 0.2)."""
    history = trainer(method, steps, **options).run().history
    return history[-1]["eval/right"] - history[0]["eval/right"]


def assert_resumes(folder: Path, method: Method, steps: int = 6, at: int = 4, **options: Any) -> None:
    """A run that is stopped, dropped and resumed from its checkpoint gives the same metrics and weights to the last byte."""
    whole, part = folder / "whole", folder / "part"
    whole.mkdir()
    part.mkdir()
    trainer(method, steps, whole, **options).run()
    first = trainer(method, steps, part, **options)
    first.listeners.append(lambda report: setattr(first, "_interrupted", report.step == at))
    assert first.run().status == "interrupted"
    again = trainer(method, steps, part, **options)
    assert again.restore() == at
    again.run()
    assert (part / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    name = f"checkpoints/step-{steps:08d}/policy.safetensors"
    left, right = load_tensors(part / name), load_tensors(whole / name)
    assert all(left[key].equal(right[key]) for key in right)
