"""Evaluation during a run, the same for every run of an arena: ours, a peer library's, a user's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from vantage.core.errors import UserError, nearest
from vantage.randomness import random_state, set_random_state
from vantage.tasks.registry import make_task

if TYPE_CHECKING:
    from vantage.study.arenas import Arena
    from vantage.study.jobs import Reporter

EVALUATION_SEED = 10_000
"""Added to a run's seed for its evaluations, so that all methods are evaluated on the same random numbers."""

NAMES = {
    "kl/reference": "kl",
    "kl/old": "kl_old",
    "length/mean": "length",
    "groups/without_variance": "zero_advantage_groups",
    "grad_norm": "gradient_norm",
}
"""Metric -> its name in the report."""


def task_of(arena: Arena) -> Any:
    """Make the arena's task."""
    return make_task(arena.task, data=arena.data, verifier=arena.verifier, options=arena.options)


class Evaluator:
    """Evaluations of the policy, evenly spaced over the budget, which change neither the clock nor the run's random states."""

    def __init__(self, arena: Arena, task: Any, policy: Any, seed: int, report: Reporter) -> None:
        self.scoring, self.size = arena.scoring, arena.budget.size
        self.task, self.policy, self.report = task, policy, report
        self.seed = seed + EVALUATION_SEED
        self.last = -1.0
        self.score = 0.0

    def due(self, spent: float) -> bool:
        """Return whether an evaluation point has been passed since the last evaluation."""
        step = self.size / self.scoring.points
        return int(spent / step) > int(max(self.last, 0.0) / step)

    def __call__(self, spent: float, generator: torch.Generator) -> None:
        """Evaluate the policy and report the score."""
        started = time.perf_counter()
        with _untouched(self.policy, generator), torch.no_grad():
            metrics = self.task.evaluate(self.policy, samples=self.scoring.samples, seed=self.seed)
        self.report.pause(time.perf_counter() - started)
        if self.scoring.metric not in metrics:
            raise UserError(
                f"scoring.metric={self.scoring.metric!r} is none of the task's metrics"
                f"{nearest(self.scoring.metric, metrics)} (metrics: {', '.join(metrics)})"
            )
        self.last, self.score = spent, float(metrics[self.scoring.metric])
        self.report.point(spent, self.score)
        self.record(spent, {name: value for name, value in metrics.items() if name != self.scoring.metric})

    def record(self, spent: float, metrics: Mapping[str, float]) -> None:
        """Report metrics under the report's names."""
        self.report.record(spent, {NAMES.get(name, name): value for name, value in metrics.items()})


@contextmanager
def _untouched(policy: Any, generator: torch.Generator) -> Iterator[None]:
    """Restore all random states and the policy's mode at the end of the context."""
    saved, training = random_state(generator), policy.training
    try:
        yield
    finally:
        set_random_state(saved, generator)
        policy.train(training)
