"""Generalised advantage estimation, as a scan whose depth is logarithmic in the number of steps.

Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation" (arXiv 1506.02438), eq. 16.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vantage.functions.checks import checked

_SMALL = 32_768
"""Elements up to which numpy's smaller overhead an operation beats torch's speed, on the CPU."""
_BASE = 4_096
"""Elements up to which doubling (few operations, T log T work) beats odd-even reduction (T work)."""


@checked(
    reward="float N T",
    value="float N T",
    next_value="float N T",
    terminated="bool N T",
    truncated="bool N T",
    mask="bool N T",
    flows="bool N T",
)
def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    mask: Tensor,
    gamma: float | Tensor,
    lam: float | Tensor,
    flows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return advantage and returns (what the critic is fitted to), both [N, T], without gradient.

        delta_t = reward_t + gamma (1 - terminated_t) next_value_t - value_t
        A_t     = delta_t + gamma lam (1 - terminated_t)(1 - truncated_t) A_{t+1}        returns_t = A_t + value_t

    A termination bootstraps nothing; a truncation bootstraps `next_value`, the value of the state in which the episode was
    cut; credit crosses neither. Positions outside the mask get 0 in both, and their rewards and values do not count. Credit
    passes over those where `flows` holds (what the environment inserted between two turns) as if they were not there: t + 1 is the
    policy's next decision, and gamma and lam count its decisions alone. At the others (padding, the step in which an
    environment resets) it stops.

    Args:
        reward: [N, T], in any unit.
        value: value of the state before the decision, [N, T].
        next_value: value of the state after it, [N, T], past any inserted positions; read at truncations and at the end of a
            row too.
        terminated: [N, T] bool.
        truncated: [N, T] bool.
        mask: decisions of the policy, [N, T] bool.
        gamma: discount, in [0, 1]; a number or a tensor that broadcasts to [N, T].
        lam: weight of longer returns, in [0, 1]; 0 gives delta, 1 the discounted return less the value.
        flows: positions that credit flows through, [N, T] bool (`core.trajectories.credit_flows`); None is the mask.
    """
    with torch.no_grad():
        goes_on = ~terminated
        delta = torch.where(mask, reward + gamma * torch.where(goes_on, next_value, 0.0) - value, 0.0)
        same_episode = goes_on & ~truncated
        decay = (gamma * lam) * (same_episode & mask).to(delta.dtype)
        if flows is not None:
            decay = torch.where(same_episode & flows & ~mask, 1.0, decay)
        advantage = reverse_scan(decay, delta)
        if flows is not None:
            advantage = torch.where(mask, advantage, 0.0)
        return advantage, torch.where(mask, advantage + value, 0.0)


@checked(decay="float N T", increment="float N T")
def reverse_scan(decay: Tensor, increment: Tensor) -> Tensor:
    """Return x [N, T] with x_t = increment_t + decay_t x_{t+1} and x_T = 0; decay_{T-1} is not read. No gradient.

    Only products of decays are formed, never quotients, so nothing overflows however long the row or small the decay.
    """
    if increment.device.type == "cpu" and increment.numel() <= _SMALL:
        return torch.from_numpy(_doubling_numpy(decay.numpy(), increment.numpy()))
    return _odd_even(decay, increment)


def _doubling_numpy(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    # After the round with shift k, x_t holds the sum of its next 2k terms and a_t the product of its next 2k decays.
    steps, k = x.shape[1], 1
    while k < steps:
        head = a[:, : steps - k] * x[:, k:]
        head += x[:, :-k]
        x = np.concatenate([head, x[:, steps - k :]], 1)
        if 2 * k < steps:
            a = a[:, :-k] * a[:, k:]
        k *= 2
    return x


def _doubling(a: Tensor, x: Tensor) -> Tensor:
    steps, k = x.shape[1], 1
    while k < steps:
        x = torch.cat([torch.addcmul(x[:, :-k], a[:, : steps - k], x[:, k:]), x[:, -k:]], 1)
        if 2 * k < steps:
            a = a[:, :-k] * a[:, k:]
        k *= 2
    return x


def _odd_even(a: Tensor, x: Tensor) -> Tensor:
    """Fold each odd step into the even one before it, scan the half that is left, and fill the odd steps in."""
    steps = x.shape[1]
    if x.numel() <= _BASE or steps < 8:
        return _doubling(a, x)
    if steps % 2:
        a, x = F.pad(a, (0, 1)), F.pad(x, (0, 1))
    even = _odd_even(a[:, 0::2] * a[:, 1::2], torch.addcmul(x[:, 0::2], a[:, 0::2], x[:, 1::2]))
    out = torch.empty_like(x)
    out[:, 0::2] = even
    out[:, 1:-1:2] = torch.addcmul(x[:, 1:-1:2], a[:, 1:-1:2], even[:, 1:])
    out[:, -1] = x[:, -1]
    return out[:, :steps]
