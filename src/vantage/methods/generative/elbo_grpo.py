"""ELBO-GRPO: GRPO on a masked diffusion model, with a Monte Carlo ELBO in place of the likelihood.

The likelihood of a masked diffusion model is only bounded. The bound is estimated with n sets of masked positions, the same
for both policies, and its difference is inside the ratio, so that all n graphs are held until the backward pass:

    d_j = e_j(theta) - sg[e_j(theta_old)]        loss = -mean over answers of A exp( (1 / n) sum_j d_j )

BGPO (arXiv 2510.11683, equation of section 3) replaces this objective by a bound of it; it is the baseline of that
paper, which had memory for n = 4 or less. A by GRPO, over the answers to a prompt; no clip and no KL, as there.
"""

from __future__ import annotations

from typing import Literal

from vantage.advantages.groups import GroupStandardized
from vantage.core.method import Method
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.elbo import JointBound
from vantage.rollouts.unmasking import Unmask
from vantage.selection.masks import MonteCarloMasks

PAPER = Paper(
    "Boundary-Guided Policy Optimization for Memory-efficient RL of Diffusion Large Language Models",
    "Nianyi Lin and Jiajie Zhang and Lei Hou and Juanzi Li",
    2025,
    arxiv="2510.11683",
)


@method(
    kind="recipe", papers=PAPER, needs="masked", base=grpo, without=("beta", "eps", "dual", "epochs"), beta=0.0, group_size=8,
    lr=5e-7, source="none: the paper, whose repository could not be had",
)  # fmt: skip
def elbo_grpo(base: Method, samples: int = 4, kind: Literal["fixed", "bernoulli"] = "fixed") -> Method:
    """samples: n, sets of masked positions an answer; kind: `fixed` draws how many positions are masked,
    `bernoulli` each position independently."""
    plan = base.rollout
    composed = base.replace(
        rollout=Unmask(plan.prompts, plan.size, plan.temperature),
        advantage=GroupStandardized(eps=1e-6),
        # The update decides whether the old policy must be kept, and may be set after this.
        selection=(MonteCarloMasks(samples, kind, old=None),),
        objective=JointBound(),
    )
    # The samples of an answer and the answers to a prompt stay together.
    return composed.adapt("update", unit="group")
