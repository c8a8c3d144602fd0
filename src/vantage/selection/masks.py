"""Monte Carlo samples of a bound on the likelihood, as rows of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories, declare
from vantage.policies.masked_diffusion import KINDS, draw_masks
from vantage.rollouts.plans import at_least

declare("masked_weight", "[N, T]", "weight of a masked position, 0 where it is not", "MonteCarloMasks")


@dataclass(frozen=True)
class MonteCarloMasks:
    """Every row becomes `samples` rows side by side, each with a set of masked positions of its own.

    Fills `masked_weight` [N * samples, T] and `answer` [N * samples], the number of the row that it came from. A loss that is a sum
    over samples is then a loss per row, and micro-batches bound its memory whatever the number of samples.

    Attributes:
        samples: n, at least 1.
        kind: "fixed" or "bernoulli"; see `draw_masks`.
        old: fill `logp_old` with what the policy gives now for the same sets. It is needed where the policy moves before the
            batch is used up; otherwise it equals `logp`. None asks the method's update whether it takes several steps on it.
    """

    samples: int = 16
    kind: str = "fixed"
    old: bool | None = False

    def __post_init__(self) -> None:
        at_least("MonteCarloMasks.samples", self.samples, 1)
        if self.kind not in KINDS:
            raise UserError(f"MonteCarloMasks.kind={self.kind!r} is not known: {' or '.join(map(repr, KINDS))}")

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
    """Return whether the method's update moves the policy more than once on a batch, as it is set now."""
    update = context.method.update
    return bool(getattr(update, "minibatches", 1) > 1 or context.now(getattr(update, "epochs", 1)) > 1)
