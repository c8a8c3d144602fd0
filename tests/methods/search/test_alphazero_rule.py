"""AlphaZero's rule: PUCT by its numbers, and visit counts as the policy."""

from __future__ import annotations

import math

import pytest
import torch

from tests.reference import Case, cases
from vantage.fields.search.rules import PUCT, Visits
from vantage.fields.search.tree import Node
from vantage.methods import registry
from vantage.methods.search.alphazero_rule import alphazero_rule


def node(prior: list[float], visits: list[float], q: list[float]) -> Node:
    held = [torch.tensor([row], dtype=torch.float64) for row in (prior, visits, q)]
    return Node(held[0], held[1], held[2], held[0] > 0)


def test_the_prior_counts_for_less_the_more_an_action_was_taken() -> None:
    # N = 9, c = 1, no growth: 0.2 + 0.6 * 3 / 9 = 0.4, 0.3 + 0.3 * 3 / 2 = 0.75, 0.1 * 3 / 1 = 0.3
    rule = PUCT(1.0, None)
    assert rule(node([0.6, 0.3, 0.1], [8.0, 1.0, 0.0], [0.2, 0.3, 0.0]))[0].tolist() == [0.0, 1.0, 0.0]
    # With q of the first raised by 0.36 it wins, by 0.34 it does not.
    assert rule(node([0.6, 0.3, 0.1], [8.0, 1.0, 0.0], [0.56, 0.3, 0.0]))[0].tolist() == [1.0, 0.0, 0.0]
    assert rule(node([0.6, 0.3, 0.1], [8.0, 1.0, 0.0], [0.54, 0.3, 0.0]))[0].tolist() == [0.0, 1.0, 0.0]


def test_without_a_visit_the_prior_decides() -> None:
    assert PUCT()(node([0.2, 0.5, 0.3], [0.0] * 3, [0.0] * 3))[0].tolist() == [0.0, 1.0, 0.0]


def test_the_constant_grows_with_the_visits() -> None:
    c = 1.25 + math.log((1000 + 19652 + 1) / 19652)
    grown = node([0.5, 0.5], [500.0, 500.0], [0.5, 0.5 + 0.01])
    assert c == pytest.approx(1.299681, abs=1e-6)
    assert PUCT()(grown)[0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("temperature", "policy"), [(1.0, [0.2, 0.8]), (0.5, [1 / 17, 16 / 17]), (2.0, [1 / 3, 2 / 3]), (0.0, [0.0, 1.0])]
)
def test_visits_to_the_power_of_the_inverse_temperature(temperature: float, policy: list[float]) -> None:
    found = Visits(temperature)(node([0.5, 0.5], [2.0, 8.0], [0.0, 0.0]))
    assert found[0].tolist() == pytest.approx(policy)


class Walk:
    """A game without end for one player: from state s action a leads to (A s + a + 1) mod n."""

    sign, length = 1, 10**6

    def __init__(self, states: int, actions: int) -> None:
        self.states, self.actions = states, actions

    def legal(self, state: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(state), self.actions, dtype=torch.bool)

    def step(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return (self.actions * state + action + 1) % self.states

    def over(self, state: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(state), dtype=torch.bool)

    def outcome(self, state: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.zeros(len(state), dtype=torch.float64)


@cases("alphazero-rule")
def test_whole_searches_are_mctxs(case: Case) -> None:
    prior, value = case.tensor("logits").softmax(-1), case.tensor("values")
    given = {key: value for key, value in case.settings.items() if key != "simulations"}
    made = registry.page("alphazero-rule").make({"scale": "node", "count_own": True, **given})
    found = made(
        Walk(*prior.shape),
        torch.tensor(case.inputs["roots"]),
        lambda state, generator: (prior[state], value[state]),
        case.settings["simulations"],
        torch.Generator().manual_seed(0),
    )
    case.check("visits", found.node.visits)
    case.check("policy", found.target)
    case.check("value", found.value)


def test_settings_reach_the_parts() -> None:
    assert alphazero_rule(c=2.0).tree == PUCT(2.0)
    assert alphazero_rule().target == Visits(1.0)
    warm = registry.page("alphazero-rule").make({"temperature": 0.5})
    assert warm.act == warm.target == Visits(0.5)
    assert warm.final == Visits(0.0)
