from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vantage.core import Trajectories, UserError
from vantage.rollouts.segments import StepsByToken, first_places


def rows(*actions: list[int]) -> Trajectories:
    longest = max(map(len, actions))
    return Trajectories(
        {
            "action": torch.tensor([[*row, *[9] * (longest - len(row))] for row in actions]),
            "mask": torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in actions]),
            "length": torch.tensor([len(row) for row in actions]),
            "terminated": torch.zeros(len(actions), longest, dtype=torch.bool),
        }
    )


NOWHERE: Any = SimpleNamespace(policy=SimpleNamespace())


def test_a_step_ends_with_its_token_and_a_run_ends_one() -> None:
    batch = rows([1, 2, 9, 3, 9, 9, 4], [5, 9], [9, 1], [3])
    segment = StepsByToken(ids=(9,))(batch, NOWHERE)
    assert segment[0].tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert segment[1, :2].tolist() == [0, 0]
    assert segment[2, :2].tolist() == [0, 1]
    start, count = first_places(segment, batch.length)
    assert count.tolist() == [3, 1, 2, 1]
    assert start.tolist() == [[0, 3, 6], [0, 7, 7], [0, 1, 7], [0, 7, 7]]


def test_the_end_token_belongs_to_the_last_step() -> None:
    batch = rows([1, 9, 2, 9, 5], [1, 9, 2, 9, 5], [1, 9, 5])
    over = torch.zeros(3, 5, dtype=torch.bool)
    over[0, 4] = over[2, 2] = True  # the second was cut: its last token begins a step
    segment = StepsByToken(ids=(9,))(batch.replace(terminated=over), NOWHERE)
    assert segment[0].tolist() == [0, 0, 1, 1, 1]
    assert segment[1].tolist() == [0, 0, 1, 1, 2]
    assert segment[2, :3].tolist() == [0, 0, 0]


def test_ends_are_found_by_their_text() -> None:
    class Tokenizer:
        texts = ("a", "\n", "b\nc", " ")

        def __len__(self) -> int:
            return 4

        def batch_decode(self, rows: list[list[int]]) -> list[str]:
            return [self.texts[row[0]] for row in rows]

    where: Any = SimpleNamespace(policy=SimpleNamespace(tokenizer=Tokenizer()))
    found = StepsByToken("\n")(rows([0, 1, 0, 2, 3, 0]), where)
    assert found.tolist() == [[0, 0, 1, 1, 2, 2]]
    with pytest.raises(UserError, match=r"has no tokenizer; give `ids`"):
        StepsByToken("\n")(rows([0, 1]), NOWHERE)


def test_without_a_text_each_token_is_a_step() -> None:
    batch = rows([1, 2, 9], [4])
    segment = StepsByToken("")(batch, NOWHERE)
    start, count = first_places(segment, batch.length)
    assert count.tolist() == [3, 1]
    assert start.tolist() == [[0, 1, 2], [0, 3, 3]]


def test_an_empty_row_has_no_step() -> None:
    batch = rows([1, 9, 2], []).replace(length=torch.tensor([3, 0]))
    start, count = first_places(StepsByToken(ids=(9,))(batch, NOWHERE), batch.length)
    assert count.tolist() == [2, 0]
    assert start.tolist() == [[0, 2], [3, 3]]
