"""Rewards that are scaled by the number of tool calls. arXiv 2504.14870."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from vantage.annotations import above
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.trajectories import Trajectories, own
from vantage.core.walk import Component
from vantage.functions.rows import at_last, value_at_last


def economy(calls: Tensor, least: Tensor | None, c: float) -> Tensor:
    """Return the factor in [0, 1] of answers with m `calls`, shapes as `calls`; no gradient.

        n known:  sin(pi m / (m + n)), where n is 0 the other form        n unknown (`least` None):  cos(pi m / (2 m + c))

    Args:
        calls: m, at least 0.
        least: n, the smallest number of calls that the prompt needs.
        c: number of calls at which the second form is 1/2, above 0.
    """
    plain = torch.cos(math.pi * calls / (2 * calls + c))
    if least is None:
        return plain
    known = torch.sin(math.pi * calls / (calls + least).clamp(min=1))
    return torch.where(least == 0, plain, known)


@component
class CallEconomy:
    """Factor of `economy` on `score` and on the reward at the last decision; fills `calls` [N]. No gradient.

    A score below 0 is multiplied by `alpha` alone. The number of calls is that of the environment's answers.

    Attributes:
        alpha: scale of the reward, above 0.
        c: smoothing of the cosine, above 0.
        least: `(batch, calls [N], context) -> n [N]`, infinite where it is unknown; None where it always is.
    """

    alpha: Annotated[float, above(0)] = 1.0
    c: Annotated[float, above(0)] = 4.0
    least: Component | None = None
    needs = frozenset({"turns"})

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the batch with `score`, `reward` and `calls`."""
        calls = value_at_last(batch.turn, batch.length).float()
        # Where no answer was correct there is no smallest number of calls, and no score to multiply.
        least = None if self.least is None else self.least(batch, calls, context).nan_to_num(posinf=0.0)
        factor = torch.where(batch.score < 0, 1.0, economy(calls, least, self.c))
        score = self.alpha * factor * batch.score
        context.record("score/economical", score.mean())
        return batch.replace(score=score, reward=at_last(score, own(batch)), calls=calls)
