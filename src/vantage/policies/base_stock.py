"""Base-stock policy: order up to a level. Its parameters are the level, an optional cap and the exploration noise."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.policies.distributions import Gaussian
from vantage.policies.folder import read_policy, write_policy

KIND = "base-stock"


class BaseStockPolicy(nn.Module):
    """Policy that orders max(S - (stock and pipeline), 0), at most `cap` where there is one; S and the cap are trained.

    Sampled orders are Gaussian with that mean, so that score-function methods apply too; there is no critic.

    Args:
        level: initial S, in units of stock.
        cap: initial cap, or None for none.
        log_std: initial log standard deviation of sampled orders.
    """

    memoryless = True

    def __init__(self, *, level: float = 1.0, cap: float | None = None, log_std: float = 0.0) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"level": level, "cap": cap, "log_std": log_std}
        self.level = nn.Parameter(torch.tensor(float(level)))
        self.cap = nn.Parameter(torch.tensor(float(cap))) if cap is not None else None
        self.log_std = nn.Parameter(torch.full((1,), float(log_std)))

    def orders(self, observation: Tensor) -> Tensor:
        """Return the orders [..., 1] for observations [..., W] of stock and pipeline; with gradient."""
        order = (self.level - observation.sum(-1, keepdim=True)).clamp(min=0)
        if self.cap is not None:
            order = torch.minimum(order, self.cap)
        return order

    def distribution_of(self, observation: Tensor) -> Gaussian:
        """Return the distribution of the order, whose mode is the order."""
        return Gaussian(self.orders(observation), self.log_std)

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Evaluate the orders in `action` [N, T, 1]: logp, entropy [N, T], distribution; with gradient."""
        odd = want - {"logp", "entropy", "distribution"}
        if odd:
            raise UserError(f"a base-stock policy has no output {', '.join(sorted(odd))}")
        distribution = self.distribution_of(batch.observation)
        found = Evaluation(distribution=distribution)
        if "logp" in want:
            found.logp = distribution.log_prob(batch.action)
        if "entropy" in want:
            found.entropy = distribution.entropy()
        return found

    def frozen(self) -> BaseStockPolicy:
        """Return a frozen copy."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    def save(self, folder: Any) -> None:
        """Write weights and settings into the folder."""
        write_policy(folder, KIND, self.state_dict(), self.config)

    @classmethod
    def load(cls, folder: Any) -> BaseStockPolicy:
        """Read what `save` wrote.

        Raises:
            UserError: the folder holds no such policy.
        """
        config, tensors = read_policy(folder, KIND, "base-stock policy")
        policy = cls(**config)
        policy.load_state_dict(tensors)
        return policy
