"""Mixing of named rewards into one score per row and a reward per decision.

Missing is not zero. A verifier that gives no score for a row (None) leaves NaN in its named reward, and then:

- a missing named reward is left out of the row's sum; the others count;
- a row without any reward has the score NaN and the reward 0, and is excluded from the update: the training loop empties its
  mask, so that its advantage is 0 and no term of the loss includes it;
- it is left out of statistics of its group or batch (mean, standard deviation, median, quantiles), of records of its prompt and
  of logged means.

Scores 1, 0, none, 1 in a group have the advantages 1/3, -2/3, 0, 1/3 of the group's mean 2/3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch

from vantage.core import at_least, component
from vantage.core.context import Context
from vantage.core.errors import UserError, nearest
from vantage.core.trajectories import Trajectories, own
from vantage.functions.rows import at_last


@dataclass(frozen=True)
class Total:
    """Weighted sum of the named rewards as `score` [N], and as `reward` [N, T] at the policy's last decision. No gradient.

    A reward that is missing for a row (NaN) is left out of its sum; the score of a row without any is NaN. Where rewards came
    with the decisions, they are unchanged, and the score is their sum over the row.

    Attributes:
        weights: weight of each named reward; 1 where none is given. One of weight 0 is recorded and has no further effect.
    """

    weights: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill `score` and `reward`."""
        if "rewards" not in batch:
            return batch.replace(score=torch.where(batch.mask, batch.reward, 0.0).sum(-1))
        named = dict(batch.rewards.items())
        for name in self.weights:
            if name not in named:
                raise UserError(
                    f"Total.weights names {name!r}, which no verifier gives{nearest(name, named)} (given: {', '.join(named)})"
                )
        score = torch.zeros(len(batch), device=batch.device)
        weights = {name: self.weights.get(name, 1.0) for name in named}
        counted = [(named[name].float(), weight) for name, weight in weights.items() if weight]
        for value, weight in counted:
            score = score + torch.nan_to_num(value, nan=0.0) * weight
        if counted:
            score = score.masked_fill(torch.stack([torch.isnan(value) for value, _ in counted]).all(0), torch.nan)
        for name, value in named.items():
            context.record(f"reward/{name}", torch.nanmean(value.float()))
        if named:
            context.record("score", torch.nanmean(score))
        return batch.replace(score=score, reward=at_last(score, own(batch)))


@dataclass(frozen=True)
class Signed:
    """Map of scores from [0, 1] to [-1, 1], 2 * score - 1, so that a wrong answer has a negative score. No gradient.

    Scores standardised in the group are unchanged; relative to a penalty, scores have twice the weight.

    Raises:
        UserError: a score is not between 0 and 1.
    """

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Change `score` and `reward`."""
        outside = batch.score[(batch.score < 0) | (batch.score > 1)]
        if len(outside):
            raise UserError(
                f"Signed: the score {float(outside[0]):g} is not between 0 and 1; leave scores as they are (signed=false)"
            )
        change = batch.score - 1
        return batch.replace(score=batch.score + change, reward=batch.reward + at_last(change, own(batch)))


@component
class Overlong:
    """Soft penalty on rows near the length limit, added to the score (DAPO, arXiv 2503.14476, eq. 13). No gradient.

    Length and limit count the policy's own decisions.

        0 while length <= limit - buffer;  ((limit - buffer) - length) / buffer up to the limit;  -1 beyond it

    Attributes:
        buffer: decisions before the limit over which the penalty increases; 0 disables it.
        limit: the limit in decisions; 0 takes the engine's.
        scale: factor on the penalty.
    """

    buffer: Annotated[int, at_least(0)] = 16
    limit: Annotated[int, at_least(0)] = 0
    scale: float = 1.0

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Lower `score` and `reward`."""
        if not self.buffer:
            return batch
        start = (self.limit or longest(batch, context)) - self.buffer
        penalty = ((start - own(batch).sum(-1)).float() / self.buffer).clamp(-1.0, 0.0) * self.scale
        context.record("reward/overlong", penalty.mean())
        return batch.replace(score=batch.score + penalty, reward=batch.reward + at_last(penalty, own(batch)))


def longest(batch: Trajectories, context: Context) -> int:
    """Return the engine's largest number of decisions of a row, or the batch's number of steps where the engine has none."""
    return row_limit(context.engine) or batch.steps


def row_limit(engine: Any) -> int:
    """Return the engine's largest number of the policy's decisions in a row; 0 where it has none."""
    return int(getattr(engine, "max_decisions", getattr(engine, "max_length", 0)))


@component
class DivergencePenalty:
    """Reward of each decision less `coefficient` times its log-ratio to the reference: the k1 estimate of the KL. No gradient.

    reward_t <- reward_t - coefficient * (logp_old_t - logp_ref_t)
    """

    coefficient: float = 0.05
    columns = frozenset({"logp_ref"})

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Lower `reward`, and `score` by the row's sum."""
        if self.coefficient == 0:
            return batch
        divergence = torch.where(batch.mask, batch.logp_old - batch.logp_ref, 0.0)
        context.record("kl/reference", divergence.sum() / batch.mask.sum().clamp(min=1))
        penalty = -self.coefficient * divergence
        return batch.replace(reward=batch.reward + penalty, score=batch.score + penalty.sum(-1))
