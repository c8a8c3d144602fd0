"""Small MDPs with exact solutions, and sequences of adversarial rewards. All in float64, rewards in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.fields.tabular.mdp import MDP

DOUBLE = torch.float64


def random_mdp(horizon: int, states: int, actions: int, *, generator: torch.Generator) -> MDP:
    """Return an MDP with transition probabilities uniform on the simplex and rewards uniform on [0, 1]; it starts in state 0."""
    shape = (horizon, states, actions, states)
    draws = -torch.log1p(-torch.rand(shape, generator=generator, dtype=DOUBLE))
    reward = torch.rand(shape[:-1], generator=generator, dtype=DOUBLE)
    return MDP(draws / draws.sum(-1, keepdim=True), reward, _at(0, states))


def riverswim(horizon: int = 12, states: int = 5) -> MDP:
    """Return RiverSwim: left always succeeds, with reward 0.005 at the bank; right is against the stream, with 1 at its head.

    Strehl and Littman's chain: right succeeds with probability 0.35, stays with 0.6 and slips back with 0.05; at the
    bank it succeeds with 0.6 and stays with 0.4, at the head it stays with 0.6 and slips with 0.4. The start is the bank.
    """
    if states < 3:
        raise UserError(f"riverswim: states={states} is out of range: at least 3")
    move = torch.zeros(states, 2, states, dtype=DOUBLE)
    for s in range(states):
        move[s, 0, max(s - 1, 0)] = 1.0
        move[s, 1, max(s - 1, 0)] += 0.05
        move[s, 1, s] += 0.6
        move[s, 1, min(s + 1, states - 1)] += 0.35
    move[0, 1] = 0.0
    move[0, 1, :2] = torch.tensor([0.4, 0.6], dtype=DOUBLE)
    move[-1, 1] = 0.0
    move[-1, 1, -2:] = torch.tensor([0.4, 0.6], dtype=DOUBLE)
    reward = torch.zeros(states, 2, dtype=DOUBLE)
    reward[0, 0], reward[-1, 1] = 0.005, 1.0
    return MDP(move.expand(horizon, -1, -1, -1), reward.expand(horizon, -1, -1), _at(0, states))


def stopping(horizon: int = 8, low: float = 0.4, rare: float = 0.5) -> MDP:
    """Return an optimal stopping problem with increasing payoffs: accept the present offer (action 0) or wait (action 1).

    State 0 is a low offer, 1 a high one, 2 the absorbing state after a sale. An offer accepted at step h gives (h + 1) / H, times
    `low` if it is low; the next offer is high with probability `rare`. The start is a low or a high offer with equal probability.
    """
    move = torch.zeros(3, 2, 3, dtype=DOUBLE)
    move[:, 0, 2] = 1.0
    move[2, 1, 2] = 1.0
    move[:2, 1, 0], move[:2, 1, 1] = 1.0 - rare, rare
    pays = torch.zeros(3, 2, dtype=DOUBLE)
    pays[0, 0], pays[1, 0] = low, 1.0
    later = torch.arange(1, horizon + 1, dtype=DOUBLE) / horizon
    return MDP(
        move.expand(horizon, -1, -1, -1), later.view(-1, 1, 1) * pays, torch.tensor([0.5, 0.5, 0.0], dtype=DOUBLE)
    )


def layered(horizon: int = 3, states: int = 2, actions: int = 2, gap: float = 0.3, level: float = 0.5) -> MDP:
    """Return a layered MDP in which one action of each state has a reward `gap` above the others', whatever the next state.

    Action a of state s leads to state (s + a) mod S with probability 0.7, and to a uniform state otherwise. The better action of
    step h and state s is (h + s) mod A; all states of a step have the same value, so that the gap of every decision is `gap`.
    """
    if not 0 <= level - gap / 2 <= level + gap / 2 <= 1:
        raise UserError(f"layered: level={level} and gap={gap} leave [0, 1]: level -+ gap / 2 must lie inside")
    s, a, h = torch.arange(states), torch.arange(actions), torch.arange(horizon)
    aimed = torch.nn.functional.one_hot((s.view(-1, 1) + a) % states, states).to(DOUBLE)
    move = 0.7 * aimed + 0.3 / states
    best = (h.view(-1, 1) + s) % actions
    reward = level - gap / 2 + gap * torch.nn.functional.one_hot(best, actions).to(DOUBLE)
    return MDP(move.expand(horizon, -1, -1, -1), reward, torch.full((states,), 1.0 / states, dtype=DOUBLE))


def growing_phases(count: int, growth: float = 1.6, kinds: int = 2) -> Tensor:
    """Return the adversary's choice among `kinds` in `count` rounds [count]: in turn, in phases that lengthen by `growth`."""
    if growth <= 1:
        raise UserError(f"growing_phases: growth={growth} is out of range: above 1")
    ends, length = [0.0], 1.0
    while ends[-1] < count:
        ends.append(ends[-1] + length)
        length *= growth
    phase = torch.bucketize(torch.arange(count, dtype=DOUBLE), torch.tensor(ends[1:], dtype=DOUBLE), right=True)
    return phase % kinds


def _at(state: int, states: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(state), states).to(DOUBLE)
