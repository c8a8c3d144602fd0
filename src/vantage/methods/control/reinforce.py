"""REINFORCE with a baseline: the score-function gradient of the expected return.

    loss = -mean logp_t * (G_t - b),      G_t = sum_{k >= t} gamma^{k - t} r_k over whole episodes

The baseline b reduces variance and carries no gradient: the mean of the batch's returns to go, which are then scaled to unit
variance (`baseline="mean"`), a learned value of the state (`"critic"`), or none (`"none"`). Williams gives the
estimator, and Sutton and Barto (2018, section 13.4) the form with a learned value.

Against PyTorch's example: 16 episodes an update, whitened together, for one; the mean over decisions for their sum, which Adam
does not see; a rate of 1e-3 for 1e-2; the gradient's norm held to 0.5, as in A2C and PPO here; the task's network (two tanh
layers of 64) for one of 128 with dropout. An episode that a time limit cuts gets no bootstrap in either, unless
baseline="critic".
"""

from __future__ import annotations

from typing import Literal

from vantage.advantages.critic import Critic
from vantage.advantages.estimators import RewardToGo
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import PolicyGradient
from vantage.regularizers.penalties import EntropyBonus
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Groups, Shuffled
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam

PAPER = Paper(
    "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
    "Ronald J. Williams",
    1992,
    venue="Machine Learning 8",
)


@method(papers=PAPER, needs="episodes", source="pytorch/examples@77f55b9 reinforcement_learning/reinforce.py")
def reinforce(
    episodes: int = 16,
    lr: float = 1e-3,
    gamma: float = 0.99,
    baseline: Literal["mean", "critic", "none"] = "mean",
    entropy_coefficient: float = 0.0,
    max_grad_norm: float = 0.5,
) -> Method:
    """episodes: whole episodes a step; lr: Adam's; gamma: discount; baseline: `mean` whitens the returns of the
    batch, `critic` subtracts a fitted value, `none` does neither; entropy_coefficient: weight of the entropy;
    max_grad_norm: largest norm of the gradient."""
    return Method(
        prompts=Shuffled(),
        rollout=Groups(episodes, 1),
        rewards=(Total(),),
        values=Critic() if baseline == "critic" else None,
        advantage=RewardToGo(gamma, baseline=baseline == "critic", whiten=baseline == "mean"),
        objective=PolicyGradient(),
        averaging="token-mean",
        regularizers=(EntropyBonus(entropy_coefficient),) if entropy_coefficient else (),
        update=GradientUpdate(optimizer=Adam(lr), max_grad_norm=max_grad_norm),
    )


claim = Claim(
    arena="cartpole",
    against="reinforce",
    settings={"lr": 1e-2},
    against_settings={"lr": 1e-2, "baseline": "none"},
    note="A baseline reduces variance and does not change the expected gradient.",
)
