"""UCT: the rule of a node by its numbers, and the best arm found where the tree is one bandit."""

from __future__ import annotations

import math

import pytest
import torch

from tests.reference import Case, cases
from vantage.fields.search.rules import UCB1
from vantage.fields.search.tree import Node
from vantage.methods import registry
from vantage.methods.search.uct import uct

ALL = torch.ones(1, 3, dtype=torch.bool)
TWO = torch.tensor([[True, True, False]])


def node(visits: list[float], q: list[float], legal: torch.Tensor = ALL) -> Node:
    prior = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    return Node(prior, torch.tensor([visits], dtype=torch.float64), torch.tensor([q], dtype=torch.float64), legal)


def test_the_upper_bound_decides() -> None:
    # N = 16, c = 1: 0.5 + sqrt(2 log 16 / 10) = 1.245, 0.4 + sqrt(2 log 16 / 5) = 1.453, 0.9 + sqrt(2 log 16) = 3.255
    where = node([10.0, 5.0, 1.0], [0.5, 0.4, 0.9])
    bounds = [q + math.sqrt(2 * math.log(16) / n) for q, n in ((0.5, 10), (0.4, 5), (0.9, 1))]
    assert bounds == pytest.approx([1.2447, 1.4531, 3.2548], abs=1e-4)
    assert UCB1(1.0)(where)[0].tolist() == [0.0, 0.0, 1.0]
    assert UCB1(0.0)(node([10.0, 5.0, 1.0], [0.5, 0.4, 0.2]))[0].tolist() == [1.0, 0.0, 0.0]


def test_what_was_never_taken_comes_first_and_what_is_illegal_never() -> None:
    assert UCB1(1.0)(node([9.0, 0.0, 0.0], [1.0, 0.0, 0.0]))[0].tolist() == [0.0, 0.5, 0.5]
    legal = torch.tensor([[True, False, True]])
    assert UCB1(1.0)(node([9.0, 0.0, 0.0], [1.0, 0.0, 0.0], legal))[0].tolist() == [0.0, 0.0, 1.0]


@cases("uct")
def test_the_choice_is_openspiels(case: Case) -> None:
    visits = case.tensor("visits")
    q = (case.tensor("sums") / visits.clamp(min=1) + 1) / 2
    settings = {"c": case.settings["uct_c"] / math.sqrt(8), "count_own": case.settings["count_own"]}
    legal = torch.ones(1, len(q), dtype=torch.bool)
    case.check("best", registry.page("uct").make(settings).tree(Node(q[None], visits[None], q[None], legal))[0])


def test_defaults_are_the_papers() -> None:
    # The bonus is 2 C sqrt(log N / n) with C = 1 / sqrt(2): N = 9 and n = 4 against n = 5.
    bonus = [2 / math.sqrt(2) * math.sqrt(math.log(9) / n) for n in (4, 5)]
    gap = bonus[0] - bonus[1]
    assert uct().tree(node([4.0, 5.0, 0.0], [0.5, 0.5 + 0.99 * gap, 0.0], TWO))[0].tolist() == [1.0, 0.0, 0.0]
    assert uct().tree(node([4.0, 5.0, 0.0], [0.5, 0.5 + 1.01 * gap, 0.0], TWO))[0].tolist() == [0.0, 1.0, 0.0]
    assert uct().tree == UCB1() == UCB1(1.0)
    made = registry.page("uct").make({"c": 0.5})
    assert made.tree == UCB1(0.5)
    assert made.evaluate is not None  # a random game, no learned value
    # The most visited action is played; of equally visited ones the better.
    assert made.final(node([4.0, 7.0, 7.0], [0.9, 0.1, 0.2]))[0].tolist() == [0.0, 0.0, 1.0]
