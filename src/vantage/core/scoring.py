"""Score rows by the run's method, for the training loop and for rollouts that need scores earlier."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch

from vantage.core import columns
from vantage.core.context import Context
from vantage.core.errors import TrainingError
from vantage.core.trajectories import Trajectories
from vantage.core.walk import declared, states, walk


def scored(batch: Trajectories, context: Context) -> Trajectories:
    """Return the batch as the method's rewards leave it, with `score` [N] and `reward` [N, T]; no gradient.

    The task verifies rows that hold no `rewards` yet, columns that the rewards declare are filled, and the rewards run in their
    order. A row without any reward has the score NaN and an empty mask: it does not enter the loss.

    With a context of `Context.under` (rows that are scored outside of the step, or before it) the memory of the rewards stays:
    a row that enters the loss updates it once, in the training loop.

    Raises:
        TrainingError: no row that should enter the loss has a reward.
    """
    rewards = context.method.rewards
    batch = context.verify(batch)
    with memory_kept(rewards) if context.aside else contextlib.nullcontext():
        for reward in rewards:
            batch = reward(columns.fill(batch, declared(reward, "columns"), context), context)
    if "rewards" not in batch or "score" not in batch:
        return batch
    missing = torch.isnan(batch.score)
    if bool(missing.any()):
        context.record("reward/missing", missing.float().mean())
        if bool(missing.all()) and not context.aside:
            raise TrainingError(
                f"step {context.step + 1}: none of the {len(batch)} rows has a reward; the verifiers gave None or NaN for all of"
                " them, so there is nothing to learn from"
            )
    return batch.replace(mask=batch.mask & ~missing.unsqueeze(-1))


@contextlib.contextmanager
def memory_kept(component: Any) -> Iterator[None]:
    """Restore the memory of a component and of all inside it when the block ends."""
    held = {place: copy.deepcopy(inner.state_dict()) for place, inner in states(walk(component)).items()}
    try:
        yield
    finally:
        for place, inner in states(walk(component)).items():
            inner.load_state_dict(held[place])
