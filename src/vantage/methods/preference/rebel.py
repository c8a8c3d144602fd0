"""REBEL: regresses the change of the log-ratio between two answers onto the difference of their rewards. (S010)

PPO's policy step needs a critic, clipping and many tricks; REBEL's is one least-squares problem. With two answers to each
prompt from the policy that starts the round, and their log-probabilities kept for all epochs:

    d    = (logp - logp_old)(y1) - (logp - logp_old)(y2)
    R(y) = score(y) - kl_coef * (logp_old - logp_ref)(y)
    loss = mean over pairs of ( d - eta * (R(y1) - R(y2)) )^2

Zero loss on all pairs is the mirror-descent step pi proportional to pi_old exp(eta R); where rewards are equal the loss
moves d towards 0. An answer that does not end scores `unfinished`, whatever its text. The text divides by eta instead, which
is this times 1 / eta^2. arXiv 2404.16767, equation 9; defaults are those of the authors' summarisation script (8 processes, so
that a pass over 512 pairs is one step), whose AdamW has the weight decay of torch's default, 0.01. That script looks for padding
behind the end token, so that an answer whose end token is the last that the limit allows counts as cut too: `strict=True`; it
trains LoRA of rank 1024. Its chat scripts: 32 pairs, 1e-7, temperature 0.5, scores over 1000 and -4 for a cut answer, the top
four layers, betas 0.9 and 0.95, decay 1e-6.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from vantage.annotations import above, at_least
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories, own
from vantage.functions.groups import group_sums
from vantage.functions.rows import row_logp
from vantage.functions.whitening import masked_moments
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.likelihood import NoCredit
from vantage.objectives.preference import on_both, pair_rows
from vantage.rewards.mixing import DivergencePenalty, Total, longest
from vantage.rollouts.plans import Groups, Shuffled
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam, Linear

PAPER = Paper(
    "REBEL: Reinforcement Learning via Regressing Relative Rewards",
    "Zhaolin Gao and Jonathan D. Chang and Wenhao Zhan and Owen Oertell and Gokul Swamy and Kianté Brantley and Thorsten"
    " Joachims and J. Andrew Bagnell and Jason D. Lee and Wen Sun",
    2024,
    arxiv="2404.16767",
)


@component
class Unfinished:
    """Rewards: a row that was cut (`truncated`) scores `score`, whatever its verifier returned.

    Attributes:
        score: of a cut row.
        strict: a row of the engine's largest length is cut, whatever its last decision is.
    """

    score: float = -1.0
    strict: bool = False

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Replace `score`."""
        cut = batch.truncated.any(-1)
        if self.strict:
            cut |= own(batch).sum(-1) >= longest(batch, context)
        return batch.replace(score=torch.where(cut, self.score, batch.score))


def both_scored(batch: Trajectories, context: Context) -> Trajectories:
    """Rewards: where one answer of a pair has no score (NaN), neither has."""
    lacks = group_sums(torch.isnan(batch.score).float(), batch.group)[0] > 0
    return batch.replace(score=batch.score.masked_fill(lacks, torch.nan))


@component
class Whiten:
    """Rewards: `score` over its standard deviation in the batch (population, eps 1e-8 in the variance).

    Attributes:
        shift_mean: whether the mean becomes 0 too; otherwise it is unchanged.
    """

    shift_mean: bool = False

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Replace `score`."""
        score = batch.score.unsqueeze(-1)
        scored = ~torch.isnan(score)
        centred, mean, variance = masked_moments(score, scored, ddof=0)
        white = centred * (variance + 1e-8).rsqrt() + (0.0 if self.shift_mean else mean)
        return batch.replace(score=torch.where(scored, white, torch.nan).squeeze(-1))


@component
class RelativeRewards:
    """The page's loss, per row [N]; gradient flows through `logp`. Rows of a pair share `group`.

    Attributes:
        eta: step size of the mirror descent, above 0.
    """

    eta: Annotated[float, above(0)] = 1.0
    wants = frozenset({"logp"})
    unit = "group"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss."""
        first, second = pair_rows(batch)
        moved = row_logp(evaluation.logp - batch.logp_old, batch.mask)
        d = moved[first] - moved[second]
        target = self.eta * (batch.score[first] - batch.score[second])
        context.record("pairs/log_ratio", d.abs().mean(), len(d))
        return on_both((d - target).square(), first, second, len(batch))


@method(id="S010", papers=PAPER, needs="episodes", source="ZhaolinGao/REBEL@4ad7c11 scripts/tldr/rebel.sh")
def rebel(
    prompts: int = 512,
    lr: float = 3e-6,
    eta: float = 1.0,
    kl_coef: Annotated[float, at_least(0)] = 0.05,
    epochs: int = 4,
    minibatches: int = 1,
    temperature: float = 0.7,
    weight_decay: float = 0.01,
    unfinished: float | None = -1.0,
    strict: bool = False,
    whiten: bool = False,
    max_grad_norm: float | None = None,
    micro_batch: int | None = None,
) -> Method:
    """prompts: pairs a round; lr: Adam's, falling linearly to 0; eta: step size of the mirror
    descent; kl_coef: weight of the divergence to the reference in the reward; epochs: passes over the pairs;
    minibatches: optimiser steps a pass; temperature: divides the logits; weight_decay: Adam's; unfinished: score of
    an answer that was cut, none leaves the verifier's; strict: an answer that ends with the
    last token that the limit allows counts as cut; whiten: scores over their standard deviation in the batch;
    max_grad_norm: largest norm of the gradient, none for no limit; micro_batch: rows whose graphs are held at once,
    none for all."""
    cut = () if unfinished is None else (Unfinished(unfinished, strict),)
    penalty = (DivergencePenalty(kl_coef),) if kl_coef else ()
    return Method(
        prompts=Shuffled(),
        rollout=Groups(prompts, 2, temperature),
        rewards=(Total(), *cut, *penalty, *((Whiten(),) if whiten else ()), both_scored),
        values=None,
        advantage=NoCredit(),
        objective=RelativeRewards(eta),
        update=GradientUpdate(
            optimizer=Adam(lr, eps=1e-5, weight_decay=weight_decay),
            schedule=Linear(),
            epochs=epochs,
            minibatches=minibatches,
            max_grad_norm=max_grad_norm,
            micro_batch=micro_batch,
        ),
    )


claim = Claim(
    arena="arithmetic",
    against="rloo",
    direction="no worse",
    margin=0.05,
    settings={"prompts": 128, "temperature": 1.0, "kl_coef": 0.0, "eta": 1.0, "epochs": 1, "unfinished": None},
    note="The authors: at least as good as PPO by a simpler step. Here beside leave-one-out policy gradient, also without a"
    " critic, at equal samples.",
)
