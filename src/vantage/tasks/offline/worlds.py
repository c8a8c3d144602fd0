"""Small continuous environments ("worlds") that step all rows at once: a point that moves around a wall, and a pendulum.

A world is a frozen dataclass of settings with pure functions of its state [N, S]; actions are in [-1, 1] in every coordinate.
`controller` is a good hand-written policy: it records data, and its return is 100 in the normalised score.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Act = Callable[[Tensor], Tensor]


class World(Protocol):
    """Interface of an environment in which data is recorded and policies are evaluated."""

    name: str
    observations: int
    """Width D of an observation."""
    actions: int
    """Width A of an action."""
    limit: int
    """Steps after which an episode is truncated."""

    def reset(self, count: int, generator: torch.Generator, far: bool = False) -> Tensor:
        """Sample initial states [N, S]; with `far`, those farthest from the goal."""
        ...

    def observe(self, state: Tensor) -> Tensor:
        """Return the observations [N, D] of states [N, S]."""
        ...

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (state [N, S], reward [N], terminated [N]) after actions [N, A]."""
        ...

    def controller(self, state: Tensor) -> Tensor:
        """Return good actions [N, A]."""
        ...


@dataclass(frozen=True)
class Point:
    """Point in the unit square that moves to a goal at the lower right, around a wall in the middle.

    It moves by 0.05 times its action. The wall is at x = 0.5 from y = 0 to `wall`; a move through it stops at it.
    Each step costs 1 until the point is within 0.1 of the goal (0.85, 0.15), which ends the episode.
    """

    wall: float = 0.5
    name = "point"
    observations = 2
    actions = 2
    limit = 100
    pace = 0.05
    goal = (0.85, 0.15)

    def reset(self, count: int, generator: torch.Generator, far: bool = False) -> Tensor:
        """Start uniformly; with `far`, left of the wall and below its top."""
        place = torch.rand(count, 2, generator=generator)
        return place * place.new_tensor([0.45, self.wall]) if far else place

    def observe(self, state: Tensor) -> Tensor:
        """Return the position, scaled to [-1, 1]."""
        return 2 * state - 1

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Move, stop at the wall, and end the episode at the goal."""
        moved = (state + self.pace * action.clamp(-1, 1)).clamp(0, 1)
        crosses = ((state[:, 0] - 0.5) * (moved[:, 0] - 0.5) <= 0) & (moved[:, 1] < self.wall)
        x = torch.where(crosses, state[:, 0], moved[:, 0])
        state = torch.stack([x, moved[:, 1]], 1)
        there = (state - state.new_tensor(self.goal)).square().sum(1) < 0.01
        return state, torch.where(there, 0.0, -1.0), there

    def controller(self, state: Tensor) -> Tensor:
        """Move straight: left of the wall to above it, above it to its other side, from there to the goal."""
        above = state.new_tensor([0.5, self.wall + 0.1])
        goal = state.new_tensor(self.goal)
        left, low = state[:, :1] <= 0.5, state[:, 1:] < self.wall + 0.02
        aim = torch.where(left & low, above - state.new_tensor([0.06, 0.0]), torch.where(left, above + 0.1, goal))
        way = aim - state
        return way / way.abs().amax(1, keepdim=True).clamp(min=self.pace)


@dataclass(frozen=True)
class Pendulum:
    """Gymnasium's Pendulum-v1 for all rows at once; state (angle, angular velocity), angle 0 is upright."""

    name = "pendulum"
    observations = 3
    actions = 1
    limit = 200

    def reset(self, count: int, generator: torch.Generator, far: bool = False) -> Tensor:
        """Start at any angle, velocity in [-1, 1]; with `far`, hanging down within a tenth of the circle."""
        place = 2 * torch.rand(count, 2, generator=generator) - 1
        hanging = torch.stack([math.pi * (1 + 0.1 * place[:, 0]), place[:, 1]], 1)
        return hanging if far else place * place.new_tensor([math.pi, 1.0])

    def observe(self, state: Tensor) -> Tensor:
        """Return cosine and sine of the angle, and the velocity."""
        return torch.stack([state[:, 0].cos(), state[:, 0].sin(), state[:, 1]], 1)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integrate 0.05 seconds at a torque of twice the action."""
        angle, speed = state.unbind(1)
        torque = 2 * action[:, 0].clamp(-1, 1)
        wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        cost = wrapped.square() + 0.1 * speed.square() + 0.001 * torque.square()
        speed = (speed + 0.05 * (15 * angle.sin() + 3 * torque)).clamp(-8, 8)
        return torch.stack([angle + 0.05 * speed, speed], 1), -cost, torch.zeros_like(speed, dtype=torch.bool)

    def controller(self, state: Tensor) -> Tensor:
        """Pump energy until nearly upright, then stabilise by linear feedback."""
        angle, speed = state.unbind(1)
        wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        energy = speed.square() / 2 + 15 * (angle.cos() - 1)
        pump = torch.where(speed * -energy >= 0, 1.0, -1.0)
        hold = -(10 * wrapped + 2.5 * speed) / 2
        near = (wrapped.abs() < 0.35) & (speed.abs() < 3)
        return torch.where(near, hold, pump).clamp(-1, 1).unsqueeze(1)


WORLDS: dict[str, Callable[[], Any]] = {"point": Point, "pendulum": Pendulum}


def play(world: World, act: Act, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return (return, length) [N] of an episode from each state, undiscounted; `act` maps states to actions."""
    state = start
    total = torch.zeros(len(start))
    length = torch.zeros(len(start))
    running = torch.ones(len(start), dtype=torch.bool)
    for _ in range(world.limit):
        state, reward, terminated = world.step(state, act(state))
        total += reward * running
        length += running
        running = running & ~terminated
        if not bool(running.any()):
            break
    return total, length


@functools.cache
def references(name: str) -> tuple[float, float]:
    """Return the mean return of uniform random actions and of the controller: 0 and 100 of the normalised score."""
    world = WORLDS[name]()
    generator = torch.Generator().manual_seed(0)
    start = world.reset(512, generator)
    random, _ = play(world, lambda state: 2 * torch.rand(len(state), world.actions, generator=generator) - 1, start)
    good, _ = play(world, world.controller, start)
    return float(random.mean()), float(good.mean())
