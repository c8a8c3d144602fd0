"""Initial model of a language arena's runs: made once, warm-started by imitation, and cached."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vantage.core.errors import UserError
from vantage.core.trainer import Report, Schedule, Trainer
from vantage.methods import registry
from vantage.policies.tiny import PRINTABLE, new_model
from vantage.tasks.registry import make_task

if TYPE_CHECKING:
    from vantage.study.arenas import Arena
    from vantage.study.jobs import Send


def make(arena: Arena, folder: Path, send: Send) -> None:
    """Make the arena's model in a folder, atomically.

    Raises:
        UserError: the preset, the method or a setting is not known.
    """
    torch.set_num_threads(1)
    model = arena.model
    assert model is not None
    # A name of its own: another process may be making the same model.
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.draft")
    base = ""  # without a preset the task makes its own
    if model.preset:
        alphabet = model.alphabet or PRINTABLE
        base = str(new_model(draft / "base", model.preset, model.architecture, alphabet=alphabet, seed=model.seed))
    torch.manual_seed(model.seed)
    options = arena.options if model.options is None else model.options
    if model.task:
        task: Any = make_task(model.task, options=options)
    else:
        task = make_task(arena.task, data=arena.data, verifier=arena.verifier, options=options)
    policy = task.make_policy(model=base, seed=model.seed)
    if model.steps:
        method = registry.page(model.method).build(model.settings)
        trainer = Trainer(
            method,
            task,
            policy,
            method.engine_for(task, policy, seed=model.seed),
            Schedule(model.steps),
            seed=model.seed,
            listeners=[_Progress(send)],
        )
        if trainer.run().status != "finished":
            raise InterruptedError("the warm start was interrupted")  # an incomplete model must not be cached
    policy.save(draft / "model")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # the other process was first: the same seed made the same model
        (draft / "model").rename(folder)
    shutil.rmtree(draft, ignore_errors=True)
    if not folder.is_dir():
        raise UserError(f"the model cannot be written to {folder}: name another cache by VANTAGE_CACHE")


class _Progress:
    """Listener that reports the number of steps done."""

    def __init__(self, send: Send) -> None:
        self.send = send

    def __call__(self, report: Report) -> None:
        self.send({"step": report.step, "steps": report.total_steps})
