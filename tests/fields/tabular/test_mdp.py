from __future__ import annotations

import itertools

import pytest
import torch

from vantage.core.errors import UserError
from vantage.fields.tabular.mdp import MDP, backup, greedy, occupancy, optimal_value, uniform, value
from vantage.fields.tabular.problems import growing_phases, layered, random_mdp, riverswim, stopping


def some(seed: int = 0) -> MDP:
    return random_mdp(3, 2, 2, generator=torch.Generator().manual_seed(seed))


def random_policy(mdp: MDP, *batch: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, *mdp.shape, generator=generator, dtype=torch.float64).softmax(-1)


def paths(mdp: MDP, policy: torch.Tensor) -> list[tuple[float, list[int], list[int], float]]:
    """Every path of an MDP: probability, states, actions, return."""
    steps, states, actions = mdp.shape
    found = []
    for visited in itertools.product(range(states), repeat=steps):
        for taken in itertools.product(range(actions), repeat=steps):
            chance, earned = float(mdp.start[visited[0]]), 0.0
            for h in range(steps):
                chance *= float(policy[h, visited[h], taken[h]])
                earned += float(mdp.reward[h, visited[h], taken[h]])
                if h + 1 < steps:
                    chance *= float(mdp.transition[h, visited[h], taken[h], visited[h + 1]])
            found.append((chance, list(visited), list(taken), earned))
    return found


def test_value_and_occupancy_by_enumeration_of_all_paths() -> None:
    mdp = some()
    policy = random_policy(mdp)
    all_paths = paths(mdp, policy)
    assert sum(chance for chance, *_ in all_paths) == pytest.approx(1.0)
    assert float(value(mdp, policy)) == pytest.approx(sum(chance * earned for chance, _, _, earned in all_paths))
    law = torch.zeros(3, 2, dtype=torch.float64)
    for chance, visited, _, _ in all_paths:
        for h, s in enumerate(visited):
            law[h, s] += chance
    torch.testing.assert_close(occupancy(mdp.transition, mdp.start, policy), law)


def test_optimal_value_by_enumeration_of_all_deterministic_policies() -> None:
    mdp = some(3)
    choices = torch.tensor(list(itertools.product(range(2), repeat=6))).view(-1, 3, 2)
    every = torch.nn.functional.one_hot(choices, 2).double()
    assert float(optimal_value(mdp)) == pytest.approx(float(value(mdp, every).max()))
    assert float(value(mdp, greedy(backup(mdp.transition, mdp.reward)[0]))) == pytest.approx(float(optimal_value(mdp)))


def test_batches_broadcast_and_the_value_is_that_of_the_occupancy() -> None:
    mdp = some()
    policy = random_policy(mdp, 4, 5)
    assert value(mdp, policy).shape == (4, 5)
    taken = occupancy(mdp.transition, mdp.start, policy).unsqueeze(-1) * policy
    torch.testing.assert_close(value(mdp, policy), (taken * mdp.reward).sum((-3, -2, -1)))
    torch.testing.assert_close(value(mdp, policy)[2, 3], value(mdp, policy[2, 3]))
    both = MDP(
        torch.stack([mdp.transition, some(5).transition]),
        torch.stack([mdp.reward, some(5).reward]),
        mdp.start.expand(2, -1),
    )
    torch.testing.assert_close(optimal_value(both)[1], optimal_value(some(5)))


def test_growth_counts_later_payoffs_more() -> None:
    # A deterministic chain with payoff b: b * sum_{j < n} (1 + 1/H)^j at n steps from the end, below (e - 1) H b.
    steps, payoff = 5, 0.7
    chain = torch.ones(steps, 1, 2, 1, dtype=torch.float64)
    policy = torch.full((steps, 1, 2), 0.5, dtype=torch.float64)
    q, _ = backup(chain, torch.full((steps, 1, 1), payoff, dtype=torch.float64), policy, 1 + 1 / steps)
    expected = [payoff * sum((1 + 1 / steps) ** j for j in range(n)) for n in range(steps, 0, -1)]
    torch.testing.assert_close(q[:, 0, 0], torch.tensor(expected, dtype=torch.float64))
    assert expected[0] <= 1.71829 * steps * payoff


def test_problems_are_what_they_say() -> None:
    layers = layered(4, 3, 2, gap=0.2)
    q, _ = backup(layers.transition, layers.reward)
    torch.testing.assert_close(q.amax(-1) - q.amin(-1), torch.full((4, 3), 0.2, dtype=torch.float64))
    river = riverswim(20, 6)
    best, _ = backup(river.transition, river.reward)
    assert (best[0].argmax(-1) == 1).all()
    assert best[19, 0].argmax() == 0
    # Wait for a high offer as long as what waiting brings is above the offer.
    stop = stopping(4, low=0.4, rare=0.5)
    q, v = backup(stop.transition, stop.reward)
    assert float(v[3, 0]) == pytest.approx(0.4)
    assert float(q[2, 0, 1]) == pytest.approx(0.7)
    assert float(q[2, 0, 0]) == pytest.approx(0.3)
    assert float(q[2, 1, 0]) == pytest.approx(0.75)
    assert (v[:, 2] == 0).all()


def test_phases_grow() -> None:
    order = growing_phases(40, 2.0)
    # 1, 2, 4, 8, 16, .. rounds in turn
    assert order.tolist() == [0] + [1] * 2 + [0] * 4 + [1] * 8 + [0] * 16 + [1] * 9


def test_bad_mdps_are_refused() -> None:
    mdp = some()
    with pytest.raises(UserError, match="must end in"):
        MDP(mdp.transition[:2], mdp.reward, mdp.start)
    with pytest.raises(UserError, match="start must be probabilities"):
        MDP(mdp.transition, mdp.reward, mdp.start * 2)
    with pytest.raises(UserError, match="growth"):
        growing_phases(3, 1.0)
    with pytest.raises(UserError, match="level"):
        layered(gap=0.3, level=0.95)
    with pytest.raises(UserError, match="at least 3"):
        riverswim(3, 2)
    torch.testing.assert_close(uniform(mdp).sum(-1), torch.ones(3, 2, dtype=torch.float64))
