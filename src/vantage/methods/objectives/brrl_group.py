"""GBPO: regresses the ratio of an answer onto a target computed from its group, instead of clipping it. (S224)

BPO (brrl) for groups of answers: the group's median separates good from bad, and the target is the best ratio in the bounds.

    A    = (R - mean) / (std + 1e-6),   T = (R - median) / (std + 1e-6) / temper       within the group
    rho* = 1 - eps_low + (eps_low + eps_high) sigmoid(T)
    loss = token mean of |(ratio - rho*) A| + beta k3(logp, logp_ref) - c_e H

rho* and the weights carry no gradient. arXiv 2604.18578 (BRRL); losses as in the authors' code, defaults as in their script for
AIME (for MATH: eps 0.2, five passes over 32 prompts in 32 minibatches, no entropy term). As released that script selects GRPO's
advantage, with GBPO's commented out; the scripts for other models that select GBPO pass none of its settings (temper 1, eps 0.2,
one pass). Their token mean is over two rows at a time, then averaged, and their reward agreement with the majority of 64 answers,
of which 32 are trained on; here the mean is over the minibatch, and the reward the task's.

One rule is ours. The answers at their group's median, often its majority, have rho* = 1 exactly, where the absolute error
is not differentiable: on the first pass the gradient is 0 by definition, but the engine's log-probabilities differ from the
trainer's by some 1e-6, and the sign of that would give a gradient of full size. So a log-ratio below 1e-4 counts as 0.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from vantage.advantages.groups import record_groups
from vantage.annotations import above, at_least, between
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_median, group_moments, group_sums
from vantage.functions.rows import per_decision
from vantage.functions.whitening import standardize
from vantage.methods.claim import Claim
from vantage.methods.objectives.brrl import PAPER
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import method
from vantage.objectives.ratio_target import ratio_regression
from vantage.regularizers.penalties import EntropyBonus

NOISE = 1e-4
"""Log-ratio below which the policy counts as unchanged: well above the difference of engine and trainer (measured: 4e-6),
well below the effect of an update."""


@component
class GroupTarget:
    """Credit of the page: fills `advantage` [N, T] and `target_ratio` [N]; no gradient.

    Attributes:
        eps_low, eps_high: bounds of the ratio, 0 to 1 and at least 0.
        temper: divides the standardised distance to the median, above 0.
    """

    eps_low: Annotated[float, between(0, 1)] = 0.3
    eps_high: Annotated[float, at_least(0)] = 0.3
    temper: Annotated[float, above(0)] = 1e-4

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill both columns."""
        score = batch.score.float()
        mean, std = group_moments(score, batch.group)
        record_groups(std, batch.group, context)
        # A group of one answer is compared with 0, without scaling.
        alone = group_sums(score, batch.group)[1] <= 1
        mean, middle = (part.masked_fill(alone, 0.0) for part in (mean, group_median(score, batch.group)))
        scale = std.masked_fill(alone, 1.0) + 1e-6
        target = (
            1 - self.eps_low + (self.eps_low + self.eps_high) * torch.sigmoid((score - middle) / scale / self.temper)
        )
        return batch.replace(
            advantage=per_decision(torch.where(alone, score, standardize(score - mean, std, 1e-6)), batch.mask),
            target_ratio=target,
        )


@component
class TargetRatio:
    """Policy loss of the page; gradient flows through `logp`.

    Attributes:
        width: distance from 1 beyond which a ratio is recorded as outside.
    """

    width: float = 0.3
    wants = frozenset({"logp"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        return ratio_regression(
            evaluation, batch, batch.target_ratio.unsqueeze(-1), batch.advantage, self.width, context, NOISE
        )


@method(
    id="S224",
    papers=PAPER,
    source="bounded-ratio-rl/bounded_ratio_rl@64ff1cd ttrl/Qwen2.5-Math/aime.sh",
    base=grpo,
    without=("eps", "dual"),
    prompts=8,
    group_size=32,
    lr=5e-7,
    beta=0.001,
    epochs=10,
    minibatches=4,
    lr_schedule="cosine",
    lr_warmup=0.03,
    weight_decay=0.01,
)
def brrl_group(
    base: Method, eps_low: float = 0.3, eps_high: float = 0.3, temper: float = 1e-4, entropy: float = 0.005
) -> Method:
    """eps_low, eps_high: bounds of the ratio; temper: divides the standardised distance to the median of the group, near 0 makes
    rho* a choice between the bounds; entropy: c_e, weight of the entropy."""
    bonus = (EntropyBonus(entropy),) if entropy else ()
    return base.replace(
        advantage=GroupTarget(eps_low, eps_high, temper),
        objective=TargetRatio(max(eps_low, eps_high)),
        averaging="token-mean",
        regularizers=(*base.regularizers, *bonus),
    )


# The surroundings are those of the other side; bounds and temper are the page's.
claim = Claim(
    name="language",
    arena="arithmetic",
    against="grpo",
    direction="no worse",
    margin=0.03,
    settings={
        "epochs": 4, "minibatches": 1, "lr": 3e-5, "lr_schedule": "constant", "lr_warmup": 0.0, "weight_decay": 0.0, "beta": 0.0,
        "entropy": 0.0,
    },
    against_settings={"beta": 0.0, "epochs": 4, "lr": 1e-4},
    note="GBPO against GRPO, four passes a batch. Each side's rate is the best of three by pass@1 of one further seed (at 3e-5,"
    " 1e-4 and, GBPO 1e-5, GRPO 3e-4; GBPO, with eps 0.2 and temper 1: 0.447, 0.444, 0.407; GRPO: 0.461, 0.527, 0.424).",
)  # fmt: skip
