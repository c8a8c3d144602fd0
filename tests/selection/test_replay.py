"""Batches of earlier steps beside the present one, as they were."""

from __future__ import annotations

import torch

from tests.harness import context
from vantage.core import Trajectories
from vantage.selection.replay import RecentBatches


def batch_of(number: int, rows: int = 2, steps: int = 3) -> Trajectories:
    mask = torch.ones(rows, steps, dtype=torch.bool)
    advantage = torch.full((rows, steps), float(number))
    return Trajectories({"mask": mask, "advantage": advantage, "group": torch.arange(rows)})


def test_the_latest_batches_come_newest_first_with_their_own_advantages() -> None:
    select, where = RecentBatches(3), context()
    seen = [select(batch_of(number), where).advantage[:, 0].tolist() for number in range(5)]
    assert seen == [[0, 0], [1, 1, 0, 0], [2, 2, 1, 1, 0, 0], [3, 3, 2, 2, 1, 1], [4, 4, 3, 3, 2, 2]]
    assert where.metrics.collect()["replay/batches"] == (1 + 2 + 3 + 3 + 3) / 5


def test_groups_of_different_steps_stay_apart_and_shorter_batches_are_padded() -> None:
    select, where = RecentBatches(2), context()
    select(batch_of(0), where)
    found = select(batch_of(1, rows=3, steps=2), where)
    assert found.group.tolist() == [0, 1, 2, 3, 4]
    assert found.mask.sum(-1).tolist() == [2, 2, 2, 3, 3]


def test_one_batch_keeps_nothing() -> None:
    select, where = RecentBatches(1), context()
    for number in range(3):
        assert select(batch_of(number), where).advantage.unique().tolist() == [number]
    assert select.state_dict() == {"kept": []}


def test_a_restored_one_goes_on() -> None:
    one, other, where = RecentBatches(3), RecentBatches(3), context()
    for number in range(4):
        one(batch_of(number), where)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other(batch_of(4), where).advantage, one(batch_of(4), where).advantage)
