"""Policy losses of a likelihood that is only estimated, by Monte Carlo samples of a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from vantage.core import above, component
from vantage.core.context import Context
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.ratios import bounded


def sample_difference(evaluation: Evaluation, batch: Trajectories) -> Tensor:
    """Return d_j = e_j - sg[e_j of the old policy] of each row [N], a sample of the bound on its answer's log-likelihood.

    Where the batch holds no `logp_old` the old policy is the present one, and d is 0 with the gradient of e.
    """
    old = batch.get("logp_old")
    old = evaluation.logp.detach() if old is None else old
    return torch.where(batch.mask, evaluation.logp - old, 0.0).sum(-1)


def row_advantage(batch: Trajectories) -> Tensor:
    """Return the advantage of each row [N], the mean over its decisions."""
    return torch.where(batch.mask, batch.advantage, 0.0).sum(-1) / batch.mask.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class JointBound:
    """-A exp(mean over an answer's samples of d_j), a loss per answer [M]: the ELBO inside the ratio.

    The samples of an answer (column `answer`) are differentiated together, so that memory grows with their number.
    """

    wants = frozenset({"logp"})
    unit = "group"
    key = "answer"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per answer."""
        difference = sample_difference(evaluation, batch)
        index = torch.unique(batch["answer"], return_inverse=True)[1]
        zeros = difference.new_zeros(int(index.max()) + 1)
        sizes = zeros.index_add(0, index, torch.ones_like(difference))
        mean = bounded(zeros.index_add(0, index, difference) / sizes)
        credit = zeros.index_add(0, index, row_advantage(batch).to(zeros.dtype)) / sizes
        context.record("ratio/answer", mean.detach().exp().mean(), len(mean))
        return -credit * mean.exp()


@component
class LinearBound:
    """A lower bound of `JointBound`'s objective that is a sum over samples, a loss per row [N] (BGPO, arXiv 2510.11683).

        A >= 0:  A (1 + d_j)        A < 0:  A exp(d_j)

    At the old policy value and gradient are those of the joint one.

    Attributes:
        by_length: d_j / T in place of d_j.
        limit: d_j is cut to [-limit, limit]; None leaves it.
    """

    by_length: bool = False
    limit: Annotated[float, above(0)] | None = None
    wants = frozenset({"logp"})
    unit = "row"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per sample."""
        difference = sample_difference(evaluation, batch)
        if self.by_length:
            difference = difference / batch.steps
        if self.limit is not None:
            difference = difference.clamp(-self.limit, self.limit)
        context.record_mean("bound/difference", difference.unsqueeze(-1), batch.mask[:, :1])
        credit = row_advantage(batch)
        return -credit * torch.where(credit >= 0, 1 + difference, bounded(difference).exp())
