"""GDPO: GRPO that standardises each reward within its group before adding them. (S215)

Added first and standardised afterwards, different combinations of rewards collapse into the same advantage, and a reward of
small scale has no effect. GDPO standardises reward by reward, adds with weights, and standardises the sum over the batch, so
that its scale does not grow with the number of rewards:

    A_k(g, j) = (r_k(g, j) - mean_g r_k) / (std_g r_k + eps)        A(g, j) = sum_k w_k A_k(g, j)
    advantage = (A - mean A) / (std A + eps)     over all rows of the batch

arXiv 2601.05242; the rest is GRPO with the mean over tokens. Sample standard deviations. With one reward it is plain GRPO, as in
the authors' TRL code. Defaults are that code's GSM8K run (there the token mean is of 16 rows of a device, here of the minibatch).
Their tool-calling run, with verl, is `prompts=512 group_size=4 minibatches=4 lr=1e-6 lr_schedule=constant lr_warmup=0 beta=0
eps_std=1e-6 statistics=tokens` and an entropy bonus of 0.001: statistics of the batch weigh a row by its tokens, and 1e-8 is added
to the variance.

A missing reward (NaN) is left out of its group's statistics and of the sum, as everywhere here; the authors count it as 0.
`gate` and `gated` pay a reward only where another reaches a threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor

from vantage.advantages.groups import record_groups
from vantage.core import at_least, component
from vantage.core.context import Context
from vantage.core.errors import UserError, nearest
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_moments
from vantage.functions.rows import per_decision
from vantage.functions.whitening import masked_moments, standardize, whiten
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method

PAPER = Paper(
    "GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL Optimization",
    "Shih-Yang Liu and Xin Dong and Ximing Lu and Shizhe Diao and Peter Belcak and Mingjie Liu and others",
    2026,
    arxiv="2601.05242",
)


def _known(name: str, batch: Trajectories, where: str) -> None:
    given = list(batch.rewards)
    if name not in given:
        raise UserError(
            f"{where} names {name!r}, which no verifier gives{nearest(name, given)} (given: {', '.join(given)})"
        )


@dataclass(frozen=True)
class PaidIf:
    """Pay the reward `reward` only where the reward `gate` is at least `threshold`; elsewhere it is 0.

    Where either is missing (NaN), the result is missing.
    """

    reward: str
    gate: str
    threshold: float = 1.0
    needs = frozenset({"rewards"})

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Change that named reward."""
        for name in (self.reward, self.gate):
            _known(name, batch, "PaidIf")
        reward, gate = batch.rewards[self.reward], batch.rewards[self.gate]
        paid = torch.where(gate >= self.threshold, reward, 0.0)
        paid = paid.masked_fill(torch.isnan(gate) | torch.isnan(reward), torch.nan)
        return batch.replace(rewards=batch.rewards.replace(**{self.reward: paid}))


@component
class Decoupled:
    """The advantage of the page; no gradient.

    Attributes:
        weights: of each named reward; 1 where none is given.
        eps: added to each standard deviation, at least 0.
        over_batch: whether the sum is standardised over the batch (step 3); one reward alone never is.
        statistics: of the batch, over its rows, or over its tokens with 1e-8 added to the variance.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    eps: Annotated[float, at_least(0)] = 1e-4
    over_batch: bool = True
    statistics: Literal["rows", "tokens"] = "rows"
    needs = frozenset({"rewards"})

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage [N, T]."""
        for name in self.weights:
            _known(name, batch, "Decoupled.weights")
        total = torch.zeros(len(batch), device=batch.device)
        scored = torch.zeros(len(batch), dtype=torch.bool, device=batch.device)
        several = len(list(batch.rewards)) > 1
        for name in batch.rewards:
            reward, weight = batch.rewards[name].float(), self.weights.get(str(name), 1.0)
            if not several:  # the size of a weight falls out, as in GRPO
                reward, weight = weight * reward, 1.0
            mean, std = group_moments(reward, batch.group)
            total = total + weight * standardize(reward - mean, std, self.eps)
            scored |= ~torch.isnan(reward)
            context.record(f"groups/std_{name}", std.mean())
        record_groups(group_moments(total, batch.group)[1], batch.group, context)
        if several and self.over_batch and self.statistics == "tokens":
            return whiten(per_decision(total, batch.mask), batch.mask & scored.unsqueeze(-1))
        if several and self.over_batch:
            centred, _, variance = masked_moments(total.unsqueeze(-1), scored.unsqueeze(-1))
            total = standardize(centred.squeeze(-1), variance.sqrt().expand_as(total), self.eps)
        return per_decision(total, batch.mask)


@method(
    id="S215",
    papers=PAPER,
    source="NVlabs/GDPO@b080e63 trl-GDPO/open-r1/run_gsm8k_gdpo.sh; NVlabs/GDPO@b080e63 verl-GDPO/train_gdpo.sh",
    needs=("episodes", "rewards"),
    base=grpo,
    prompts=32,
    group_size=16,
    lr=5e-6,
    lr_schedule="cosine",
    lr_warmup=0.1,
)
def gdpo(
    base: Method,
    eps_std: float = 1e-4,
    statistics: Literal["rows", "tokens"] = "rows",
    gated: str = "",
    gate: str = "",
    threshold: float = 1.0,
) -> Method:
    """Compose GDPO; the weights of the rewards are the setting `advantage.weights`. eps_std: added to each standard
    deviation; statistics: of the batch, over its rows or its tokens; gated: name of a reward that is paid only where `gate`
    reaches `threshold`, "" for none; gate: name of the reward that decides; threshold: what it must reach."""
    if bool(gated) != bool(gate):
        raise UserError(f"gdpo: gated={gated!r} and gate={gate!r} go together: both name a reward")
    return base.replace(
        rewards=(PaidIf(gated, gate, threshold), *base.rewards) if gated else base.rewards,
        advantage=Decoupled(eps=eps_std, statistics=statistics),
        averaging="token-mean",
    )


claim = Claim(
    arena="arithmetic",
    against="grpo",
    direction="no worse",
    margin=0.03,
    settings={"beta": 0.0, "lr_schedule": "constant", "lr_warmup": 0},
    against_settings={"beta": 0.0},
    note="The arena has one reward, where GDPO is GRPO with the mean over tokens; the authors' gains are with several.",
)
