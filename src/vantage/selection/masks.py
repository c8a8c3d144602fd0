"""Monte Carlo samples of a bound on the likelihood, as rows of the batch."""

from __future__ import annotations

from typing import Annotated

import torch

from vantage.annotations import at_least
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.trajectories import Trajectories, declare
from vantage.functions.masks import Kind, draw_masks

declare("masked_weight", "[N, T]", "weight of a masked position, 0 where it is not", "MonteCarloMasks")


@component
class MonteCarloMasks:
    """Every row becomes `samples` rows side by side, each with a set of masked positions of its own.

    Fills `masked_weight` [N * samples, T] and `answer` [N * samples], the number of the row that it came from. A loss that is a sum
    over samples is then a loss per row, and micro-batches bound its memory whatever the number of samples.

    Attributes:
        samples: n, at least 1.
        kind: "fixed" or "bernoulli"; see `draw_masks`.
        old: fill `logp_old` from the present policy for the same sets. It is needed where the policy changes before the
            batch is used up; otherwise it equals `logp`. None asks whether the method's update takes
            several steps on a batch.
    """

    samples: Annotated[int, at_least(1)] = 16
    kind: Kind = "fixed"
    old: bool | None = False

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the samples."""
        answer = torch.arange(len(batch), device=batch.device).repeat_interleave(self.samples)
        seed = int(torch.randint(2**62, (), generator=context.generator))
        generator = torch.Generator(batch.device).manual_seed(seed)
        weight = draw_masks(len(answer), batch.steps, self.kind, generator)
        found = batch.select(answer).replace(answer=answer, masked_weight=weight, logp_old=None)
        old = several_steps(context) if self.old is None else self.old
        return found.replace(logp_old=context.evaluate(found)) if old else found


def several_steps(context: Context) -> bool:
    """Return whether the method's update takes more than one optimiser step on a batch, with its present settings."""
    update = context.method.update
    return bool(getattr(update, "minibatches", 1) > 1 or context.now(getattr(update, "epochs", 1)) > 1)
