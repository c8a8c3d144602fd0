"""TD3+BC: TD3 on recorded data, with the actor regularised towards the recorded actions.

Off-policy actor-critics overestimate the values of actions that are not in the data. One squared distance in the actor's
loss, and a scale for the value, prevents that:

    lam  = alpha / mean |Q1(s, pi(s))|         loss = -lam * mean Q1(s, pi(s)) + mean (pi(s) - a)^2

every second step; the twin action values take a step in each, towards r + gamma min Q'(s', noisy pi'(s')), and targets are
updated after the actor. States are standardised by the data's moments (the task's `normalize`). `pull=0` is TD3 on the data
without any regulariser. arXiv 2106.06860, equations 3 and 5 and table of appendix C.

Against the authors' code: the actor's step precedes the critic's of the same minibatch instead of following it; weights start
orthogonal, the actor's last layer at 0.01, so that first actions are near 0, where theirs have torch's start; the scale
mean |Q1| is at least 1e-8.
"""

from __future__ import annotations

from vantage.advantages.twin_q import TwinQ
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.deterministic import AnchoredGradient
from vantage.objectives.likelihood import NoCredit
from vantage.rollouts.offline import Transitions
from vantage.rollouts.plans import Shuffled
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam
from vantage.updates.targets import Every, MoveTargets

PAPER = Paper(
    "A Minimalist Approach to Offline Reinforcement Learning",
    "Scott Fujimoto and Shixiang Shane Gu",
    2021,
    arxiv="2106.06860",
)
TD3_PAPER = Paper(
    "Addressing Function Approximation Error in Actor-Critic Methods",
    "Scott Fujimoto and Herke van Hoof and David Meger",
    2018,
    arxiv="1802.09477",
)


@method(papers=(PAPER, TD3_PAPER), needs="transitions", source="sfujim/TD3_BC@8791ad7 main.py")
def td3_bc(
    rows: int = 256,
    lr: float = 3e-4,
    alpha: float = 2.5,
    pull: float = 1.0,
    gamma: float = 0.99,
    tau: float = 0.005,
    noise: float = 0.2,
    every: int = 2,
) -> Method:
    """rows: transitions a step; lr: Adam's, of actor and critics; alpha: weight of the values over their scale;
    pull: weight of the distance to the anchor, 0 is TD3 on the data; gamma: discount; tau: share by which targets
    are updated; noise: standard deviation of the target policy's noise; every: critic steps for one of the actor and the
    targets."""
    return Method(
        prompts=Shuffled(),
        rollout=Transitions(rows),
        rewards=(),
        values=TwinQ(gamma, noise, optimizer=Adam(lr)),
        advantage=NoCredit(),
        objective=AnchoredGradient(alpha, pull=pull),
        controllers=(MoveTargets(tau, every),),
        update=Every(every, GradientUpdate(optimizer=Adam(lr), unit="row", max_grad_norm=None)),
    )


claim = Claim(
    arena="offline-point",
    against="bc",
    note="A tenth of the episodes is good, the others are random walks: most of the imitated data is aimless.",
)
