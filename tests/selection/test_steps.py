"""Decisions chosen by their place."""

from __future__ import annotations

import pytest
import torch

from tests.harness import context, random_batch
from vantage.core import UserError
from vantage.selection.steps import FirstSteps, NoisySteps, RandomSteps


@pytest.mark.parametrize(("share", "kept"), [(1.0, 10), (0.99, 9), (0.6, 6), (0.01, 1)])
def test_the_first_steps(share: float, kept: int) -> None:
    batch = random_batch(4, 10).replace(mask=torch.ones(4, 10, dtype=torch.bool))
    found = FirstSteps(share)(batch, context()).mask
    assert found.sum(1).tolist() == [kept] * 4
    assert bool(found[:, :kept].all())
    with pytest.raises(UserError, match="share=0"):
        FirstSteps(0.0)


@pytest.mark.parametrize(
    ("share", "last", "kept"), [(0.6, False, 14), (0.6, True, 15), (1.0, False, 24), (1.0, True, 25), (0.01, False, 1)]
)
def test_random_steps(share: float, last: bool, kept: int) -> None:
    batch = random_batch(2000, 25).replace(mask=torch.ones(2000, 25, dtype=torch.bool))
    part = RandomSteps(share, last)
    found = part(batch, context()).mask
    assert found.sum(1).tolist() == [kept] * 2000
    # Every step that may be drawn is, as often as the others, and rows draw their own.
    often = found.double().mean(0)
    drawn = 25 if last else 24
    assert often[:drawn].tolist() == pytest.approx([kept / drawn] * drawn, abs=0.05)
    assert bool((often[drawn:] == 0).all())
    assert len(torch.unique(found, dim=0)) > (1 if kept == drawn else 20) - 1
    assert torch.equal(part(batch, context()).mask, found)


def test_random_steps_are_of_those_that_are_there_and_one_step_is_kept() -> None:
    batch = random_batch(50, 9)
    found = RandomSteps(0.5)(batch, context()).mask
    assert bool((found <= batch.mask).all())
    single = random_batch(3, 1)
    assert torch.equal(RandomSteps(0.5)(single, context()).mask, single.mask)
    with pytest.raises(UserError, match=r"share=1\.5"):
        RandomSteps(1.5)


def test_steps_without_noise_are_masked() -> None:
    batch = random_batch(2, 3).replace(mask=torch.ones(2, 3, dtype=torch.bool))
    sigma = torch.tensor([[0.1, 0.0, 0.2]]).expand(2, -1)
    batch = batch.replace(observation={"sigma": sigma})
    assert NoisySteps()(batch, context()).mask.tolist() == [[True, False, True]] * 2
