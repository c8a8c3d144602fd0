"""Training loop with checkpoints, logging and interrupt handling."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from vantage.annotations import at_least
from vantage.core import checkpoint, columns
from vantage.core.component import component
from vantage.core.context import Context, Engine, Task
from vantage.core.costs import ENVIRONMENT_STEPS, Budget, cost
from vantage.core.errors import CheckpointError, TrainingError
from vantage.core.method import Method
from vantage.core.protocols import Policy
from vantage.core.runlog import RunLog
from vantage.core.scoring import scored
from vantage.core.trajectories import Trajectories
from vantage.core.walk import prepare, states
from vantage.randomness import random_state, set_random_state


@component
class Schedule:
    """Times of checkpoints and evaluations, and length of a run.

    Counts are steps of the loop; 0 means never (evaluation: before and after).

    Attributes:
        steps: length of the run, in `unit`.
        save_every: steps between checkpoints; the last step always has one. 0: about one a minute, by the clock.
        evaluate_every: steps between evaluations; before the first and after the last step there is always one,
            unless `evaluate_samples` is 0.
        evaluate_samples: samples per held-out problem, or episodes, of an evaluation.
        keep: number of checkpoints that are kept.
        unit: of `steps`; a run of so many environment steps ends with the step in which the last of them is taken.
    """

    steps: Annotated[int, at_least(1)]
    save_every: Annotated[int, at_least(0)] = 0
    evaluate_every: Annotated[int, at_least(0)] = 0
    evaluate_samples: Annotated[int, at_least(0)] = 0
    keep: Annotated[int, at_least(1)] = 2
    unit: Literal["steps", "environment steps"] = "steps"


@dataclass
class Report:
    """Data that listeners receive after each step."""

    step: int
    total_steps: int
    metrics: dict[str, float]
    timing: dict[str, float]
    batch: Trajectories | None = None
    """The batch of the step, advantage included; None before the first step."""


REMEMBERED = 100
"""Number of steps whose metrics a run with a folder keeps in memory."""

Listener = Callable[[Report], None]


@dataclass
class Outcome:
    """End of a run: 'finished' or 'interrupted', the last step, and the metrics of its steps.

    A run with a folder has them all in `metrics.jsonl` and the last `REMEMBERED` here; one without has them all here.
    """

    status: str
    step: int
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Trains a policy with a method on a task.

    The method is copied, so that components with memory start empty and two runs never share them.

    Args:
        method: its components.
        task: source of prompts, rewards and evaluations.
        policy: the policy to train.
        engine: samples its decisions.
        schedule: steps between checkpoints and evaluations, and the length.
        seed: of every random draw.
        folder: the run's folder; None keeps everything in memory.
        micro_batch: rows that the policy evaluates at once without gradient; None for all.
        listeners: called after each step.
    """

    def __init__(
        self,
        method: Method,
        task: Task,
        policy: Policy,
        engine: Engine,
        schedule: Schedule,
        *,
        seed: int = 0,
        folder: Path | None = None,
        micro_batch: int | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.schedule = schedule
        self.seed = seed
        self.folder = folder
        self.listeners = list(listeners)
        self.context = Context(
            method=copy.deepcopy(method),
            policy=policy,
            engine=engine,
            task=task,
            generator=torch.Generator().manual_seed(seed),
            total_steps=schedule.steps,
            micro_batch=micro_batch,
        )
        if schedule.unit == ENVIRONMENT_STEPS:
            each = cost(method.rollout, getattr(task, "episode_length", None)).environment_steps
            self.context.budget = Budget(schedule.steps, engine, each)
            self.context.total_steps = self.context.budget.steps(0)
        self._columns = self.context.method.declared("columns")
        for name in sorted(self._named_policies()):
            self.context.freeze(name)
        prepare(dict(self.context.method.components()), self.context)
        self._batch: Trajectories | None = None
        self._interrupted = False
        self._last_save = time.monotonic()
        self._files: dict[str, tuple[Policy, str, str]] = {}
        """Named policies that are on disk: name -> (the policy that was written, its file)."""

    def _named_policies(self) -> frozenset[str]:
        named = self.context.method.declared("policies")
        for column in self._columns:
            named |= columns.needed_policies(column)
        return named

    def step(self) -> tuple[dict[str, float], dict[str, float]]:
        """Run one training step; return its metrics and the seconds of each stage."""
        context, method = self.context, self.context.method
        clock = _Clock()
        batch: Trajectories = method.rollout(context)
        clock.lap("rollout")
        batch = context.verify(batch)
        clock.lap("reward")
        batch = columns.fill(batch, self._columns, context)
        batch = scored(batch, context)
        if method.values is not None:
            batch = method.values(batch, context)
        credit = method.advantage(batch, context)
        batch = credit if isinstance(credit, Trajectories) else batch.replace(advantage=_spread(credit, batch.mask))
        for select in method.selection:
            batch = select(batch, context)
        clock.lap("credit")
        self._batch = batch
        method.update(batch, context)
        if method.values is not None and hasattr(method.values, "fit"):
            method.values.fit(batch, context)
        context.step += 1
        if context.budget is not None:
            context.total_steps = context.budget.steps(context.step)
        for controller in method.controllers:
            if getattr(controller, "every", "step") == "step":
                controller(context)
        metrics = context.metrics.collect()
        if context.budget is not None:
            metrics["environment_steps"] = float(context.budget.taken)
        clock.lap("update")
        return metrics, clock.laps

    def run(self) -> Outcome:
        """Train to the last step, or until an interrupt, which ends the run after the step in progress and saves it.

        Raises:
            TrainingError: a loss or gradient is not finite; the last good checkpoint is kept.
        """
        context, schedule = self.context, self.schedule
        # Before the first step nothing is kept: a run killed before its first checkpoint starts again.
        log = RunLog(self.folder, context.step or -1) if self.folder else None
        history: deque[dict[str, float]] = deque(maxlen=REMEMBERED if self.folder else None)
        try:
            with self._signals():
                if context.step == 0:
                    self._tell(log, history, self._evaluate(), {})
                    self.save()
                while context.step < context.total_steps and not self._interrupted:
                    metrics, timing = self.step()
                    _check_finite(metrics, context.step, self.folder)
                    if self._due(schedule.evaluate_every):
                        started = time.perf_counter()
                        metrics |= self._evaluate()
                        timing["evaluate"] = time.perf_counter() - started
                    self._tell(log, history, metrics, timing)
                    if self._save_due():
                        if log is not None:
                            log.sync()
                        self.save()
                if self._interrupted:
                    self.save()
        finally:
            if log is not None:
                log.close()
        return Outcome("interrupted" if context.step < context.total_steps else "finished", context.step, list(history))

    def _tell(
        self, log: RunLog | None, history: deque[dict[str, float]], metrics: dict[str, float], timing: dict[str, float]
    ) -> None:
        step = self.context.step
        history.append({"step": step, **metrics})
        if log is not None:
            log.write(step, metrics, timing)
        for listener in self.listeners:
            listener(Report(step, self.context.total_steps, metrics, timing, self._batch))

    def _due(self, every: int) -> bool:
        step = self.context.step
        return step == self.context.total_steps or (every > 0 and step % every == 0)

    def _save_due(self) -> bool:
        if self.schedule.save_every:
            return self._due(self.schedule.save_every)
        return self._due(0) or time.monotonic() - self._last_save > 60

    def _evaluate(self) -> dict[str, float]:
        if not self.schedule.evaluate_samples:
            return {}
        was_training = self.context.policy.training
        # Evaluation must not move the run's randomness: a run evaluated more often is the same run.
        saved = random_state(self.context.generator)
        with torch.no_grad():
            metrics = self.context.task.evaluate(
                self.context.policy, samples=self.schedule.evaluate_samples, seed=self.seed + 1
            )
        set_random_state(saved, self.context.generator)
        if hasattr(self.context.policy, "train"):
            self.context.policy.train(was_training)
        return {f"eval/{name}": value for name, value in metrics.items()}

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn the first Ctrl-C (or SIGTERM) into "finish this step, save, end"; the second one is immediate."""

        def ask(number: int, frame: Any) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        previous: dict[signal.Signals, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, ask)
        except ValueError:  # not the main thread: the caller handles interrupts
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def save(self) -> None:
        """Write a checkpoint of everything that a resumed run needs."""
        if self.folder is None:
            return
        context = self.context
        weights = dict(context.policy.state_dict())
        bad = [
            name for name, tensor in weights.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()
        ]
        if bad:
            raise TrainingError(f"after step {context.step} the weights {', '.join(bad[:3])} are not finite: not saved")
        state = {
            "format": checkpoint.FORMAT,
            "parts": {place: part.state_dict() for place, part in states(context.method.components()).items()},
            "engine": context.engine.state_dict(),
            "random": random_state(context.generator),
            "policies": self._save_policies(),
            "digests": {file: digest for name, (_, file, digest) in self._files.items() if name in context.policies},
            "seed": self.seed,
            "taken": context.budget.taken if context.budget is not None else 0,
        }
        for listener in self.listeners:
            getattr(listener, "flush", lambda: None)()  # what is kept of these steps is not written again on resume
        checkpoint.write_checkpoint(self.folder / "checkpoints", context.step, weights, state, self.schedule.keep)
        self._drop_policies()
        self._last_save = time.monotonic()

    def _save_policies(self) -> dict[str, str]:
        """Write the named policies that are new since the last checkpoint; return name -> file."""
        assert self.folder is not None
        folder = self.folder / "policies"
        files: dict[str, str] = {}
        for name, policy in self.context.policies.items():
            written, file, _ = self._files.get(name, (None, "", ""))
            if written is not policy:
                folder.mkdir(parents=True, exist_ok=True)
                file = f"{name}-{self.context.step:08d}.safetensors"
                temporary = folder / f".{file}.tmp"
                checkpoint.save_tensors(policy.state_dict(), temporary)
                checkpoint.sync(temporary)
                self._files[name] = (policy, file, checkpoint.digest(temporary))
                os.replace(temporary, folder / file)
            files[name] = file
        return files

    def _drop_policies(self) -> None:
        """Remove files of named policies that no checkpoint refers to: a policy that is frozen every step would leave many."""
        assert self.folder is not None
        kept = [int(path.name.removeprefix("step-")) for path in checkpoint.checkpoints(self.folder / "checkpoints")]
        for name in self.context.policies:
            files = sorted((self.folder / "policies").glob(f"{name}-" + "[0-9]" * 8 + ".safetensors"))
            written = [int(path.stem[-8:]) for path in files]
            # A checkpoint refers to the newest file that is no newer than itself.
            needed = {max((step for step in written if step <= place), default=-1) for place in kept}
            for path, step in zip(files, written, strict=True):
                if step not in needed:
                    path.unlink(missing_ok=True)

    def restore(self, report: Callable[[str], None] = print) -> int:
        """Restore the newest whole checkpoint of the run's folder; return its step.

        Raises:
            CheckpointError: there is no checkpoint, or it is of another method.
        """
        if self.folder is None:
            raise CheckpointError("a run without a folder has no checkpoint")
        context = self.context
        step, weights, state = checkpoint.newest_checkpoint(self.folder / "checkpoints", report)
        _load_weights(context.policy, weights)
        stateful = states(context.method.components())
        parts = checkpoint.upgrade(state, stateful)
        if set(stateful) != set(parts):
            odd = ", ".join(sorted(set(stateful) ^ set(parts)))
            raise CheckpointError(
                f"the checkpoint in {self.folder} is of another method, or of a version that did not save components inside"
                f" others: they differ at {odd}; train again"
            )
        for name, file in state["policies"].items():
            if name not in context.policies:
                context.freeze(name)
            path = self.folder / "policies" / file
            if not path.is_file():
                raise CheckpointError(f"the named policy {name!r} is missing: {path}")
            _load_weights(context.policies[name], checkpoint.load_tensors(path))
            self._files[name] = (context.policies[name], file, checkpoint.digest(path))
        for place, part in stateful.items():
            part.load_state_dict(parts[place])
        context.engine.load_state_dict(state["engine"])
        context.step = step
        if context.budget is not None:
            context.budget.before = state.get("taken", step * (context.budget.each or 0))
            context.total_steps = context.budget.steps(step)
        set_random_state(state["random"], context.generator)
        return step


def _load_weights(policy: Policy, weights: Mapping[str, Tensor]) -> None:
    """Copy weights in place, so that views of the parameters stay valid."""
    own = policy.state_dict()
    if set(own) != set(weights):
        odd = ", ".join(sorted(set(own) ^ set(weights))[:5])
        raise CheckpointError(f"the checkpoint's weights are of another policy: they differ at {odd}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def _spread(credit: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, credit.unsqueeze(-1), 0.0) if credit.dim() == 1 else credit


def _check_finite(metrics: Mapping[str, float], step: int, folder: Path | None) -> None:
    bad = [name for name, value in metrics.items() if name.startswith(("loss/", "grad")) and not math.isfinite(value)]
    if bad:
        where = f"; the last good checkpoint is in {folder / 'checkpoints'}" if folder else ""
        listed = ", ".join(f"{name}={metrics[name]}" for name in bad)
        raise TrainingError(
            f"step {step}: {listed} is not finite; this began in step {step}, all steps before it were finite{where}"
        )


class _Clock:
    """Stopwatch: seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now
