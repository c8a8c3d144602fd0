"""Dynamic policy gradient: trains the last step of a finite horizon first, freezes it, then trains the one before. (S096)

Trained together, early steps learn from returns of later steps that still change. Trained backwards, each step is a bandit
problem with a fixed solution, and its episodes begin at that step, from any distribution over states.

    for h = H-1 down to 0:   repeat N_h times
        s_h ~ mu_h,  a_h ~ pi_h,  then the frozen pi_{h+1}, ..                   (H - h steps an episode)
        theta_h(s, .) <- theta_h(s, .) + eta_h (1/K) sum_i 1{s_h^i = s} (1{a_h^i = .} - pi_h) G_h^i

arXiv 2310.02671, with mu_h uniform and eta_h = 1 / (2 (H - h) R), one over the smoothness of step h; `scale` multiplies it. Every
step gets the same number of updates, as many as the budget of environment steps allows; the remainder is spent on step 0.
Reconstructed: step sizes and K.
"""

from __future__ import annotations

from typing import Annotated

import torch

from vantage.annotations import above, at_least
from vantage.core.component import component
from vantage.core.errors import UserError
from vantage.fields.tabular.episodes import Known, Learner, Plan
from vantage.fields.tabular.softmax import reinforce
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method

PAPER = Paper(
    "Beyond Stationarity: Convergence Analysis of Stochastic Softmax Policy Gradient Methods",
    "Sara Klein and Simon Weissmann and Leif Döring",
    2024,
    arxiv="2310.02671",
    venue="International Conference on Learning Representations",
)


@component(label="dynamic-pg")
class DynamicGradient:
    """The algorithm; its settings are the recipe's."""

    episodes: Annotated[int, at_least(1)] = 32
    scale: Annotated[float, above(0)] = 1.0
    bound: Annotated[float, above(0)] = 1.0

    def updates(self, known: Known) -> int:
        """Return N, the updates of each step that the budget allows."""
        steps = known.shape[0]
        return known.budget // (self.episodes * steps * (steps + 1) // 2)

    def __call__(self, known: Known) -> Learner:
        """Train from the last step to the first; raises a UserError where the budget is too small for one update of each step."""
        steps, states, _ = known.shape
        count = self.updates(known)
        if not count:
            raise UserError(
                f"dynamic-pg: episodes={self.episodes} is too many for one update of each step in {known.budget} environment steps"
            )
        anywhere = torch.full((states,), 1.0 / states, dtype=known.dtype, device=known.device)
        policy = known.uniform()
        logits = torch.zeros_like(policy)
        for h in reversed(range(steps)):
            rate = self.scale / (2.0 * (steps - h) * self.bound)
            update = 0
            while update < count or h == 0:
                seen = yield Plan(policy, self.episodes, h, anywhere)
                logits[:, h] += rate * reinforce(policy, seen)[:, h]
                policy = policy.clone()
                policy[:, h] = logits[:, h].softmax(-1)
                update += 1


@method(id="S096", kind="theory", papers=PAPER, source="none: arXiv 2310.02671, without code")
def dynamic_pg(episodes: int = 32, scale: float = 1.0, bound: float = 1.0) -> DynamicGradient:
    """episodes: K, of one estimate; scale: of the step 1 / (2 (H - h) R); bound: R, the highest reward of a step."""
    return DynamicGradient(episodes, scale, bound)


claim = (
    Claim(
        "stopping-8", "softmax-pg", direction="lower", name="horizon-8",
        note="Both with the constant steps of their theory, 32 episodes an update, equal environment steps.",
    ),
    Claim(name="horizon-4", arena="stopping-4", against="softmax-pg", direction="lower", note="As for horizon 8."),
    Claim(
        name="tuned", arena="stopping-8", against="softmax-pg", direction="lower",
        settings={"scale": 80.0}, against_settings={"scale": 1000.0},
        note="Both with the best of five multiples of the theory's step (to 160 and to 3000).",
    ),
)  # fmt: skip
