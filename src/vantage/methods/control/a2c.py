"""A2C: the synchronous advantage actor-critic, one gradient step on a few steps of many environments.

The policy gradient with a learned value as baseline, updated from short segments of parallel streams instead of a
replay of old ones:

    loss = -mean logp * A + c1 * mean (R - V)^2 - c2 * mean entropy,      A = R - V,  R the bootstrapped return

The method is A3C's (arXiv 1602.01783) without the asynchrony. The loss and the defaults are those of openai/baselines, but for the
rows: 16, as many as A3C's workers, for as many as there are processors. Stable-Baselines3 has the same loss, no entropy term
and a constant rate. RMSprop adds its eps to the root as torch does; baselines adds it inside, and starts the mean square at 1.
"""

from __future__ import annotations

from vantage.advantages.critic import Critic
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.control.ppo import ppo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import PolicyGradient
from vantage.updates.optimizers import RMSprop

PAPER = Paper(
    "Asynchronous Methods for Deep Reinforcement Learning",
    "Volodymyr Mnih and Adria Puigdomenech Badia and Mehdi Mirza and Alex Graves and Timothy Lillicrap and Tim Harley"
    " and David Silver and Koray Kavukcuoglu",
    2016,
    arxiv="1602.01783",
)


@method(
    papers=PAPER, base=ppo,
    source="openai/baselines@ea25b9e baselines/a2c/a2c.py; DLR-RM/stable-baselines3@v2.9.2 stable_baselines3/a2c/a2c.py",
    without=("epochs", "minibatches", "eps", "clip_value", "target_kl"),
    epochs=1, minibatches=1, rows=16, length=5, lam=1.0, entropy_coefficient=0.01,
)  # fmt: skip
def a2c(base: Method, lr: float = 7e-4, value_coefficient: float = 0.5) -> Method:
    """lr: RMSprop's; value_coefficient: c1, weight of the squared error of values, without PPO's half."""
    composed = base.replace(values=Critic(2 * value_coefficient), objective=PolicyGradient())
    return composed.adapt("update", optimizer=RMSprop(lr), normalize_advantage=False)


claim = Claim(
    arena="cartpole",
    against="reinforce",
    settings={"lr": 3e-3},
    against_settings={"lr": 1e-2},
    note="A learned value and steps before the episode's end. Both have the best of three learning rates, A2C of 7e-4 (the"
    " default), 3e-3 and 1e-2 on two seeds (78, 158 and 150, with half of the present value coefficient).",
)
