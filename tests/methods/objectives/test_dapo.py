"""DAPO: equality with TRL, and the four parts in which it differs from GRPO."""

from __future__ import annotations

import pytest

import vantage
from tests.methods.family import check_against_trl, check_groups
from vantage.methods.composition import differences

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_equal_trl(seed: int) -> None:
    check_against_trl(vantage.method("dapo"), "dapo", seed, low=0.2, high=0.28)


def test_it_is_grpo_with_four_parts_replaced() -> None:
    changed = differences(vantage.method("dapo", overlong_buffer=4), vantage.method("dapo").parent)
    assert set(changed) == {"rollout", "rewards", "objective", "averaging"}
    check_groups(vantage.method("dapo"))
