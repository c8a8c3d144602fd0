"""PPO: several epochs of minibatch steps on one batch, with clipped probability ratios. (S043)

One batch of on-policy data is worth several passes if the objective stops rewarding a sample once its ratio has moved
too far. The minimum of the plain and the clipped surrogate does that with first-order steps only:

    ratio = exp(logp - logp_old)
    loss  = -mean min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A)
            + c1 * 0.5 * mean (V - R)^2  -  c2 * mean entropy

A by GAE, standardised in each minibatch (population std); R = A + V before standardising. With clip_value the value loss is
the larger of it and that of V held within eps of its old value. Separate tanh 64-64 networks, orthogonal initialisation and
running normalisation belong to the policy and the task.

The defaults are those of openai/baselines' ppo2 for continuous control. Its ppo1, of the paper's year, has the value loss
mean (V - R)^2 at a coefficient of 1 (value_coefficient=2 here) without a clip, no gradient clip, A standardised once over the
whole batch, and lets eps fall with the rate. Both count a time limit as the episode's end; here the value of the last state
stands in for what was cut off, as in Stable-Baselines3. That one has the sample's deviation, no value clip and a value loss without
the half, at a coefficient of 0.5 (1.0 here).
"""

from __future__ import annotations

from vantage.advantages.critic import Critic
from vantage.advantages.estimators import GAE
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import Clip
from vantage.regularizers.penalties import EntropyBonus
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Shuffled, Steps
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam, Constant, Linear

PAPER = Paper(
    "Proximal Policy Optimization Algorithms",
    "John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov",
    2017,
    arxiv="1707.06347",
)
GAE_PAPER = Paper(
    "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    "John Schulman and Philipp Moritz and Sergey Levine and Michael Jordan and Pieter Abbeel",
    2016,
    arxiv="1506.02438",
)


@method(
    id="S043", papers=(PAPER, GAE_PAPER), needs=("streams", "critic"),
    source="openai/baselines@ea25b9e baselines/ppo2/defaults.py; DLR-RM/stable-baselines3@v2.9.2 stable_baselines3/ppo/ppo.py",
)  # fmt: skip
def ppo(
    rows: int = 1,
    length: int = 2048,
    epochs: int = 10,
    minibatches: int = 32,
    lr: float = 3e-4,
    anneal: bool = True,
    gamma: float = 0.99,
    lam: float = 0.95,
    eps: float = 0.2,
    clip_value: bool = True,
    value_coefficient: float = 0.5,
    entropy_coefficient: float = 0.0,
    max_grad_norm: float = 0.5,
    target_kl: float | None = None,
    micro_batch: int | None = None,
) -> Method:
    """Compose PPO.

    rows: parallel environments; length: steps of each before an update; epochs: passes over a batch; minibatches:
    optimiser steps a pass; lr: learning rate; anneal: let it fall to 0 over the run; gamma: discount; lam: lambda of GAE;
    eps: clip range of the ratio, and of the change of a value; clip_value: whether values are clipped; value_coefficient: c1,
    weight of half the squared error of values; entropy_coefficient: c2, weight of the entropy; max_grad_norm: largest
    norm of a gradient; target_kl: divergence from the old policy that ends the passes, none for no limit;
    micro_batch: rows evaluated at once, none for all of a minibatch.
    """
    return Method(
        prompts=Shuffled(),
        rollout=Steps(rows, length),
        rewards=(Total(),),
        values=Critic(value_coefficient, clip=eps if clip_value else None),
        advantage=GAE(gamma, lam),
        objective=Clip(eps),
        averaging="token-mean",
        regularizers=(EntropyBonus(entropy_coefficient),),
        update=GradientUpdate(
            optimizer=Adam(lr, eps=1e-5),
            schedule=Linear() if anneal else Constant(),
            epochs=epochs,
            minibatches=minibatches,
            normalize_advantage="population",
            max_grad_norm=max_grad_norm,
            target_kl=target_kl,
            micro_batch=micro_batch,
        ),
    )


claim = (
    Claim(
        name="cartpole",
        arena="cartpole-100k",
        against="sb3-ppo",
        direction="no worse",
        margin=25.0,
        settings={
            "rows": 4, "length": 128, "epochs": 4, "minibatches": 4, "lr": 2.5e-4, "entropy_coefficient": 0.01,
        },
        against_settings={
            "n_envs": 4, "n_steps": 128, "n_epochs": 4, "batch_size": 128, "learning_rate": 2.5e-4, "anneal": True,
            "ent_coef": 0.01, "vf_coef": 0.25,
        },
        note="CleanRL's hyperparameters on both sides; the margin is 5 % of the highest return. vf_coef 0.25 is the same"
        " value loss: the peer's has no half in front.",
    ),
    Claim(
        name="hopper",
        arena="hopper-500k",
        against="sb3-ppo",
        direction="no worse",
        margin=500.0,
        against_settings={"anneal": True, "vf_coef": 0.25, "normalize": True},
        seeds=3,
        note="CleanRL's continuous hyperparameters on both sides: 2048 steps, 10 epochs of 32 minibatches, rate 3e-4 annealed,"
        " observations and rewards normalised.",
    ),
)  # fmt: skip
