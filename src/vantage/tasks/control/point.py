"""Point that moves in the plane: two goals (`vantage/TwoGoals-v0`), or one behind an obstacle (`vantage/Detour-v0`).

Both have two equally good solutions, so that a policy class that cannot represent two modes shows it: `tally` counts the
ways in which episodes ended.

This module needs gymnasium (`pip install 'vantage[control]'`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vantage.core.errors import UserError

Floats = NDArray[np.float64]
TWO_GOALS, DETOUR = "vantage/TwoGoals-v0", "vantage/Detour-v0"


def register() -> None:
    """Register the environments with Gymnasium; a second call changes nothing."""
    for name, entry in ((TWO_GOALS, "TwoGoals"), (DETOUR, "Detour")):
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=f"{__name__}:{entry}")


class Plane(gymnasium.Env[Any, Any]):
    """Base of environments with a point at `place` [2]; an action in [-1, 1]^2 moves it by `speed` times the action.

    `tally` counts the ways in which episodes of this copy ended; those in `alternatives` are equally good.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium declares it so
    render_mode = None
    alternatives: tuple[str, ...] = ()
    limit = 1

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.place: Floats = np.zeros(2)
        self.moment = 0
        self.tally: Counter[str] = Counter()

    def _see(self) -> NDArray[np.float32]:
        return self.place.astype(np.float32)

    def _end(self, outcome: str) -> None:
        self.tally["episodes"] += 1
        self.tally[outcome] += 1

    def state_dict(self) -> dict[str, Any]:
        """Return position, time, counts and the generator's state."""
        held = {"place": self.place.copy(), "moment": self.moment, "tally": dict(self.tally)}
        return {**held, "random": self.np_random.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self.place, self.moment = state["place"].copy(), state["moment"]
        self.tally = Counter(state["tally"])
        self.np_random.bit_generator.state = state["random"]


class TwoGoals(Plane):
    """Square of 5 by 5 with a goal at the middle of its left and of its right side; the start, its centre, is a saddle.

    Observation: the position, centre 0, sides at +-1. A move is at most 0.2 per coordinate. Within 0.25 of a goal the episode
    ends with reward 1; every other reward is 0. It is truncated after 50 moves.
    """

    alternatives = ("left", "right")
    limit = 50

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start at the centre."""
        super().reset(seed=seed)
        self.place, self.moment = np.zeros(2), 0
        return self._see(), {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move once."""
        x, y = (self.place + 0.2 * np.clip(action, -1, 1)).clip(-1, 1).tolist()
        self.place = np.array([x, y])
        self.moment += 1
        found = (abs(x) - 1.0) ** 2 + y * y < 0.25**2
        cut = not found and self.moment >= self.limit
        if found or cut:
            self._end("late" if cut else "left" if x < 0 else "right")
        return self._see(), float(found), found, cut, {}


class Detour(Plane):
    """Path from (-1, 0) to (1, 0) around a disc of radius 0.4 at the origin, by chunks of `chunk` moves.

    An action is `chunk` consecutive moves, each at most 0.1 per coordinate; walls are at +-1.5. Within 0.15 of the goal the
    episode ends with reward 1; touching the disc ends it with 0; each move costs 0.005. It is truncated after 100 moves. The
    tally also holds `strayed`, the share of positions farther than 0.1 from both demonstrated routes, summed over episodes.
    """

    alternatives = ("above", "below")
    limit = 100
    waypoints = ((-1.0, 0.0), (-0.45, 0.6), (0.45, 0.6), (1.0, 0.0))

    def __init__(self, chunk: int = 4) -> None:
        if chunk < 1:
            raise UserError(f"detour: chunk={chunk} is out of range: at least 1")
        super().__init__()
        self.chunk = chunk
        self.action_space = spaces.Box(-1.0, 1.0, (2 * chunk,), np.float32)
        self.strayed = 0
        self.side = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start near (-1, 0)."""
        super().reset(seed=seed)
        self.place, self.moment = np.array([-1.0, 0.0]) + 0.03 * self.np_random.standard_normal(2), 0
        self.strayed, self.side = 0, 0.0
        return self._see(), {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Make the chunk's moves until one ends the episode."""
        paid = 0.0
        found = crashed = cut = False
        for move in np.clip(action, -1, 1).reshape(self.chunk, 2):
            self.place = (self.place + 0.1 * move).clip(-1.5, 1.5)
            self.moment += 1
            self.strayed += distance_to_routes(self.place) > 0.1
            x, y = self.place.tolist()
            if abs(x) < 0.1:
                self.side = y
            found, crashed = (x - 1) ** 2 + y * y < 0.15**2, x * x + y * y < 0.4**2
            cut = not (found or crashed) and self.moment >= self.limit
            paid += float(found) - 0.005
            if found or crashed or cut:
                self._end("late" if cut else "crash" if crashed else "above" if self.side > 0 else "below")
                self.tally["success"] += found
                self.tally["strayed"] += self.strayed / self.moment  # type: ignore[assignment]
                break
        return self._see(), paid, found or crashed, cut, {}

    def demonstrations(self, episodes: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return positions [n, 2] and chunks [n, 2 * chunk] of noisy, slow walks along either route, which alternate."""
        random = np.random.default_rng(seed)
        seen, done = [], []
        for episode in range(episodes):
            side = 1.0 if episode % 2 else -1.0
            targets = [np.array([x, side * y]) for x, y in self.waypoints[1:]]
            place, moves = np.array([-1.0, 0.0]) + 0.03 * random.standard_normal(2), []
            places = [place]
            while targets:
                ahead = targets[0] - place
                gap = float(np.hypot(*ahead))
                if gap < 0.06:
                    targets.pop(0)
                    continue
                # Half of the maximum speed, so that training can still improve on the demonstrations.
                move = 0.5 * ahead / max(gap, 0.05) + 0.1 * random.standard_normal(2)
                place = place + 0.1 * move
                moves.append(move.clip(-1, 1))
                places.append(place)
            for start in range(len(moves) - self.chunk + 1):
                seen.append(places[start])
                done.append(np.concatenate(moves[start : start + self.chunk]))
        return np.array(seen, dtype=np.float32), np.array(done, dtype=np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return position, time, counts and the generator's state."""
        return {**super().state_dict(), "strayed": int(self.strayed), "side": float(self.side)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        super().load_state_dict(state)
        self.strayed, self.side = state["strayed"], state["side"]


def distance_to_routes(place: Floats) -> float:
    """Return the distance of a position [2] to the nearer of the two demonstrated routes, which mirror each other."""
    x, y = float(place[0]), abs(float(place[1]))
    best = float("inf")
    for (ax, ay), (bx, by) in zip(Detour.waypoints[:-1], Detour.waypoints[1:], strict=True):
        dx, dy = bx - ax, by - ay
        along = min(max(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0.0), 1.0)
        best = min(best, (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2)
    return best**0.5
