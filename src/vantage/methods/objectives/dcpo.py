"""DCPO: clip bounds from each token's own probability, and advantages from all earlier answers to a prompt. (S146)

Fixed bounds on the ratio hardly let the probability of a rare token change, and a group whose answers all score the same has
no gradient. DCPO bounds the change of probability instead of the ratio, and standardises a score both within its group and
against all visits of its prompt so far; of two mixtures of both it takes the one that is smaller in size:

    q = exp(logp_old)        |(ratio - 1) ratio| q <= eps   gives
    low  = 1/2 + 1/2 sqrt(max(1 - 4 eps_low / q, 0)),       high = min(1/2 + 1/2 sqrt(1 + 4 eps_high / q), c)
    visit i, scores with mean mu and std sd, history (m, s):
    m' = ((i-1) m + mu) / i,       s'^2 = ((i-1) s^2 + sd^2 + (i-1)/i (mu - m)^2) / i
    A_new = (r - mu) / sd,         A_tot = (r - m') / s'
    A     = the smaller in size of ((i-1) A_new + A_tot) / i and (A_new + (i-1) A_tot) / i
    loss = mean over rows of the row's mean of max(-A ratio, -A clip(ratio, low, high)), for A < 0 at most -A c

arXiv 2509.02333; formulas, merging, the dual clip at c = 10 and the defaults as in the authors' code and launch script. No
divergence term. A row without variance (std below 1e-6) counts as equal scores. Paper, code and page differ in:

- History: the script leaves it off; that is `history=False`, and A is A_new. The paper has it on, which is the default here.
- Averaging: the paper adds up the rows, `averaging="seq-sum-token-mean"`. The code takes the mean over the tokens of a pack of rows
  (`averaging="token-mean"` where one pack holds the minibatch), and averages packs by their rows.
- Bounds: the paper's table has 0.16 and 0.2, the script 0.2 and 0.28. Where q underflows to 0 their lower bound is 1, not 1/2.
- Reward: theirs is 1 for a right answer, -1 where no answer can be read and 0 otherwise; here it is the task's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from vantage.advantages.groups import GroupStandardized, record_groups
from vantage.core.context import Context
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_moments
from vantage.functions.ratios import log_ratio
from vantage.functions.rows import per_decision
from vantage.functions.whitening import standardize
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import recorded_clip
from vantage.rollouts.records import Records, per_prompt

PAPER = Paper(
    "DCPO: Dynamic Clipping Policy Optimization",
    "Shihui Yang and Chengfeng Dou and Peidong Guo and Kai Lu and Qiang Ju and Fei Deng and Rihui Xin",
    2025,
    arxiv="2509.02333",
)


def dynamic_bounds(q: Tensor, eps_low: float, eps_high: float, limit: float) -> tuple[Tensor, Tensor]:
    """Return the bounds of the ratio for tokens of old probability q in [0, 1]; shapes as q, no gradient."""
    low = 0.5 + 0.5 * (1 - 4 * eps_low / q).clamp(min=0).sqrt()
    high = (0.5 + 0.5 * (1 + 4 * eps_high / q).sqrt()).clamp(max=limit)
    return low, high


@dataclass(frozen=True)
class DynamicClip:
    """The clipped surrogate of the page; gradient flows through `logp`.

    Attributes:
        eps_low, eps_high: bounds on |ratio - 1| times the new probability.
        limit: c, the cap of the upper bound and of the ratio where A < 0.
    """

    eps_low: float = 0.2
    eps_high: float = 0.28
    limit: float = 10.0
    wants = frozenset({"logp"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        log = log_ratio(evaluation.logp, batch.logp_old, batch.mask)
        q = torch.where(batch.mask, batch.logp_old, 0.0).exp()
        low, high = dynamic_bounds(q, self.eps_low, self.eps_high, self.limit)
        return recorded_clip(log, batch, low, high, self.limit, context)


@dataclass(frozen=True)
class SmoothStandardized:
    """The advantage of the page, which keeps (mean, variance, visits) of each prompt; no gradient."""

    _records: Records = field(
        default_factory=lambda: Records(mean=0.0, variance=0.0, visits=0.0), init=False, repr=False, compare=False
    )

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage [N, T]; all answers to a prompt in the batch are one visit."""
        score = batch.score.float()
        ids, index, count = per_prompt(batch.prompt)
        mean, std = group_moments(score, batch.prompt)
        record_groups(std, batch.group, context)
        past = self._records.read(ids)
        earlier, visits = past["visits"], past["visits"] + 1
        mu = mean.new_zeros(count).scatter(0, index, mean)
        sd = std.new_zeros(count).scatter(0, index, std)
        # Updated by the difference, so that equal means stay exactly equal.
        merged = past["mean"] + (mu - past["mean"]) / visits
        between = earlier / visits * (mu - past["mean"]).square()
        variance = (earlier * past["variance"] + sd.square() + between) / visits
        # A visit without any scored answer does not count.
        seen = torch.zeros(count, device=score.device).index_add(0, index, (~torch.isnan(score)).float()) > 0
        self._records.write(ids[seen], mean=merged[seen], variance=variance[seen], visits=visits[seen])
        new = standardize(score - mean, std)
        total = standardize(score - merged[index], variance.sqrt()[index])
        share = (1 / visits)[index]
        towards_new = (1 - share) * new + share * total
        towards_total = share * new + (1 - share) * total
        advantage = torch.where(towards_new.abs() < towards_total.abs(), towards_new, towards_total)
        context.record("advantage/nonzero", (advantage != 0).float().mean())
        return per_decision(advantage, batch.mask)

    def state_dict(self) -> dict[str, Any]:
        """Return the records."""
        return self._records.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self._records.load_state_dict(state)


@method(
    id="S146",
    papers=PAPER,
    source="lime-RL/DCPO@01787b0 recipe/dcpo/run_dcpo.sh",
    base=grpo,
    without=("eps", "dual", "beta"),
    beta=0.0,
    prompts=512,
    group_size=16,
    minibatches=64,
    lr_warmup=10.0,
    weight_decay=0.1,
)
def dcpo(
    base: Method,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
    limit: float = 10.0,
    history: bool = True,
    averaging: Literal["seq-mean-token-mean", "seq-sum-token-mean", "token-mean"] = "seq-mean-token-mean",
) -> Method:
    """eps_low, eps_high: bounds on |ratio - 1| times the new probability; limit: c, largest ratio; history: whether scores are also
    compared with earlier visits of the prompt; averaging: of the loss over rows and tokens, the paper's is "seq-sum-token-mean"."""
    return base.replace(
        advantage=SmoothStandardized() if history else GroupStandardized(eps=0.0),
        objective=DynamicClip(eps_low, eps_high, limit),
        averaging=averaging,
    )


claim = (
    Claim(
        name="accuracy",
        arena="arithmetic",
        against="grpo",
        direction="no worse",
        margin=0.03,
        settings={"epochs": 4, "minibatches": 1, "lr_warmup": 0.0, "weight_decay": 0.0},
        against_settings={"beta": 0.0, "epochs": 4},
        note="Four passes a batch on both sides. The arena visits a prompt about once, so this tests the bounds, not the history.",
    ),
    Claim(
        name="clipping",
        arena="arithmetic",
        against="grpo",
        metric="mean:clip_fraction",
        direction="lower",
        settings={"epochs": 4, "minibatches": 1, "lr_warmup": 0.0, "weight_decay": 0.0},
        against_settings={"beta": 0.0, "epochs": 4},
        note="The authors report a share of clipped tokens that is an order of magnitude lower.",
    ),
)
