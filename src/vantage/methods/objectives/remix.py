"""ReMix: trains on recent and fresh rollouts with a recentred clip, then on-policy from the resulting policy. (S234)

On-policy fine-tuning uses each rollout once. ReMix replays groups of the last N policies with a clip range centred on
the ratio of the present policy, takes more passes, and penalises the divergence to a mixture of base and previous policy; after
T steps the policy becomes the new base and training continues on-policy:

    c     = exp(logp_k - logp_b), 1 for a fresh row       R = exp(logp - logp_b),  logp_b of the policy that acted
    loss  = -mean min(R A, clip(R, c - eps, c + eps) A) - c_H H
            + beta [ lam(t) KL(pi || base) + (1 - lam(t)) KL(pi || pi_{k-1}) ]
    lam(t) = max(1 - 0.1 ceil(max(t - 50, 0) / 10), 0.5);     t <= T: p, m;    t > T: base = pi_T, p = 0, m = 1

arXiv 2507.06892, equations and settings from a public summary; the authors' repository (AnitaLeungxx/ReMix-Off-Policy-RFT) holds
an unchanged PPO and scripts that evaluate. Reconstructed: a uniform draw of the age, the k3 estimate, m = 1 after T, groups
replayed whole. beta, c_H and eps are not stated: GRPO's 0.04, 0 and 0.2. T is 50 with GRPO, 50 or 100 with PPO.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from vantage.annotations import at_least, below
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.divergences import divergence
from vantage.functions.ratios import log_ratio
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import recorded_clip
from vantage.regularizers.penalties import EntropyBonus
from vantage.rollouts.replay import RecentReplay
from vantage.updates.phases import Until

PAPER = Paper(
    "Squeeze the Soaked Sponge: Efficient Off-policy Reinforcement Finetuning for Large Language Model",
    "Jing Liang and Hongyao Tang and Yi Ma and Jinyi Liu and Yan Zheng and Shuyue Hu and Lei Bai and Jianye Hao",
    2025,
    arxiv="2507.06892",
)
PREVIOUS = "previous"


@component
class CentredClip:
    """The clipped surrogate with bounds c - eps and c + eps; gradient flows through `logp`.

    Attributes:
        eps: half the width, at least 0.
    """

    eps: Annotated[float, at_least(0)] = 0.2
    wants = frozenset({"logp"})
    columns = frozenset({"logp_current"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        log = log_ratio(evaluation.logp, batch.logp_old, batch.mask)
        centre = log_ratio(batch.logp_current, batch.logp_old, batch.mask).exp()
        return recorded_clip(log, batch, centre - self.eps, centre + self.eps, None, context)


def convex_weight(step: int) -> float:
    """Return lam(t), t = 1 in the first step."""
    return max(1 - 0.1 * math.ceil(max(step - 50, 0) / 10), 0.5)


@component
class ConvexKL:
    """The page's divergence to base and previous policy, k3 per decision; gradient flows through `logp`.

    Attributes:
        coefficient: beta, at least 0.
    """

    coefficient: Annotated[float, at_least(0)] = 0.04
    wants = frozenset({"logp"})
    columns = frozenset({"logp_ref", f"logp_under_{PREVIOUS}"})
    label = "kl"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term per decision [N, T]."""
        weight = convex_weight(context.step + 1)
        base, previous = (
            divergence(evaluation.logp, torch.where(batch.mask, anchor, evaluation.logp.detach()), "k3")
            for anchor in (batch.logp_ref, batch[f"logp_under_{PREVIOUS}"])
        )
        context.record_mean("kl/base", base, batch.mask)
        context.record_mean("kl/previous", previous, batch.mask)
        context.record("kl/weight", weight)
        return self.coefficient * (weight * base + (1 - weight) * previous)


@component
class KeepPrevious:
    """Selection that keeps all rows, and a copy of the policy before the update for the next step's divergence."""

    policies = frozenset({PREVIOUS})

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the batch."""
        context.freeze(PREVIOUS)
        return batch


@component
class Reincarnate:
    """Controller: after `at` steps the policy becomes the base."""

    at: int = 50
    policies = frozenset({"reference"})

    def __call__(self, context: Context) -> None:
        """Make the copy, once."""
        if context.step == self.at:
            context.freeze("reference")
            context.record("reincarnated", 1.0)


@method(
    id="S234",
    papers=PAPER,
    source="none: a public summary of the paper; the authors' repository trains nothing",
    base=grpo,
    without=("beta", "epochs", "dual"),
    beta=0.0,
    group_size=8,
)
def remix(
    base: Method,
    share: Annotated[float, at_least(0), below(1)] = 0.4,
    passes: Annotated[int, at_least(1)] = 2,
    window: int = 2,
    until: int = 50,
    beta: float = 0.04,
    entropy: float = 0.0,
    eps: float = 0.2,
) -> Method:
    """share: p, share of the rows that come from earlier steps; passes: m, over a batch; window: N, steps that are
    kept; until: T, steps after which both end and the policy becomes the base; beta: weight of the divergence to
    base and previous policy; entropy: weight of the entropy."""
    # `share` and `passes` are read inside `Until`, only during the run: their ranges are checked here.
    mixed = base.replace(
        rollout=RecentReplay(base.rollout, Until(until, share, 0.0), window, current=True),
        objective=CentredClip(eps),
        regularizers=(*((ConvexKL(beta),) if beta else ()), *((EntropyBonus(entropy),) if entropy else ())),
        selection=(KeepPrevious(),) if beta else (),
        controllers=(Reincarnate(until),) if beta else (),
    )
    return mixed.adapt("update", epochs=Until(until, passes, 1))


claim = Claim(
    arena="arithmetic",
    against="grpo",
    metric="area",
    settings={"until": 100, "beta": 0.01},
    against_settings={"beta": 0.01},
    note="Accuracy over freshly generated samples; the authors report the same accuracy from a fraction of the rollouts.",
)
