"""The protocol of episodes: a learner names a policy, sees episodes of it, and names the next.

A learner is a generator. It yields a `Plan` and is sent the `Episodes` that came of it:

    def __call__(self, known: Known) -> Learner:
        policy = ...
        while True:
            seen = yield Plan(policy)
            policy = ...

R replicas, independent runs of the same learner on the same MDP, go in lockstep along the first dimension of everything.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.fields.tabular.mdp import MDP


@dataclass(frozen=True)
class Known:
    """What a learner is told beforehand.

    Attributes:
        shape: (H, S, A).
        replicas: R.
        budget: environment steps of a replica, an episode from the first step being H.
        transition: P [H, S, A, S] where the field gives it, else None.
        start: law of the first state [S], likewise.
        dtype, device: of policies.
    """

    shape: tuple[int, int, int]
    replicas: int
    budget: int
    transition: Tensor | None = None
    start: Tensor | None = None
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"

    def model(self, who: str) -> tuple[Tensor, Tensor]:
        """Return transition and start.

        Raises:
            UserError: they are not known here.
        """
        if self.transition is None or self.start is None:
            raise UserError(f"{who} needs the transition law, which this arena keeps: set options.known = true")
        return self.transition, self.start

    def uniform(self) -> Tensor:
        """Return the policy [R, H, S, A] that does anything."""
        return torch.full((self.replicas, *self.shape), 1.0 / self.shape[-1], dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Plan:
    """What a learner asks for.

    Attributes:
        policy: [R, H, S, A].
        episodes: K, of each replica.
        step: at which the episodes begin.
        start: law of the state in which they begin [S]; None is the MDP's own, for step 0.
    """

    policy: Tensor
    episodes: int = 1
    step: int = 0
    start: Tensor | None = None


@dataclass(frozen=True)
class Episodes:
    """What came of a plan: K episodes of D = H - step decisions for each of R replicas.

    Attributes:
        state, action: [R, K, D], int64.
        reward: [R, K, D].
        last: the state after the last decision [R, K].
        step: of the first decision.
    """

    state: Tensor
    action: Tensor
    reward: Tensor
    last: Tensor
    step: int = 0

    @property
    def to_go(self) -> Tensor:
        """Reward from each decision to the end [R, K, D]."""
        return self.reward.flip(-1).cumsum(-1).flip(-1)


Learner = Generator[Plan, Episodes, None]


class Algorithm(Protocol):
    """What a page of this field makes."""

    def __call__(self, known: Known) -> Learner:
        """Begin to learn."""
        ...


@dataclass(frozen=True)
class World:
    """An MDP whose expected rewards may be another table in every episode, chosen beforehand.

    Attributes:
        mdp: without leading dimensions; its reward is the only table, or the mean one.
        tables: expected rewards [M, H, S, A].
        order: table of each episode [T], int64; None is always table 0.
        noisy: rewards are 1 with the expected reward's probability, else 0; otherwise they are the expected ones.
    """

    mdp: MDP
    tables: Tensor
    order: Tensor | None = None
    noisy: bool = True

    def which(self, first: int, count: int) -> Tensor:
        """Return the tables of `count` episodes from episode `first` on [count]; the last one stays."""
        if self.order is None:
            return torch.zeros(count, dtype=torch.long, device=self.tables.device)
        index = torch.arange(first, first + count, device=self.tables.device)
        return self.order[index.clamp(max=len(self.order) - 1)]


def sample(world: World, plan: Plan, first: int, generator: torch.Generator, moves: Tensor) -> Episodes:
    """Play a plan's episodes; the first of them is the world's episode number `first`.

    Args:
        moves: `world.mdp.transition.cumsum(-1)`.

    Raises:
        UserError: the plan's policy does not fit, or it begins in the middle without saying where.
    """
    steps, states, actions = world.mdp.shape
    rows, count = plan.policy.shape[0], plan.episodes
    if tuple(plan.policy.shape[1:]) != world.mdp.shape:
        raise UserError(f"a plan's policy is {tuple(plan.policy.shape)}; it must be [R, {steps}, {states}, {actions}]")
    if plan.start is None and plan.step:
        raise UserError(f"a plan that begins at step {plan.step} must name the law of the state there (start)")
    law = world.mdp.start if plan.start is None else plan.start
    table = world.which(first, count)
    replica = torch.arange(rows, device=law.device).unsqueeze(-1)
    chances = plan.policy.cumsum(-1)
    draws = torch.rand(
        3, steps - plan.step, rows, count, generator=generator, dtype=chances.dtype, device=chances.device
    )
    begin = torch.rand(rows, count, generator=generator, dtype=chances.dtype, device=chances.device)
    state = _invert(law.cumsum(-1), begin)
    seen: list[tuple[Tensor, Tensor]] = []
    for d, h in enumerate(range(plan.step, steps)):
        action = _invert(chances[:, h][replica, state], draws[0, d])
        seen.append((state, action))
        state = _invert(moves[h, state, action], draws[1, d])
    visited, taken = (torch.stack(column, -1) for column in zip(*seen, strict=True))
    where = torch.arange(plan.step, steps, device=law.device)
    reward = world.tables[table.view(1, -1, 1), where, visited, taken]
    if world.noisy:
        reward = (draws[2].movedim(0, -1) < reward).to(reward.dtype)
    return Episodes(visited, taken, reward, state, plan.step)


def _invert(cumulated: Tensor, draw: Tensor) -> Tensor:
    """First index whose cumulated probability [..., n] is above the draw [...]; never one of probability zero."""
    return (cumulated <= (draw * cumulated[..., -1]).unsqueeze(-1)).sum(-1)


@dataclass(frozen=True)
class Round:
    """One exchange: the plan; environment steps of a replica and episodes before it; whether it is played."""

    plan: Plan
    spent: int
    first: int
    played: bool = True


def play(algorithm: Algorithm, world: World, known: Known, generator: torch.Generator) -> Iterator[Round]:
    """Let an algorithm learn until the budget is spent; yield each exchange just before its episodes are played.

    A plan that does not fit into what is left is yielded as not played, and is the last: what was learnt.

    Raises:
        UserError: a plan asks for no episode, or does not fit the MDP.
    """
    learner = algorithm(known)
    moves = world.mdp.transition.cumsum(-1)
    spent = first = 0
    with torch.no_grad():
        plan = next(learner)
        while True:
            cost = plan.episodes * (known.shape[0] - plan.step)
            if cost < 1:
                raise UserError(
                    f"a plan of {plan.episodes} episodes from step {plan.step} costs nothing, and would never end"
                )
            if spent + cost > known.budget:
                yield Round(plan, spent, first, played=False)
                return
            yield Round(plan, spent, first)
            seen = sample(world, plan, first, generator, moves)
            spent, first = spent + cost, first + plan.episodes
            plan = learner.send(seen)
