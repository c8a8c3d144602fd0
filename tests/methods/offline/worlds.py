"""Small offline tasks and what tests do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import vantage
from vantage.core import Method, Schedule, Trainer
from vantage.core.checkpoint import load_tensors

SPEC = "offline:world=point,steps=2000,good=0.5,hidden=16"


def runner(method: Method, steps: int, folder: Path | None = None, spec: str = SPEC) -> Trainer:
    task = vantage.task(spec)
    policy = task.make_policy(seed=0)
    schedule = Schedule(steps, save_every=2, evaluate_samples=4)
    return Trainer(method, task, policy, task.make_engine(policy), schedule, seed=3, folder=folder)


def assert_resumes(folder: Path, method: Method, steps: int = 7, at: int = 4) -> None:
    """A run that is stopped, dropped and resumed gives the same metrics and weights to the last byte."""
    whole, part = folder / "whole", folder / "part"
    whole.mkdir()
    part.mkdir()
    runner(method, steps, whole).run()
    first = runner(method, steps, part)
    first.listeners.append(lambda report: setattr(first, "_interrupted", report.step == at))
    assert first.run().status == "interrupted"
    again = runner(method, steps, part)
    assert again.restore() == at
    again.run()
    assert (part / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    name = f"checkpoints/step-{steps:08d}/policy.safetensors"
    left, right = load_tensors(part / name), load_tensors(whole / name)
    assert all(left[key].equal(right[key]) for key in right)


def batch_of(trainer: Trainer, rows: int = 32) -> Any:
    return trainer.context.engine.read(torch.arange(rows), trainer.context)  # type: ignore[attr-defined]
