"""RLOR: PPO for routing with an encoder that runs once per instance and is shared by its tours. (S067)

Routing models used to be trained by REINFORCE, and a generic trainer encodes the graph again at every decision. RLOR splits the
model: the encoder's keys and values are computed once for an instance, all its tours read them, and
minibatches hold whole instances, so that an update costs 1 + epochs * minibatches encodings, whatever the number of steps.

    A by GAE(gamma, lambda) on rewards of minus each edge, standardised in the minibatch (sample std)
    loss = mean max(-A ratio, -A clip(ratio, 0.8, 1.2)) + 0.5 * 0.5 * max((v - R)^2, (v_clip - R)^2) - 0.01 * entropy

arXiv 2303.13117. Two things differ from the released code. The return to the first node belongs to the last decision instead of
being one more, which has a single option and no gradient: a tour has n decisions, not n + 1. And the encoder normalises within an
instance instead of over the batch, so that the value of a tour does not depend on other rows. The actor and the critic share all
layers up to the glimpse, as there. There the encoder sees 1024 instances in the rollout and 128 in a minibatch, so that the first
ratio is not 1, and for CVRP the steps after a tour's end count in every mean; neither is so here. `gamma` below 1 discounts later
edges; 1 gives the tour's exact length.

At test time tours are built greedily from every start (`vantage eval`). `cached=false` is the baseline of its claim: the same
model, encoding at every decision in the rollout and in the update.
"""

from __future__ import annotations

import math

from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.control.ppo import ppo
from vantage.methods.registry import Paper, method
from vantage.rollouts.routing import SharedTours

PAPER = Paper(
    "RLOR: A Flexible Framework of Deep Reinforcement Learning for Operation Research",
    "Ching Pui Wan and Tung Li and Jason Min Wang",
    2023,
    arxiv="2303.13117",
)


@method(
    id="S067", papers=PAPER, needs=("tours", "critic"), base=ppo, without=("rows", "length", "clip_value", "target_kl"),
    epochs=2, minibatches=8, lr=1e-3, entropy_coefficient=0.01, source="cpwan/RLOR@6feeb76 ppo_or.py",
)  # fmt: skip
def rlor(base: Method, prompts: int = 1024, starts: int = 50, cached: bool = True) -> Method:
    """prompts: instances a step; starts: tours of each instance (n_traj); cached: an instance is encoded once for
    all decisions."""
    return base.replace(rollout=SharedTours(prompts, starts, cached=cached)).adapt(
        "update", unit="group", normalize_advantage=True
    )


_SMALL = {"prompts": 64, "starts": 20, "minibatches": 4, "gamma": 1.0}

claim = (
    Claim(
        name="cache",
        arena="tsp20-throughput",
        against="rlor",
        settings=_SMALL,
        against_settings={**_SMALL, "cached": False},
        margin=math.log2(3),
        note="Decisions a second of rollout and update, with the cache at least 3 times those without. The authors: training"
        " 8 times as fast as the original attention model.",
    ),
    Claim(
        name="quality",
        arena="tsp20",
        against="remax",
        direction="no worse",
        margin=1.0,
        settings=_SMALL,
        against_settings={
            "prompts": 64, "group_size": 19, "gamma": 1.0, "limit": 1e9, "kl_coefficient": 0.0, "weight_decay": 0.0,
            "lr_schedule": "constant", "adam_betas": [0.9, 0.999],
        },
        note="Against REINFORCE with the greedy tour as baseline at equal tours; the margin is one per cent of the tour's length.",
    ),
)  # fmt: skip
