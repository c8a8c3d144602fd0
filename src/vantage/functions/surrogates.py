"""Losses per decision: policy losses from log-ratios and advantages, critic losses from returns."""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.functions.checks import checked


@checked(log="float N U", advantage="float N T", mask="bool N T")
def surrogate(log: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """Return -ratio * A per decision, [N, T], 0 outside of the mask. Gradient through `log`.

    Args:
        log: log-ratio [N, T] or [N, 1], bounded as `log_ratio` gives it.
        advantage: A, [N, T].
        mask: [N, T].
    """
    return -torch.where(mask, advantage, 0.0) * log.exp()


@checked(log="float N U", advantage="float N T", mask="bool N T")
def clipped_surrogate(
    log: Tensor,
    advantage: Tensor,
    mask: Tensor,
    low: float | Tensor,
    high: float | Tensor,
    dual: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return PPO's loss (arXiv 1707.06347, eq. 7) per decision, and a mask of where the clip removed the gradient, both [N, T].

        loss = -min(ratio * A, clip(ratio, low, high) * A)
        with `dual` c, where A < 0:  loss = min(loss, -c * A)           (dual clip, arXiv 1912.09729, eq. 5)

    Gradient through `log`; 0 outside of the mask.

    Args:
        log: log-ratio [N, T] or [N, 1], bounded as `log_ratio` gives it.
        advantage: A, [N, T].
        mask: [N, T].
        low: smallest ratio that is still rewarded; a number or a tensor that broadcasts to [N, T].
        high: largest one.
        dual: c above 1, or None.
    """
    ratio = log.exp()
    advantage = torch.where(mask, advantage, 0.0)
    cost = -advantage
    plain = cost * ratio
    clipped = cost * torch.clamp(ratio, low, high)  # type: ignore[arg-type]
    loss = torch.maximum(plain, clipped)
    if dual is not None:
        loss = torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)
    return loss, (clipped > plain).detach()


@checked(value="float ...", returns="float ...", value_old="float ...")
def value_loss(value: Tensor, returns: Tensor, value_old: Tensor | None = None, clip: float | None = None) -> Tensor:
    """Return 0.5 * (value - returns)^2, or with `clip` the larger of it and that of the clipped value (PPO's form).

    Shapes agree; gradient flows through `value` alone. `value_old` is needed with `clip`.
    """
    plain = (value - returns).square()
    if clip is None:
        return 0.5 * plain
    assert value_old is not None
    clipped = value_old + (value - value_old).clamp(-clip, clip)
    return 0.5 * torch.maximum(plain, (clipped - returns).square())
