"""A2C: the synchronous advantage actor-critic, one gradient step on a few steps of many environments.

The policy gradient with a learned value as baseline, updated from short segments of parallel streams instead of a
replay of old ones:

    loss = -mean logp * A + c1 * 0.5 * mean (R - V)^2 - c2 * mean entropy,      A = R - V,  R the bootstrapped return

The method is A3C's (arXiv 1602.01783) without the asynchrony; defaults are that paper's Atari settings, with RMSprop.
"""

from __future__ import annotations

from vantage.advantages.critic import Critic
from vantage.advantages.estimators import GAE
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import PolicyGradient
from vantage.regularizers.penalties import EntropyBonus
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Shuffled, Steps
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Constant, Linear, RMSprop

PAPER = Paper(
    "Asynchronous Methods for Deep Reinforcement Learning",
    "Volodymyr Mnih and Adria Puigdomenech Badia and Mehdi Mirza and Alex Graves and Timothy Lillicrap and Tim Harley"
    " and David Silver and Koray Kavukcuoglu",
    2016,
    arxiv="1602.01783",
)


@method(papers=PAPER)
def a2c(
    rows: int = 16,
    length: int = 5,
    lr: float = 7e-4,
    anneal: bool = True,
    gamma: float = 0.99,
    lam: float = 1.0,
    value_coefficient: float = 0.5,
    entropy_coefficient: float = 0.01,
    max_grad_norm: float = 0.5,
) -> Method:
    """Compose A2C; `lam` below 1 gives it generalised advantages."""
    return Method(
        prompts=Shuffled(),
        rollout=Steps(rows, length),
        rewards=(Total(),),
        values=Critic(value_coefficient),
        advantage=GAE(gamma, lam),
        objective=PolicyGradient(),
        averaging="token-mean",
        regularizers=(EntropyBonus(entropy_coefficient),),
        update=GradientUpdate(
            optimizer=RMSprop(lr), schedule=Linear() if anneal else Constant(), max_grad_norm=max_grad_norm
        ),
    )


claim = Claim(
    arena="cartpole",
    against="reinforce",
    settings={"lr": 3e-3},
    against_settings={"lr": 1e-2},
    note="A learned value and steps before the episode's end. Both have the best of three learning rates, A2C of 7e-4 (the"
    " paper's), 3e-3 and 1e-2 on two seeds (78, 158 and 150).",
)
