"""Sinkhorn: entropy-regularised optimal transport, by scaling columns and rows in turn.

    min_T <T, C> + eps sum T (log T - 1):      T_ij = exp((f_i + g_j - C_ij) / eps)
    g_j <- eps log b_j - eps log sum_i exp((f_i - C_ij) / eps),      then f_i likewise

Its plans are dense: every entry is above 0. Computed in the log domain, so that a small eps does not overflow.

Cuturi, Sinkhorn Distances: Lightspeed Computation of Optimal Transport (arXiv 1306.0895). The iterations are those of POT's
`sinkhorn_log`. It stops by the Euclidean norm of the columns' error, below 1e-9 and looked at every tenth iteration, here by the
sum of absolute errors at every one; its eps has no default.
"""

from __future__ import annotations

from typing import Annotated

import torch

from vantage.annotations import above, at_least
from vantage.core.component import component
from vantage.fields.solvers.transport import Plan, Told, Transport
from vantage.methods.registry import Paper, method

PAPER = Paper(
    "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", "Marco Cuturi", 2013, arxiv="1306.0895"
)


@component(label="sinkhorn")
class Sinkhorn:
    """Scales columns and rows in turn; a `Solver` of `Transport`.

    Attributes:
        eps: weight of the entropy, above 0.
        tolerance: on the sum of absolute differences of the column sums; the row sums are exact after every iteration.
        limit: iterations at most.
    """

    eps: Annotated[float, above(0)]
    tolerance: float
    limit: Annotated[int, at_least(1)]

    def __call__(self, problem: Transport, told: Told | None = None) -> Plan:
        """Return the plan; `value` is the regularised cost's dual."""
        eps, cost = self.eps, problem.cost
        log_a, log_b = problem.source.log(), problem.target.log()
        f, g = torch.zeros_like(problem.source), torch.zeros_like(problem.target)
        plan = torch.outer(problem.source, problem.target)
        done = 0
        while done < self.limit:
            g = eps * (log_b - torch.logsumexp((f.unsqueeze(1) - cost) / eps, 0))
            f = eps * (log_a - torch.logsumexp((g - cost) / eps, 1))
            plan = ((f.unsqueeze(1) + g - cost) / eps).exp()
            done += 1
            if told is not None:
                told(done, plan)
            if float((plan.sum(0) - problem.target).abs().sum()) < self.tolerance:
                break
        # A place without mass has the potential -inf and contributes nothing: 0 times -inf is 0.
        value = sum(
            torch.where(mass > 0, dual * mass, 0.0).sum() for dual, mass in ((f, problem.source), (g, problem.target))
        )
        value = value - eps * plan.sum()
        return Plan(plan, float(value), done)


@method(papers=PAPER, source="PythonOT/POT@0.9.7 ot/bregman/_sinkhorn.py")
def sinkhorn(eps: float = 0.05, tolerance: float = 1e-6, limit: int = 1000) -> Sinkhorn:
    """eps: weight of the entropy; tolerance: on the sum of absolute differences of the column sums; limit:
    iterations at most."""
    return Sinkhorn(eps, tolerance, limit)
