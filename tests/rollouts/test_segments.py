from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vantage.core import Trajectories, UserError
from vantage.rollouts.segments import Steps, first_places
from vantage.rollouts.sentences import sentence_starts


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


class Tokenizer:
    """Single tokens of a text; a token alone at the start loses its leading space, as in some tokenizers."""

    texts = ("a", "\n", "b.\nc", " d", "\n\n", "#", "</s>", "\n#### ")
    all_special_ids = (6,)

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return ["".join(self.texts[token] for token in row).removeprefix(" ") for row in rows]


NOWHERE: Any = SimpleNamespace(policy=SimpleNamespace())
TEXTS: Any = SimpleNamespace(policy=SimpleNamespace(tokenizer=Tokenizer()))


def test_a_token_begins_the_next_step() -> None:
    batch = rows([1, 2, 9, 3, 9, 9, 4], [5, 9], [9, 1], [3])
    segment = Steps(ids=(9,))(batch, NOWHERE)
    assert segment[0].tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert segment[1, :2].tolist() == [0, 1]
    assert segment[2, :2].tolist() == [0, 0]  # the row's first token begins its first step anyway
    start, count = first_places(segment, batch.length)
    assert count.tolist() == [4, 2, 1, 1]
    assert start.tolist() == [[0, 2, 4, 5], [0, 1, 7, 7], [0, 7, 7, 7], [0, 7, 7, 7]]


def test_the_end_token_belongs_to_the_last_step() -> None:
    batch = rows([1, 9, 2, 9, 9], [1, 9, 2, 9, 9], [1, 0, 6])
    over = torch.zeros(3, 5, dtype=torch.bool)
    over[0, 4] = over[2, 2] = True  # the second was cut: its last token begins a step
    segment = Steps(ids=(9,))(batch.replace(terminated=over), NOWHERE)
    assert segment[0].tolist() == [0, 1, 1, 2, 2]
    assert segment[1].tolist() == [0, 1, 1, 2, 3]
    assert Steps()(rows([0, 1, 6]).replace(terminated=over[2:, :3]), TEXTS).tolist() == [[0, 1, 1]]


def test_lines_begin_with_their_break() -> None:
    # A token with a break inside belongs to the step of its first character, and the next token begins the next step.
    assert Steps()(rows([0, 1, 0, 2, 3, 0]), TEXTS).tolist() == [[0, 1, 1, 1, 2, 2]]
    # Blank lines at the start join the first step, and those in the middle are steps; a token with two breaks is of the first.
    assert Steps()(rows([1, 0, 1, 1, 0], [4, 0, 4, 0, 3]), TEXTS).tolist() == [[0, 0, 1, 2, 2], [0, 0, 1, 2, 2]]
    # The answer joins the last line that is not blank.
    assert Steps()(rows([0, 1, 0, 1, 7, 0]), TEXTS).tolist() == [[0, 1, 1, 1, 1, 1]]
    assert Steps(answer="")(rows([0, 1, 0, 1, 7, 0]), TEXTS).tolist() == [[0, 1, 1, 2, 3, 3]]
    assert Steps(separator="#", answer="")(rows([0, 5, 3, 5]), TEXTS).tolist() == [[0, 1, 1, 2]]
    with pytest.raises(UserError, match=r"has no tokenizer; give `ids`"):
        Steps()(rows([0, 1]), NOWHERE)
    with pytest.raises(UserError, match=r"Steps\.separator=''"):
        Steps(separator="")


def test_sentences_of_a_solution() -> None:
    text = "There are 3 apples here. Mr. Smith and A. Jones have $x = 1. Y$ of them.\nYes.\nSo the answer is $7.$ It is odd."
    starts = sentence_starts(text)
    assert [text[one:other] for one, other in zip(starts, [*starts[1:], len(text)], strict=True)] == [
        "There are 3 apples here.",
        " Mr. Smith and A. Jones have $x = 1. Y$ of them.",
        "\nYes.\nSo the answer is $7.$ It is odd.",
    ]
    assert sentence_starts("") == [0]
    assert Steps("sentences")(rows([0, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 3]), TEXTS).tolist() == [[0] * 13]


def test_each_token_may_be_a_step() -> None:
    batch = rows([1, 2, 9], [4])
    segment = Steps("tokens")(batch, NOWHERE)
    start, count = first_places(segment, batch.length)
    assert count.tolist() == [3, 1]
    assert start.tolist() == [[0, 1, 2], [0, 3, 3]]


def test_an_empty_row_has_no_step() -> None:
    batch = rows([1, 9, 2], []).replace(length=torch.tensor([3, 0]))
    start, count = first_places(Steps(ids=(9,))(batch, NOWHERE), batch.length)
    assert count.tolist() == [2, 0]
    assert start.tolist() == [[0, 1], [3, 3]]
    assert first_places(Steps()(batch.replace(action=batch.action.clamp(max=1)), TEXTS), batch.length)[1].tolist() == [
        3,
        0,
    ]
