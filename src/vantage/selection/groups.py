"""Selections by what rows and the members of groups scored."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vantage.core import component
from vantage.core.context import Context
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_index, group_moments


@dataclass(frozen=True)
class DropZero:
    """Drop rows whose advantage is 0 at every decision; a batch of such rows alone is left unchanged."""

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the batch without them."""
        keep = (batch.advantage != 0).any(-1)
        context.record("selection/kept", keep.float().mean())
        return batch.select(keep) if keep.any() else batch


@component
class DropGroups:
    """Drop groups without signal: those whose members all score the same, or all score at least `correct_at`.

    A batch in which no group would remain is left unchanged: its gradient is zero or small by itself, and a step without rows is
    an error elsewhere.

    Attributes:
        without_variance: drop groups in which all scores are equal.
        all_correct: drop groups in which all scores reach `correct_at`.
        correct_at: score of a correct answer.
    """

    without_variance: bool = False
    all_correct: bool = False
    correct_at: float = 1.0

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the batch without them."""
        keep = torch.ones(len(batch), dtype=torch.bool, device=batch.device)
        if self.without_variance:
            keep &= group_moments(batch.score, batch.group)[1] > 1e-6
        if self.all_correct:
            index, count = group_index(batch.group)
            failed = torch.zeros(count, device=batch.device).index_add_(
                0, index, (batch.score < self.correct_at).float()
            )
            keep &= failed[index] > 0
        context.record("selection/kept", keep.float().mean())
        return batch.select(keep) if keep.any() else batch
