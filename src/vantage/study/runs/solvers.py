"""Arenas of transport solvers: `function = "vantage.study.runs.solvers:transport"`.

The score is the excess of the plan's cost over the optimum, as a share of it, after the plan has been made feasible. Options:
`points`, `shift`; the run's seed determines the clouds. The budget counts iterations; the score of a method that needs more is
that of its plan at the end of the budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.fields.solvers.transport import Plan, clouds, exact, feasible

if TYPE_CHECKING:
    from vantage.study.jobs import Job, Reporter


def transport(job: Job, report: Reporter) -> float:
    """Solve one problem by the job's method; return the excess cost of its plan.

    Diagnostics at the end: `iterations`, `nonzeros` per column (mean), `most`, in the fullest column, `violation` of the
    marginals, and `moved`, the cost of the plan before it was made feasible.

    Raises:
        UserError: the method solves no transport problems, or a setting is not known.
    """
    from vantage.methods import registry

    torch.set_num_threads(1)
    options: dict[str, Any] = dict(job.arena.options)
    problem = clouds(**options, seed=job.seed)
    solver = registry.page(job.method).make({**job.settings, "limit": int(job.arena.budget.size)})
    if not callable(solver):
        raise UserError(f"{job.method} solves no transport problems")
    best, size = exact(problem), job.arena.budget.size
    marks = {round(size * part / job.arena.scoring.points) for part in range(1, job.arena.scoring.points)}

    def excess(plan: Tensor) -> float:
        return float((feasible(plan, problem) * problem.cost).sum()) / best - 1

    def told(iteration: int, plan: Tensor) -> None:
        report.progress(iteration)
        if iteration in marks:
            report.point(iteration, excess(plan))

    # Score before the first iteration: the product of the marginals.
    report.point(0, excess(torch.outer(problem.source, problem.target)))
    found: Plan = solver(problem, told)
    score = excess(found.plan)
    counts = found.nonzeros(1e-9).double()
    report.record(
        size,
        iterations=found.iterations,
        nonzeros=float(counts.mean()),
        most=float(counts.max()),
        violation=found.violation(problem),
        moved=found.cost(problem) / best - 1,
    )
    report.point(size, score)
    return score
