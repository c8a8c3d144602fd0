"""Small MDPs with exact answers, and sequences of rewards that an adversary chose beforehand. All in float64, rewards in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.fields.tabular.mdp import MDP

DOUBLE = torch.float64


def random_mdp(horizon: int, states: int, actions: int, *, generator: torch.Generator) -> MDP:
    """Draw laws uniformly from the simplex and rewards from [0, 1]; the start is state 0."""
    shape = (horizon, states, actions, states)
    draws = -torch.log1p(-torch.rand(shape, generator=generator, dtype=DOUBLE))
    reward = torch.rand(shape[:-1], generator=generator, dtype=DOUBLE)
    return MDP(draws / draws.sum(-1, keepdim=True), reward, _at(0, states))


def riverswim(horizon: int = 12, states: int = 5) -> MDP:
    """RiverSwim: left is always safe and pays 0.005 at the bank, right is against the stream and pays 1 at its head.

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
    """Optimal stopping, cheap now and dear later: take the offer on the table (action 0) or wait for the next (action 1).

    State 0 is a low offer, 1 a high one, 2 "sold", which ends all. An offer taken at step h pays (h + 1) / H, times `low` if it
    is low; what waiting brings next is high with probability `rare`. The start is a low offer or a high one, alike.
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
    """Layers in which one action of each state pays `gap` more than the others, wherever the episode goes.

    Action a of state s leads to state (s + a) mod S with probability 0.7, and anywhere otherwise. The better action of step h
    and state s is (h + s) mod A; what follows is worth the same from every state, so that the gap of every decision is `gap`.
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
    """Return which of `kinds` an adversary plays in each of `count` rounds [count]: in turn, in phases that grow by `growth`."""
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
