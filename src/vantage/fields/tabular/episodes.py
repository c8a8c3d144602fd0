"""Protocol of episodes for tabular learners: a learner gives a policy, receives episodes of it, and gives the next.

A learner is a generator. It yields a `Plan` and is sent its `Episodes`:

    def __call__(self, known: Known) -> Learner:
        policy = ...
        while True:
            seen = yield Plan(policy)
            policy = ...

R replicas, independent runs of the same learner on the same MDP, are batched along the first dimension of all tensors.
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
    """Information that a learner has before the first episode.

    Attributes:
        shape: (H, S, A).
        replicas: R.
        budget: environment steps per replica; an episode from the first step has H.
        transition: P [H, S, A, S] where the arena gives it, else None.
        start: distribution of the first state [S], likewise.
        dtype, device: those of policies.
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
            UserError: the arena does not give them.
        """
        if self.transition is None or self.start is None:
            raise UserError(
                f"{who} needs the transition probabilities, which this arena does not give: set options.known = true"
            )
        return self.transition, self.start

    def uniform(self) -> Tensor:
        """Return the uniform policy [R, H, S, A]."""
        return torch.full((self.replicas, *self.shape), 1.0 / self.shape[-1], dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Plan:
    """Request of a learner for episodes.

    Attributes:
        policy: [R, H, S, A].
        episodes: K, number of episodes per replica.
        step: step at which the episodes begin.
        start: distribution of the state in which they begin [S]; None is the MDP's own, for step 0.
    """

    policy: Tensor
    episodes: int = 1
    step: int = 0
    start: Tensor | None = None


@dataclass(frozen=True)
class Episodes:
    """Episodes of a plan: K episodes of D = H - step decisions for each of R replicas.

    Attributes:
        state, action: [R, K, D], int64.
        reward: [R, K, D].
        last: state after the last decision [R, K].
        step: step of the first decision.
    """

    state: Tensor
    action: Tensor
    reward: Tensor
    last: Tensor
    step: int = 0

    @property
    def to_go(self) -> Tensor:
        """Sum of rewards from each decision to the end [R, K, D]."""
        return self.reward.flip(-1).cumsum(-1).flip(-1)


Learner = Generator[Plan, Episodes, None]


class Algorithm(Protocol):
    """Interface of an algorithm, as methods of this field make it."""

    def __call__(self, known: Known) -> Learner:
        """Return a learner."""
        ...


@dataclass(frozen=True)
class World:
    """MDP whose table of expected rewards may differ between episodes, chosen beforehand.

    Attributes:
        mdp: MDP without leading dimensions; its reward is the only table, or the mean one.
        tables: expected rewards [M, H, S, A].
        order: table of each episode [T], int64; None is always table 0.
        noisy: rewards are Bernoulli with the expected reward as probability; otherwise they are the expected ones.
    """

    mdp: MDP
    tables: Tensor
    order: Tensor | None = None
    noisy: bool = True

    def which(self, first: int, count: int) -> Tensor:
        """Return the tables of `count` episodes from episode `first` on [count]; beyond the last episode, its table."""
        if self.order is None:
            return torch.zeros(count, dtype=torch.long, device=self.tables.device)
        index = torch.arange(first, first + count, device=self.tables.device)
        return self.order[index.clamp(max=len(self.order) - 1)]


def sample(world: World, plan: Plan, first: int, generator: torch.Generator, moves: Tensor) -> Episodes:
    """Play a plan's episodes; the first of them is the world's episode number `first`.

    Args:
        moves: `world.mdp.transition.cumsum(-1)`.

    Raises:
        UserError: the plan's policy does not fit, or it begins at a later step without `start`.
    """
    steps, states, actions = world.mdp.shape
    rows, count = plan.policy.shape[0], plan.episodes
    if tuple(plan.policy.shape[1:]) != world.mdp.shape:
        raise UserError(f"a plan's policy is {tuple(plan.policy.shape)}; it must be [R, {steps}, {states}, {actions}]")
    if plan.start is None and plan.step:
        raise UserError(f"a plan that begins at step {plan.step} must give the distribution of the state there (start)")
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
    """Return the first index whose cumulative probability [..., n] exceeds the draw [...]; never one of probability zero."""
    return (cumulated <= (draw * cumulated[..., -1]).unsqueeze(-1)).sum(-1)


@dataclass(frozen=True)
class Round:
    """One plan of a learner: the plan; environment steps per replica and episodes before it; whether it is played."""

    plan: Plan
    spent: int
    first: int
    played: bool = True


def play(algorithm: Algorithm, world: World, known: Known, generator: torch.Generator) -> Iterator[Round]:
    """Run an algorithm until the budget is spent; yield each plan before its episodes are played.

    A plan that exceeds the remaining budget is yielded as not played, and is the last: the result.

    Raises:
        UserError: a plan has no episode, or does not fit the MDP.
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
                    f"a plan of {plan.episodes} episodes from step {plan.step} has no environment steps:"
                    " the budget would never be spent"
                )
            if spent + cost > known.budget:
                yield Round(plan, spent, first, played=False)
                return
            yield Round(plan, spent, first)
            seen = sample(world, plan, first, generator, moves)
            spent, first = spent + cost, first + plan.episodes
            plan = learner.send(seen)
