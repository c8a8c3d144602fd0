"""Decisions chosen by their place."""

from __future__ import annotations

import pytest
import torch

from tests.harness import context, random_batch
from vantage.core import UserError
from vantage.selection.groups import DropZero
from vantage.selection.steps import FirstSteps, NoisySteps


@pytest.mark.parametrize(("share", "kept"), [(1.0, 10), (0.99, 9), (0.6, 6), (0.01, 1)])
def test_the_first_steps(share: float, kept: int) -> None:
    batch = random_batch(4, 10).replace(mask=torch.ones(4, 10, dtype=torch.bool))
    found = FirstSteps(share)(batch, context()).mask
    assert found.sum(1).tolist() == [kept] * 4
    assert bool(found[:, :kept].all())
    with pytest.raises(UserError, match="share=0"):
        FirstSteps(0.0)


def test_steps_without_noise_are_masked() -> None:
    batch = random_batch(2, 3).replace(mask=torch.ones(2, 3, dtype=torch.bool))
    sigma = torch.tensor([[0.1, 0.0, 0.2]]).expand(2, -1)
    batch = batch.replace(observation={"sigma": sigma})
    assert NoisySteps()(batch, context()).mask.tolist() == [[True, False, True]] * 2


def test_rows_without_advantage_are_dropped_unless_all_are() -> None:
    batch = random_batch(3, 2).replace(advantage=torch.tensor([[0.0, 0.0], [0.0, -1.0], [2.0, 2.0]]))
    assert DropZero()(batch, context()).advantage.tolist() == [[0.0, -1.0], [2.0, 2.0]]
    nothing = batch.replace(advantage=torch.zeros(3, 2))
    assert DropZero()(nothing, context()) is nothing
