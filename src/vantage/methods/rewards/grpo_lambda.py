"""GRPO-lambda: GRPO with a length penalty only for the questions that the policy solves best. (S123)

A length penalty on every question makes accuracy collapse, because it also shortens the reasoning on unsolved questions.
GRPO-lambda ranks the groups of a batch by their share of right answers and penalises length in the top fraction alone;
the others keep the plain reward:

    rho_g = mean_i c_gi;   T = the floor(lambda B) groups of largest rho (at least 1 if lambda > 0), ties to the shorter
    r_gi = c_gi                                                       g not in T
    r_gi = c_gi (1 - alpha sigmoid((l_gi - mu_g) / s_g))              g in T

mu_g and s_g are mean and population std of the lengths of the group's right answers (s_g = 0: the sigmoid is 1/2). Then GRPO.
arXiv 2505.18086, read in overviews: lambda, alpha, the tie rule and the rounding are reconstructed. With `threshold` T is the
groups with rho >= threshold instead. A graded score keeps its scale: c is the score where it is at least `correct_at`.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from vantage.annotations import between
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories, own
from vantage.functions.groups import group_index, group_mean, group_moments
from vantage.functions.rows import at_last
from vantage.functions.whitening import standardize
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method

PAPER = Paper(
    "Stable Reinforcement Learning for Efficient Reasoning",
    "Muzhi Dai and Shixuan Liu and Qingyi Si",
    2025,
    arxiv="2505.18086",
)


@component
class BestSolvedShorter:
    """Lower `score` and `reward` of long right answers in the best-solved groups; no gradient.

    Attributes:
        share: lambda, the fraction of groups that are penalised, 0 to 1.
        alpha: largest share of a score that length can remove, 0 to 1.
        threshold: penalise the groups whose share of right answers reaches it, instead of the best fraction.
        correct_at: score of a right answer.
    """

    share: Annotated[float, between(0, 1)] = 0.2
    alpha: Annotated[float, between(0, 1)] = 0.2
    threshold: float | None = None
    correct_at: float = 1.0

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the batch with the lowered scores."""
        correct = batch.score >= self.correct_at
        rank_by = group_mean(correct.float().masked_fill(torch.isnan(batch.score), torch.nan), batch.group)
        penalised = self._best(rank_by, batch) if self.threshold is None else rank_by >= self.threshold
        length = own(batch).sum(-1).float()
        mean, std = group_moments(length.masked_fill(~correct, torch.nan), batch.group, ddof=0)
        z = standardize(length - mean, std)
        loss = torch.where(penalised & correct, self.alpha * torch.sigmoid(z), 0.0) * batch.score
        context.record("reward/penalised", (penalised & correct).float().mean())
        return batch.replace(score=batch.score - loss, reward=batch.reward - at_last(loss, own(batch)))

    def _best(self, solved: Tensor, batch: Trajectories) -> Tensor:
        """Return which rows [N] belong to the best-solved groups."""
        index, count = group_index(batch.group)
        kept = math.floor(self.share * count + 1e-9)
        if self.share > 0:
            kept = max(kept, 1)
        by_group = solved.new_zeros(count).scatter(0, index, solved)
        length = solved.new_zeros(count).scatter(0, index, group_mean(own(batch).sum(-1).float(), batch.group))
        # Sorted by the second key first: a stable sort by the first key keeps its order among equals.
        order = torch.argsort(length, stable=True)
        order = order[torch.argsort(-by_group[order], stable=True)]
        chosen = torch.zeros(count, dtype=torch.bool, device=batch.device)
        chosen[order[:kept]] = True
        return chosen[index]


@method(id="S123", papers=PAPER, base=grpo, source="none: overviews of the paper, whose code is not public")
def grpo_lambda(base: Method, share: float = 0.2, alpha: float = 0.2, threshold: float | None = None) -> Method:
    """share: lambda, fraction of the groups that are penalised; alpha: largest share of a score that length can
    remove; threshold: share of right answers from which a group is penalised, in place of the best fraction."""
    return base.replace(rewards=(*base.rewards, BestSolvedShorter(share, alpha, threshold)))


claim = Claim(
    arena="arithmetic",
    against="grpo",
    direction="no worse",
    margin=0.03,
    settings={"beta": 0.0},
    against_settings={"beta": 0.0},
    note="The claim is that accuracy does not fall under the length penalty; the arena's answers are too short to become shorter.",
)
