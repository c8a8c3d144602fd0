"""Softmax policy gradient: REINFORCE on a table of logits, for all steps of the horizon together.

The plain baseline of tabular policy optimisation: play K episodes, ascend the estimate of the gradient of the return.

    pi_h(a | s) = softmax(theta_h(s, .))_a        theta <- theta + eta (1/K) sum_i sum_h grad log pi_h(a_h | s_h) G_h

with a constant step, 1 / (5 H^2 R) being one over the smoothness of the return for rewards in [0, R] (arXiv 2310.02671);
`scale` multiplies it. Theory: arXiv 1908.00261; the estimate: Williams 1992, without a baseline.
"""

from __future__ import annotations

from typing import Annotated

import torch

from vantage.annotations import above, at_least
from vantage.core.component import component
from vantage.fields.tabular.episodes import Known, Learner, Plan
from vantage.fields.tabular.softmax import reinforce
from vantage.methods.registry import Paper, method

PAPERS = (
    Paper(
        "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
        "Ronald J. Williams",
        1992,
    ),
    Paper(
        "On the Theory of Policy Gradient Methods: Optimality, Approximation, and Distribution Shift",
        "Alekh Agarwal and Sham M. Kakade and Jason D. Lee and Gaurav Mahajan",
        2021,
        arxiv="1908.00261",
    ),
)


@component(label="softmax-pg")
class SoftmaxGradient:
    """The algorithm.

    Attributes:
        episodes: K, of one estimate.
        scale: of the step 1 / (5 H^2 R).
        bound: R, the highest reward of a step.
    """

    episodes: Annotated[int, at_least(1)] = 32
    scale: Annotated[float, above(0)] = 1.0
    bound: Annotated[float, above(0)] = 1.0

    def __call__(self, known: Known) -> Learner:
        """Learn from `episodes` episodes at a time."""
        rate = self.scale / (5.0 * known.shape[0] ** 2 * self.bound)
        policy = known.uniform()
        logits = torch.zeros_like(policy)
        while True:
            seen = yield Plan(policy, self.episodes)
            logits += rate * reinforce(policy, seen)
            policy = logits.softmax(-1)


@method(papers=PAPERS, source="none: the step of arXiv 2310.02671, the estimate of Williams 1992")
def softmax_pg(episodes: int = 32, scale: float = 1.0, bound: float = 1.0) -> SoftmaxGradient:
    """episodes: K, of one estimate; scale: of the step 1 / (5 H^2 R); bound: R, the highest reward of a step."""
    return SoftmaxGradient(episodes, scale, bound)
