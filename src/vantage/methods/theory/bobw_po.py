"""Best of both worlds policy optimisation: a bandit at each state with a step size by the state's occupancy. (S011)

One algorithm with sqrt(T) regret against adversarial rewards and polylogarithmic regret against stochastic rewards:
each state runs follow-the-regularised-leader with Tsallis entropy on estimates of Q, with a step size that shrinks with its
inverse occupancies; the shrinkage is a bonus for the states that lead to it, multiplied by 1 + 1/H at each step back.

    Qhat(s, a) = 1{(s, a) visited} L_h / mu(s, a)                      L_h losses from step h on, loss = 1 - reward
    1/eta_t(s) = c0 + c1 H sqrt(sum_{k <= t} 1/mu_k(s))                 mu_k(s) = 0 adds nothing
    b(s) = c2 (1/eta_t - 1/eta_{t-1}) xi(s),  xi(s) = sum_a sqrt(pi) (1 - pi)
    B(s, a) = b(s) + (1 + 1/H) sum_s' P(s' | s, a) sum_a' pi(a' | s') B(s', a')
    pi_{t+1}(. | s) = argmin_p  sum_{k <= t} <p, Qhat_k - B_k>  -  (2 / eta_t) sum_a sqrt(p_a)

arXiv 2302.09408, here with known transitions. `regularizer="shannon"` is exponential weights, "log-barrier" the first-order
variant; `eta` fixes the step and, with c2 = 0, leaves plain policy optimisation. Reconstructed: the constants (the paper's serve
the proof) and the split of the bonus, which in the paper also has lower-order terms and indicators.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from vantage.annotations import above, at_least
from vantage.core.component import component
from vantage.fields.tabular.episodes import Episodes, Known, Learner, Plan
from vantage.fields.tabular.mdp import backup, occupancy
from vantage.functions.simplex import power_policy
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method

PAPER = Paper(
    "Best of Both Worlds Policy Optimization",
    "Christoph Dann and Chen-Yu Wei and Julian Zimmert",
    2023,
    arxiv="2302.09408",
)
Regularizer = Literal["tsallis", "shannon", "log-barrier"]
NEWTON = {"tsallis": 5, "log-barrier": 8}
"""Newton steps that the solver needs for equal weights, whatever the number of actions."""


def leader(cost: Tensor, inverse_eta: Tensor, regularizer: str) -> Tensor:
    """Return the regularised leader [..., A] of cumulated costs [..., A]; inverse_eta [...] is above 0."""
    inverse_eta = inverse_eta.unsqueeze(-1)
    if regularizer == "shannon":
        return torch.softmax(-cost / inverse_eta, -1)
    power = 2 if regularizer == "tsallis" else 1
    return power_policy(-cost, inverse_eta.pow(power).expand_as(cost), power, NEWTON[regularizer])[0]


def loss_estimate(seen: Episodes, law: Tensor, policy: Tensor) -> Tensor:
    """Return Qhat [R, H, S, A]: losses to the end by the probability of being where they were, one episode a replica.

    Args:
        seen: one episode of each replica, from the first step.
        law: occupancy [R, H, S] of the policy [R, H, S, A] that was played.
    """
    place = (seen.state * policy.shape[-1] + seen.action).movedim(1, 2)
    loss = (1.0 - seen.reward).flip(-1).cumsum(-1).flip(-1).movedim(1, 2)
    chance = (law.unsqueeze(-1) * policy).flatten(-2)
    return torch.zeros_like(chance).scatter_(2, place, loss / chance.gather(2, place)).view(policy.shape)


def spread(policy: Tensor) -> Tensor:
    """Return xi [...] of policies [..., A]: 0 for a deterministic one, at most (1 - 1/A) sqrt(A), at the uniform one."""
    return (policy.sqrt() * (1.0 - policy)).sum(-1)


@component(label="bobw-po")
class BestOfBothWorlds:
    """The algorithm.

    Attributes:
        c0, c1: of the inverse step.
        c2: of the bonus.
        eta: a fixed step size instead.
        regularizer: tsallis, shannon or log-barrier.
    """

    c0: Annotated[float, above(0)] = 1.0
    c1: Annotated[float, at_least(0)] = 0.1
    c2: Annotated[float, at_least(0)] = 0.5
    eta: Annotated[float, above(0)] | None = None
    regularizer: Regularizer = "tsallis"

    def __call__(self, known: Known) -> Learner:
        """Learn from one episode at a time."""
        transition, start = known.model("bobw-po")
        steps = known.shape[0]
        policy = known.uniform()
        cost = torch.zeros_like(policy)
        seldom = torch.zeros_like(policy[..., 0])
        inverse = torch.full_like(seldom, self.c0 if self.eta is None else 1.0 / self.eta)
        while True:
            seen = yield Plan(policy)
            law = occupancy(transition, start, policy)
            cost += loss_estimate(seen, law, policy)
            if self.eta is None:
                seldom += torch.where(law > 0, 1.0 / law, 0.0)
                slower = self.c0 + self.c1 * steps * seldom.sqrt()
                if self.c2:
                    bonus = self.c2 * (slower - inverse) * spread(policy)
                    cost -= backup(transition, bonus.unsqueeze(-1), policy, 1.0 + 1.0 / steps)[0]
                inverse = slower
            policy = leader(cost, inverse, self.regularizer)


@method(id="S011", kind="theory", papers=PAPER, source="none: arXiv 2302.09408, without code")
def bobw_po(
    c0: float = 1.0, c1: float = 0.1, c2: float = 0.5, eta: float | None = None, regularizer: Regularizer = "tsallis"
) -> BestOfBothWorlds:
    """c0: inverse step at the start; c1: growth of the inverse step; c2: of the bonus; eta: a fixed step
    size instead; regularizer: `tsallis`, `shannon` or `log-barrier`. The constants are for small problems, not
    the paper's."""
    return BestOfBothWorlds(c0, c1, c2, eta, regularizer)


TUNED = {"c1": 0.3}
PLAIN = {"regularizer": "shannon", "c2": 0.0, "eta": 0.0125}
NOTE = (
    "The baseline is the same loop with exponential weights, no bonus, and the best of eight fixed steps for this length (0.0025"
    " to 0.3; the textbook's sqrt(ln A / (H^2 A T)) = 0.002 is twice as bad); c1 is the best of five (0.05 to 0.8)."
)

claim = (
    Claim(
        name="stochastic", arena="layered-stochastic", against="bobw-po", direction="lower",
        settings=TUNED, against_settings=PLAIN, note=NOTE,
    ),
    Claim(
        name="levels-off", arena="layered-stochastic", against="bobw-po", metric="half_ratio", direction="lower",
        settings=TUNED, against_settings=PLAIN,
        note="Regret of the second half by that of the first: a rate below sqrt(T) must be below 0.41. " + NOTE,
    ),
    Claim(
        name="switching", arena="layered-switching", against="bobw-po", direction="no worse", margin=0.02,
        settings=TUNED, against_settings=PLAIN,
        note="The margin is half of the baseline's regret. " + NOTE,
    ),
)  # fmt: skip
