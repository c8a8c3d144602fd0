"""Arena of offline data whose episodes all begin in one corner: policies are evaluated from there and from perturbed starts.

An arena names `vantage.study.runs.offline:perturbed` as its function. Options, all of which have defaults:

    options = { steps = 20000, good = 5, noise = 0.3, spread = 0.3, hidden = 64, scale = 1.0, shift = 0.0 }

About `steps` transitions are recorded in the world `Corner`, `good` of the episodes by the controller with noise of scale `noise`
and the others random walks; `spread` is that of the perturbed starts, `hidden` the width of the networks, and rewards of training
are scale * reward + shift. The run's seed is the data's too. The budget counts transitions sampled from the data. Metrics:

    score               from starts as in the data: 0 is the return of random actions there, 100 the controller's
    score_perturbed     the same from perturbed starts
    fall                score less score_perturbed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from vantage.core import at_least, between, component
from vantage.core.errors import UserError, out_of_range, unknown
from vantage.core.trainer import Report, Schedule, Trainer
from vantage.methods import registry
from vantage.rollouts.offline import Transitions
from vantage.tasks.offline.dataset import record
from vantage.tasks.offline.task import Offline, OfflineTask
from vantage.tasks.offline.worlds import Point, play

if TYPE_CHECKING:
    from vantage.policies.offline import OfflinePolicy
    from vantage.study.jobs import Job, Reporter

EVALUATION_SEED = 10_000
"""Added to a run's seed for the starts of its evaluations."""


@dataclass(frozen=True)
class Corner(Point):
    """World of a point that moves around a wall, from within 0.05 of (0.1, 0.1) in each coordinate.

    Attributes:
        spread: `far` starts are moved from there by up to this much in each coordinate, but not out of the square or to within
            0.05 of the wall.
    """

    spread: float = 0.3

    def reset(self, count: int, generator: torch.Generator, far: bool = False) -> Tensor:
        """Start in the corner; `far`, around it."""
        place = 0.05 + 0.1 * torch.rand(count, 2, generator=generator)
        if not far:
            return place
        moved = place + self.spread * (2 * torch.rand(count, 2, generator=generator) - 1)
        return moved.clamp(min=0.0).minimum(moved.new_tensor([0.45, 1.0]))


@component(label="arena")
class Options:
    """Options of the arena; see the module's docstring."""

    steps: Annotated[int, between(1, 10**9)] = 20_000
    good: Annotated[int, at_least(0)] = 5
    noise: float = 0.3
    spread: Annotated[float, between(0, 1)] = 0.3
    hidden: Annotated[int, between(1, 100_000)] = 64
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        most = max(2, round(self.steps / Corner.limit))
        if self.good > most:
            raise out_of_range("arena: good", self.good, f"0 to {most}, as many episodes as steps={self.steps} hold")


class CornerTask(OfflineTask):
    """Transitions recorded in the world `Corner`, as a task.

    Args:
        options: see the module's docstring.
        seed: seed of the data.
    """

    def __init__(self, options: Options, seed: int) -> None:
        world = Corner(spread=options.spread)
        self.name, self.world = "offline-corner", world
        self.settings = Offline(
            hidden=options.hidden, reward_scale=options.scale, reward_shift=options.shift, seed=seed
        )
        episodes = max(2, round(options.steps / world.limit))
        self.data = record(world, options.steps, options.good / episodes, options.noise, seed)
        self.size = len(self.data)
        self.bound = torch.ones(())
        self.mean = self.data.observation.mean(0)
        self.std = self.data.observation.std(0, correction=0) + 1e-3

    def evaluate(self, policy: OfflinePolicy, *, samples: int, seed: int) -> dict[str, float]:
        """Run `samples` episodes with the actor's mean from each kind of start; return the metrics of the module's docstring."""
        world = self.world
        assert world is not None
        generator = torch.Generator().manual_seed(seed)

        def act(state: Tensor) -> Tensor:
            return policy.act(world.observe(state).to(policy.mean.device)).cpu()

        def wander(state: Tensor) -> Tensor:
            return 2 * torch.rand(len(state), world.actions, generator=generator) - 1

        found = {}
        for name, far in (("score", False), ("score_perturbed", True)):
            start = world.reset(samples, generator, far=far)
            reached, low, high = (float(play(world, by, start)[0].mean()) for by in (act, wander, world.controller))
            found[name] = 100 * (reached - low) / (high - low)
        return {**found, "fall": found["score"] - found["score_perturbed"]}


def options_of(given: Mapping[str, Any]) -> Options:
    """Return the options of an arena.

    Raises:
        UserError: an option is not known, or out of range.
    """
    known = [each.name for each in fields(Options)]
    for name in given:
        if name not in known:
            raise unknown("option", name, known, "an arena of offline data")
    return Options(**given)


def perturbed(job: Job, report: Reporter) -> float:
    """Train the job's method on the arena's data until the budget is spent; return the last score.

    Raises:
        UserError: an option, the method or a setting is not known, the method does not learn from transitions, or the budget
            is less than one step.
    """
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    arena = job.arena
    task = CornerTask(options_of(arena.options), job.seed)
    method = registry.page(job.method).build(job.settings)
    if not isinstance(method.rollout, Transitions):
        raise UserError(f"{job.method} does not learn from recorded transitions: take a method of the family offline")
    rows = method.rollout.rows
    steps = int(arena.budget.size) // rows
    if steps < 1:
        raise UserError(f"the budget of {arena.budget.size:g} transitions is less than one step of {rows}")
    policy = method.policy_for(task, seed=job.seed)

    def evaluate(spent: int) -> float:
        metrics = task.evaluate(policy, samples=arena.scoring.samples, seed=job.seed + EVALUATION_SEED)
        if arena.scoring.metric not in metrics:
            raise UserError(f"scoring.metric={arena.scoring.metric!r} is none of {', '.join(metrics)}")
        score = metrics.pop(arena.scoring.metric)
        report.point(spent, score)
        report.record(spent, metrics)
        return score

    def after_step(told: Report) -> None:
        spent = told.step * rows
        if told.step == 0:
            return
        report.record(spent, told.metrics)
        report.progress(spent)
        points = arena.scoring.points
        if told.step < steps and told.step * points // steps > (told.step - 1) * points // steps:
            evaluate(spent)

    evaluate(0)
    trainer = Trainer(
        method, task, policy, method.engine_for(task, policy), Schedule(steps), seed=job.seed, listeners=[after_step]
    )
    if trainer.run().status != "finished":
        raise InterruptedError("the run was interrupted")
    return evaluate(steps * rows)
