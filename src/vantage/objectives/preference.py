"""Losses over pairs of rows that answer one prompt.

The rows of a pair share `group`; the first of them, in the batch's order, is the chosen one. A batch that mixes sources says
in `source` which rows are stored pairs (`STORED`); the others have loss 0. The loss of a pair is placed on both of its rows, so
that its mean over rows is its mean over pairs, and any division that keeps groups whole adds up to it.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from vantage.core import above, at_least, below, component
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import STORED, Trajectories
from vantage.functions.rows import preferred, rounding_of, row_logp


def pair_rows(batch: Trajectories) -> tuple[Tensor, Tensor]:
    """Return the rows [M] of the first and of the second answer of each stored pair.

    Raises:
        UserError: some group of stored rows is not made of pairs.
    """
    rows = torch.arange(len(batch), device=batch.device)
    if "source" in batch:
        rows = rows[batch.source == STORED]
    group = batch.group[rows]
    order = torch.argsort(group, stable=True)
    if len(rows) % 2 or not torch.equal(group[order[::2]], group[order[1::2]]):
        raise UserError(
            "a loss over pairs needs groups of two rows: one plan gives them all (StoredPairs, or Groups of size 2)"
        )
    first, second = rows[order].view(-1, 2).unbind(1)
    return first, second


def on_both(loss: Tensor, first: Tensor, second: Tensor, rows: int) -> Tensor:
    """Place a loss per pair [M] on both of its rows: [N], 0 elsewhere."""
    placed = loss.new_zeros(rows)
    return placed.index_copy(0, torch.cat([first, second]), torch.cat([loss, loss]))


@component
class PairLogistic:
    """-log sigmoid of the margin between chosen and rejected answer, by their implicit rewards. Gradient through `logp`.

        u = beta * (a(chosen) - a(rejected)) - gamma
        loss = -(1 - smoothing) log sigmoid(u) - smoothing log sigmoid(-u),   or with `hinge`   max(0, 1 - u)

    a is the row's log-ratio to the reference (DPO, arXiv 2305.18290, eq. 7), or with `average` its mean log-probability a
    decision without any reference (SimPO, arXiv 2405.14734, eq. 6).

    Recorded as `pairs/accuracy` is the share of pairs with a margin above 0; a tie within rounding, as at the reference itself,
    counts one half (in TRL a tie counts 0, and rounding decides).

    Attributes:
        beta: scale of the implicit reward, above 0.
        gamma: target margin, at least 0.
        average: mean log-probability instead of the log-ratio.
        smoothing: probability that a label is wrong, 0 to below 0.5.
        hinge: the hinge instead of the logistic loss.
    """

    beta: Annotated[float, above(0)] = 0.1
    gamma: Annotated[float, at_least(0)] = 0.0
    average: bool = False
    smoothing: Annotated[float, at_least(0), below(0.5)] = 0.0
    hinge: bool = False
    wants = frozenset({"logp"})
    unit = "group"

    @property
    def columns(self) -> frozenset[str]:
        """Names the reference's log-probability, where a reference is used."""
        return frozenset() if self.average else frozenset({"logp_ref"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss [N]."""
        first, second = pair_rows(batch)
        implicit = row_logp(evaluation.logp, batch.mask, self.average)
        if not self.average:
            implicit = implicit - row_logp(batch.logp_ref, batch.mask)
        margin = self.beta * (implicit[first] - implicit[second])
        u = margin - self.gamma
        if self.hinge:
            loss = torch.relu(1 - u)
        else:
            loss = -(1 - self.smoothing) * F.logsigmoid(u)
            if self.smoothing:
                loss = loss - self.smoothing * F.logsigmoid(-u)
        count = len(first)
        if count:
            with torch.no_grad():
                rounding = rounding_of(evaluation.logp, batch.mask, self.average)
                if not self.average:
                    rounding = rounding + rounding_of(batch.logp_ref, batch.mask)
                right = preferred(margin, self.beta * (rounding[first] + rounding[second]))
                context.record("pairs/accuracy", right.mean(), count)
                context.record("pairs/margin", margin.mean(), count)
                context.record("pairs/chosen", self.beta * implicit[first].mean(), count)
                context.record("pairs/rejected", self.beta * implicit[second].mean(), count)
        return on_both(loss, first, second, len(batch))


@component
class ChosenLikelihood:
    """coefficient (at least 0) * mean of -logp over all decisions of the chosen rows, a scalar over the whole minibatch."""

    coefficient: Annotated[float, at_least(0)]
    wants = frozenset({"logp"})
    unit = "batch"
    label = "sft"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term."""
        chosen, _ = pair_rows(batch)
        mask = batch.mask[chosen]
        total = torch.where(mask, evaluation.logp[chosen], 0.0).sum()
        return -self.coefficient * total / mask.sum().clamp(min=1)
