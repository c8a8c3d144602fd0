"""Dr. GRPO: equality with TRL, and an advantage that is not divided by the group's deviation."""

from __future__ import annotations

import pytest
import torch

import vantage
from tests.harness import random_batch
from tests.methods.family import check_against_trl, check_groups, credited, worked_case

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_equal_trl(seed: int) -> None:
    check_against_trl(vantage.method("dr-grpo", max_length=9), "dr_grpo", seed, low=0.2, high=0.2, max_length=9)


def test_advantages_are_centred_alone() -> None:
    assert worked_case(vantage.method("dr-grpo")) == pytest.approx([0.75, -0.25, -0.25, -0.25])
    check_groups(vantage.method("dr-grpo"))


def test_advantages_scale_with_the_scores() -> None:
    batch = random_batch(8, 4, size=4)
    once, thrice = (credited(vantage.method("dr-grpo"), batch.replace(score=k * batch.score)).advantage for k in (1, 3))
    torch.testing.assert_close(thrice, 3 * once)
