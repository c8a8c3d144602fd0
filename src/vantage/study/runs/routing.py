"""Throughput of a routing method, measured in processor time."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from vantage.core.costs import cost
from vantage.core.errors import UserError
from vantage.core.trainer import Schedule, Trainer
from vantage.methods import registry
from vantage.rollouts.routing import MultiStart
from vantage.tasks.routing.task import RoutingTask

if TYPE_CHECKING:
    from vantage.study.jobs import Job, Reporter

MODEL: dict[str, Any] = {"nodes": 20, "width": 64, "heads": 4, "feedforward": 128}


def throughput(job: Job, report: Reporter) -> float:
    """Train on TSP20 until the budget of decisions is spent; return log2 of the decisions per second of processor time.

    A factor of two is a difference of 1, so that a claim's margin can be a ratio. A first step, for warm-up, is not counted. One
    thread.

    Raises:
        UserError: the method samples no groups of tours.
    """
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    method = registry.page(job.method).build(job.settings)
    plan = method.rollout
    task = RoutingTask("tsp", **MODEL)
    tours = cost(plan).samples
    if tours is None and isinstance(plan, MultiStart) and not plan.starts:
        tours = plan.prompts * task.nodes
    if tours is None:
        raise UserError(f"{job.method} does not say how many tours it builds: its throughput is not measured here")
    each = tours * task.nodes
    steps = math.ceil(job.arena.budget.size / each)
    policy = task.make_policy(seed=job.seed)
    trainer = Trainer(
        method, task, policy, method.engine_for(task, policy, seed=job.seed), Schedule(steps + 1), seed=job.seed
    )
    trainer.step()
    started = time.process_time()
    for step in range(steps):
        trainer.step()
        report.progress((step + 1) * each)
    rate = math.log2(steps * each / (time.process_time() - started))
    report.point(float(steps * each), rate)
    return rate
