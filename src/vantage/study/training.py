"""Run of a comparison in the training loop, with a budget instead of a number of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vantage.core.costs import cost
from vantage.core.errors import UserError
from vantage.core.trainer import Report, Schedule, Trainer
from vantage.methods import registry
from vantage.randomness import seed_all
from vantage.study.evaluation import EVALUATION_SEED, Evaluator, task_of
from vantage.study.meter import BudgetSpent, Horizon, Meter
from vantage.tasks.language.turns import marked, read

if TYPE_CHECKING:
    from vantage.study.jobs import Job, Reporter

READABLE = 8
"""Number of held-out problems whose completions are stored for the report."""


def run(job: Job, report: Reporter) -> float:
    """Train until the budget is spent; return the last evaluation's score.

    Raises:
        UserError: the method, a setting or the metric is not known, or the budget is less than one step.
        TrainingError: a loss is not finite.
    """
    torch.set_num_threads(1)
    seed_all(job.seed)
    arena = job.arena
    task, method = task_of(arena), registry.page(job.method).build(job.settings)
    episode = getattr(task, "episode_length", None)
    horizon = Horizon(arena.budget.size, cost(method.rollout, episode).of(arena.budget.unit))
    policy = method.policy_for(task, model=job.model, seed=job.seed)
    meter = Meter(method.engine_for(task, policy, seed=job.seed), arena.budget.unit, arena.budget.size)
    evaluator = Evaluator(arena, task, policy, job.seed, report)

    def after_step(told: Report) -> None:
        if told.step == 0:
            return
        evaluator.record(meter.spent, told.metrics)
        trainer.context.total_steps = horizon.after(told.step, meter.spent)
        report.progress(meter.spent)
        if evaluator.due(meter.spent):
            evaluator(meter.spent, trainer.context.generator)

    trainer = Trainer(
        method,
        task,
        policy,
        meter,
        Schedule(horizon.at_start()),
        seed=job.seed,
        micro_batch=getattr(task, "micro_batch", None),
        listeners=[after_step],
    )
    evaluator(0.0, trainer.context.generator)
    try:
        outcome = trainer.run()
        if outcome.status != "finished":
            raise InterruptedError("the run was interrupted")
    except BudgetSpent:
        pass
    if trainer.context.step == 0:
        raise UserError(
            f"the budget of {arena.budget.size:g} {arena.budget.unit} is less than one step of {job.method}:"
            " give it smaller batches"
        )
    if evaluator.last < horizon.spent:
        evaluator(horizon.spent, trainer.context.generator)
    _keep_samples(task, policy, job.seed, report)
    return evaluator.score


def _keep_samples(task: Any, policy: Any, seed: int, report: Reporter) -> None:
    """Store one completion of each of the first held-out problems, where the task has problems."""
    problems = getattr(task, "problems", None)
    if problems is None or not problems.size("test"):
        return
    chosen = [problems.problem("test", index) for index in range(min(READABLE, problems.size("test")))]
    engine = task.make_engine(policy)
    with torch.no_grad():
        found = engine.complete([problem.prompt for problem in chosen], 1, seed=seed + EVALUATION_SEED)
    whole, scored = marked(found, engine.decode), read(found, task.reads, engine.decode)
    for problem, text, words in zip(chosen, whole, scored, strict=True):
        prompt = problem.prompt if isinstance(problem.prompt, str) else str(problem.prompt[-1]["content"])
        scores = problems.score(problem, words) if task.verifier is None else {}
        report.sample(prompt, text, scores.get("correct"))
