"""Statistics of episodes, reward scaling and columns of rollouts in environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vantage.functions.returns import reverse_scan
from vantage.policies.normalize import CLIP, EPSILON

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Final = tuple[int, int, NDArray[Any]]
"""Row, step and observation of an episode's end."""


class Episodes:
    """Running return and length of the current episodes of N streams."""

    def __init__(self, rows: int) -> None:
        self.returns = np.zeros(rows)
        self.lengths = np.zeros(rows, dtype=np.int64)

    def take(self, reward: Floats, over: Bools, mask: Bools) -> tuple[Floats, NDArray[np.int64]]:
        """Add T steps, all arrays [T, N]; return the undiscounted returns and the lengths of the episodes that ended.

        Each is a difference of two running sums, so no loop runs over steps.
        """
        total = np.cumsum(reward, 0, dtype=np.float64) + self.returns
        count = np.cumsum(mask, 0) + self.lengths
        row, step = np.nonzero(over.T)
        at_end, until = total[step, row], count[step, row]
        returns, lengths = at_end.copy(), until.copy()
        same = row[1:] == row[:-1]
        returns[1:] -= np.where(same, at_end[:-1], 0.0)
        lengths[1:] -= np.where(same, until[:-1], 0)
        self.returns, self.lengths = total[-1].copy(), count[-1].copy()
        # With repeated indices the last assignment holds: that of a row's last end.
        self.returns[row] = total[-1, row] - at_end
        self.lengths[row] = count[-1, row] - until
        return returns, lengths


class RewardScale:
    """Division of rewards by the standard deviation of the running discounted return, without subtraction of a mean.

    The return of stream n is R_t = gamma R_{t-1} + r_t, reset to 0 after every end of an episode, time limits included. Its
    moments are updated with all streams at every step; each reward is divided by the standard deviation after its own step
    (plus 1e-8 under the root), then clipped to +-10. These are the numbers of OpenAI Baselines' and
    Stable-Baselines3's VecNormalize, without a loop over steps. Gymnasium's NormalizeReward differs: it multiplies by
    (1 - terminated) of the same step and is not reset at time limits.

    Args:
        rows: number of streams.
        gamma: discount of the running return.
    """

    def __init__(self, rows: int, gamma: float) -> None:
        self.gamma = gamma
        self.returns = np.zeros(rows)
        self.mean, self.var, self.count = 0.0, 1.0, 1e-4

    def take(self, reward: Floats, over: Bools, mask: Bools, fresh: bool = False) -> Floats:
        """Return the scaled rewards of T further steps.

        Args:
            reward: [T, N].
            over: whether the step ended an episode, by termination or truncation, [T, N].
            mask: steps outside the mask are skipped, [T, N].
            fresh: the rows are separate whole episodes, which do not change the streams' returns.
        """
        ended = np.zeros_like(over)
        ended[1:] = over[:-1]
        decay = np.where(mask, self.gamma, 1.0) * ~ended
        increment = np.where(mask, reward, 0.0).astype(np.float64)
        if not fresh:
            increment[0] += decay[0] * self.returns
        # Forward in time is backward in flipped time, where x_t has the decay of its own step.
        flipped = [torch.from_numpy(np.ascontiguousarray(x[::-1].T)) for x in (decay, increment)]
        running = reverse_scan(flipped[0], flipped[1]).numpy()[:, ::-1].T
        shifted = np.where(mask, running - self.mean, 0.0)
        count = self.count + np.cumsum(mask.sum(1))
        first = np.cumsum(shifted.sum(1)) / count
        second = (self.var * self.count + np.cumsum(np.square(shifted).sum(1))) / count
        var = second - np.square(first)
        scaled = reward / np.sqrt(var + EPSILON)[:, None]
        if not fresh:
            self.returns = running[-1] * ~over[-1]
        self.mean, self.var, self.count = self.mean + float(first[-1]), float(var[-1]), float(count[-1])
        return np.clip(scaled, -CLIP, CLIP)

    def state_dict(self) -> dict[str, Any]:
        """Return the moments and the streams' returns."""
        moments = {"mean": self.mean, "var": self.var, "count": self.count}
        return {**moments, "returns": torch.from_numpy(self.returns.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self.mean, self.var, self.count = state["mean"], state["var"], state["count"]
        self.returns = state["returns"].numpy().copy()


def rows_first(array: NDArray[Any]) -> torch.Tensor:
    """Return an array [T, N, ...] as a tensor [N, T, ...]."""
    return torch.from_numpy(array).transpose(0, 1).contiguous()


def following(observation: torch.Tensor, mask: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return the next observation of each decision [N, T, ...] of whole episodes, the last of which is `last` [N, ...]."""
    ends = mask.clone()
    ends[:, :-1] &= ~mask[:, 1:]
    after = torch.cat([observation[:, 1:], last.unsqueeze(1)], 1)
    return torch.where(ends.view(*ends.shape, *[1] * (last.dim() - 1)), last.unsqueeze(1), after)


def final_column(finals: Sequence[Final], rows: int, shape: tuple[int, ...], dtype: Any) -> torch.Tensor:
    """Return the last observations of truncated episodes as [N, K, *shape], in order of time in each row, padded with zeros.

    K is the largest number in a row, at least 1, so that all batches have the column.
    """
    counts = [0] * rows
    for row, _, _ in finals:
        counts[row] += 1
    column = np.zeros((rows, max([1, *counts]), *shape), dtype=dtype)
    place = [0] * rows
    for row, _, observation in sorted(finals, key=lambda final: final[1]):
        column[row, place[row]] = observation
        place[row] += 1
    return torch.from_numpy(column)
