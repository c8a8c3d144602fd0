"""Symmetry-aware policy for one warehouse and several stores: one small network for all stores, with a shared context.

Alvo, Russo, Kanoria and Lee, "Deep Reinforcement Learning for Inventory Networks" (arXiv 2306.11246).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.policies.control import ACTOR_GAIN
from vantage.policies.distributions import Gaussian
from vantage.policies.folder import read_policy, write_policy
from vantage.policies.networks import MLP

KIND = "symmetry-aware"


class StoreNetworkPolicy(nn.Module):
    """Policy with one network for K stores, and another for their warehouse.

        context = sigmoid(C(all stocks and pipelines))
        a_k     = f(stock and pipeline of store k, features of store k, context)          the same f for every store
        a_{K+1} = g(stock and pipeline of the warehouse, context)

    So the number of weights of f does not depend on K, and two stores with equal inputs get equal decisions. The context reads
    the stores in their order: f is equivariant to permutations of the stores, the policy is not. Sampled decisions are
    Gaussian with these means, with one standard deviation for the stores and one for the warehouse, so that score-function
    methods apply too; there is no critic.

    Observations [..., K P + W] hold P numbers of each store, one store after the other, and W of the warehouse.

    Args:
        features: constant features of the stores, [K, F].
        places: P.
        warehouse_places: W.
        context: width of the context and of the hidden layer before it.
        hidden, warehouse_hidden: widths of the hidden layers of f and g.
        activation: activation of hidden layers.
        log_std: initial log standard deviation of sampled decisions.
        seed: seed of the initial weights, which are orthogonal, those of the last layers with gain 0.01.

    Raises:
        UserError: there is no store, or a number of places is not positive.
    """

    memoryless = True
    features: Tensor

    def __init__(
        self,
        features: Sequence[Sequence[float]],
        places: int,
        warehouse_places: int,
        *,
        context: int = 256,
        hidden: Sequence[int] = (32, 32),
        warehouse_hidden: Sequence[int] = (16, 16),
        activation: str = "elu",
        log_std: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not features or places < 1 or warehouse_places < 1 or context < 1:
            raise UserError(
                f"symmetry-aware policy: {len(features)} stores, places={places}, warehouse_places={warehouse_places},"
                f" context={context}: each must be at least 1"
            )
        self.config: dict[str, Any] = {
            "features": [list(map(float, row)) for row in features], "places": places, "warehouse_places": warehouse_places,
            "context": context, "hidden": list(hidden), "warehouse_hidden": list(warehouse_hidden), "activation": activation,
            "log_std": log_std,
        }  # fmt: skip
        self.places = places
        self.register_buffer("features", torch.tensor(self.config["features"]))
        count, width = self.features.shape
        generator = torch.Generator().manual_seed(seed)
        self.context = MLP([count * places + warehouse_places, context, context], activation, 1.0, generator)
        self.store = MLP([places + width + context, *hidden, 1], activation, ACTOR_GAIN, generator)
        self.warehouse = MLP([warehouse_places + context, *warehouse_hidden, 1], activation, ACTOR_GAIN, generator)
        self.log_std = nn.Parameter(torch.full((2,), float(log_std)))

    def decisions(self, observation: Tensor) -> Tensor:
        """Return the decisions [..., K + 1] for observations [..., K P + W]; with gradient."""
        observation = observation.to(self.features.dtype)
        count, lead = len(self.features), observation.shape[:-1]
        context = self.context(observation).sigmoid()
        stores = observation[..., : count * self.places].unflatten(-1, (count, self.places))
        features = self.features.expand(*lead, *self.features.shape)
        shared = context.unsqueeze(-2).expand(*lead, count, context.shape[-1])
        wanted = self.store(torch.cat([stores, features, shared], -1)).squeeze(-1)
        bought = self.warehouse(torch.cat([observation[..., count * self.places :], context], -1))
        return torch.cat([wanted, bought], -1)

    def distribution_of(self, observation: Tensor) -> Gaussian:
        """Return the distribution of the decisions, whose mode is `decisions`."""
        log_std = torch.cat([self.log_std[:1].expand(len(self.features)), self.log_std[1:]])
        return Gaussian(self.decisions(observation), log_std)

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Evaluate the decisions in `action` [N, T, K + 1]: logp, entropy [N, T], distribution; with gradient.

        Raises:
            UserError: `want` names another output.
        """
        odd = want - {"logp", "entropy", "distribution"}
        if odd:
            raise UserError(f"a symmetry-aware policy has no output {', '.join(sorted(odd))}")
        distribution = self.distribution_of(batch.observation)
        found = Evaluation(distribution=distribution)
        if "logp" in want:
            found.logp = distribution.log_prob(batch.action)
        if "entropy" in want:
            found.entropy = distribution.entropy()
        return found

    def frozen(self) -> StoreNetworkPolicy:
        """Return a frozen copy."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    def save(self, folder: Any) -> None:
        """Write weights and settings into the folder."""
        write_policy(folder, KIND, self.state_dict(), self.config)

    @classmethod
    def load(cls, folder: Any) -> StoreNetworkPolicy:
        """Read what `save` wrote.

        Raises:
            UserError: the folder holds no such policy.
        """
        config, tensors = read_policy(folder, KIND, "symmetry-aware policy")
        policy = cls(**config)
        policy.load_state_dict(tensors)
        return policy
