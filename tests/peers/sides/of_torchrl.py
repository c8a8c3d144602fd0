"""torchrl's functions (torchrl.objectives)."""

import torch
from serve import serve
from torch import Tensor
from torchrl.objectives.value.functional import generalized_advantage_estimate, td_lambda_return_estimate


def _columns(*columns: Tensor) -> tuple[Tensor, ...]:
    return tuple(one.unsqueeze(-1) for one in columns)


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> dict[str, Tensor]:
    """Advantage and returns, [N, T]."""
    v, after, r, d, t = _columns(value, next_value, reward, done, terminated)
    advantage, returns = generalized_advantage_estimate(gamma, lam, v, after, r, d, t)
    return {"advantage": advantage.squeeze(-1), "returns": returns.squeeze(-1)}


def td_lambda(
    reward: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> dict[str, Tensor]:
    """Return of TD(lambda), [N, T]."""
    after, r, d, t = _columns(next_value, reward, done, terminated)
    return {"returns": td_lambda_return_estimate(gamma, lam, after, r, d, t).squeeze(-1)}


torch.set_default_dtype(torch.float64)
serve({"gae": gae, "td_lambda": td_lambda})
