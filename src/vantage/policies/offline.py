"""Policy for offline methods: a bounded actor, with the value networks that a method adds.

The actor's mean is tanh of a perceptron, in [-1, 1]; `bound` scales it to the data's units. Twin action values (`add_critics`),
twin state values (`add_values`) and a standard deviation (`add_spread`) are added by the components that train them; each value
network has a target, which `targets` pairs with it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.policies.distributions import Gaussian
from vantage.policies.folder import read_policy, write_policy
from vantage.policies.networks import MLP, outputs

KIND = "relu"
LOG_STD_RANGE = (-5.0, 2.0)


class OfflinePolicy(nn.Module):
    """Actor with optional value networks; rows are single transitions [N, 1, ...].

    `evaluate` takes observations as a batch stores them, normalised; `act` takes raw ones and normalises by `mean` and `std`,
    the data's.

    Args:
        observations, actions: widths D and A.
        hidden: widths of the hidden layers of every network.
        seed: seed of the initial weights.
        mean, std: moments of raw observations [D]; None for no normalisation.
        bound: bound of raw actions [A]; None for 1.
    """

    memoryless = True
    mean: Tensor
    std: Tensor
    bound: Tensor

    def __init__(
        self,
        observations: int,
        actions: int,
        hidden: Sequence[int] = (256, 256),
        seed: int = 0,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        bound: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.shape = (observations, actions)
        self.hidden = tuple(hidden)
        self.grown: list[str] = []
        self._generator = torch.Generator().manual_seed(seed)
        self.actor = self._network(observations, actions, 0.01)
        for name, given, usual in (("mean", mean, 0.0), ("std", std, 1.0)):
            self.register_buffer(name, torch.full((observations,), usual) if given is None else given.float())
        self.register_buffer("bound", torch.ones(actions) if bound is None else bound.float().expand(actions).clone())
        self.target_actor: MLP | None = None
        self.critics = nn.ModuleList()
        self.target_critics = nn.ModuleList()
        self.value_nets = nn.ModuleList()
        self.target_values = nn.ModuleList()
        self.log_std: nn.Parameter | None = None

    def _network(self, inputs: int, outputs: int, gain: float = 1.0) -> MLP:
        return MLP([inputs, *self.hidden, outputs], KIND, gain, self._generator)

    # networks ------------------------------------------------------------------------------------------------------

    def add_critics(self) -> None:
        """Add Q1 and Q2, their targets, and a target of the actor; a second call changes nothing."""
        if not self.critics:
            self.grown.append("critics")
            self.critics.extend(self._network(sum(self.shape), 1) for _ in range(2))
            self.target_critics.extend(_still(copy.deepcopy(network)) for network in self.critics)
            self.target_actor = _still(copy.deepcopy(self.actor))
            self.to(self.mean.device)

    def add_values(self) -> None:
        """Add V1 and V2, with layer normalisation, and their targets; a second call changes nothing."""
        if not self.value_nets:
            self.grown.append("values")
            self.value_nets.extend(NormedMLP([self.shape[0], *self.hidden, 1], self._generator) for _ in range(2))
            self.target_values.extend(_still(copy.deepcopy(network)) for network in self.value_nets)
            self.to(self.mean.device)

    def add_spread(self) -> None:
        """Make the actor a Gaussian with a trained log standard deviation [A] for all states; a second call changes nothing."""
        if self.log_std is None:
            self.grown.append("spread")
            self.log_std = nn.Parameter(torch.zeros(self.shape[1], device=self.mean.device))

    def targets(self) -> list[tuple[Tensor, Tensor]]:
        """Return (parameter, target's parameter) of all networks with targets."""
        nets = [
            *zip(self.critics, self.target_critics, strict=True),
            *zip(self.value_nets, self.target_values, strict=True),
        ]
        if self.target_actor is not None:
            nets.append((self.actor, self.target_actor))
        return [pair for one, other in nets for pair in zip(one.parameters(), other.parameters(), strict=True)]

    # evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Evaluate transitions from `observation` [N, 1, D] and `action` [N, 1, A]; with gradient.

        `logp` [N, 1] is of the Gaussian around the actor's mean, of unit variance without `add_spread` (`proxy` is then True);
        `entropy` needs `add_spread`. In `extras`: `mean` [N, 1, A], and `q_mean` [N, 1], Q1 at that mean, whose gradient flows
        through the action alone, not to Q1.

        Raises:
            UserError: `want` names another output, or one whose network was not added.
        """
        odd = want - {"logp", "entropy", "mean", "q_mean"}
        if odd:
            raise UserError(f"an offline policy has no output {', '.join(sorted(odd))}")
        mean = self.mean_action(batch.observation)
        evaluation = Evaluation(proxy=self.log_std is None)
        spread = torch.zeros_like(self.bound) if self.log_std is None else self.log_std.clamp(*LOG_STD_RANGE)
        if "logp" in want:
            evaluation.logp = Gaussian(mean, spread).log_prob(batch.action)
        if "entropy" in want:
            if self.log_std is None:
                raise UserError(
                    "this policy is deterministic and has no entropy: its method adds no standard deviation (add_spread)"
                )
            evaluation.entropy = Gaussian(mean, spread).entropy()
        if "mean" in want:
            evaluation.extras["mean"] = mean
        if "q_mean" in want:
            evaluation.extras["q_mean"] = self.q(batch.observation, mean, count=1, frozen=True)[0]
        return evaluation

    def mean_action(self, observation: Tensor, target: bool = False) -> Tensor:
        """Return the mean action [..., A] in [-1, 1] of the actor, or of its target."""
        network: Any = self.target_actor if target else self.actor
        return torch.tanh(outputs([network], observation)[0])

    def q(
        self, observation: Tensor, action: Tensor, *, count: int = 2, target: bool = False, frozen: bool = False
    ) -> Tensor:
        """Return the first `count` action values [count, ...]; with `frozen` no gradient flows to their weights."""
        networks: Any = self.target_critics if target else self.critics
        if not len(networks):
            raise UserError("this policy has no action values: its method does not add them (TwinQ)")
        return torch.stack(outputs(list(networks)[:count], torch.cat([observation, action], -1), frozen)).squeeze(-1)

    def v(self, observation: Tensor, target: bool = False) -> Tensor:
        """Return both state values [2, ...], or those of the targets."""
        networks: Any = self.target_values if target else self.value_nets
        return torch.stack([network(observation) for network in networks]).squeeze(-1)

    # acting --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observation: Any, *, deterministic: bool = True, generator: torch.Generator | None = None) -> Any:
        """Return raw actions [n, A] for raw observations [n, D], arrays or tensors: the mean, or a sample of a Gaussian actor."""
        raw = torch.as_tensor(observation, dtype=torch.float32, device=self.mean.device)
        action = self.mean_action((raw - self.mean) / self.std)
        if not deterministic and self.log_std is not None:
            action = Gaussian(action, self.log_std.clamp(*LOG_STD_RANGE)).sample(generator).clamp(-1, 1)
        action = action * self.bound
        return action if isinstance(observation, Tensor) else action.cpu().numpy()

    # saving --------------------------------------------------------------------------------------------------------

    def frozen(self) -> OfflinePolicy:
        """Return a frozen copy."""
        twin = copy.copy(self)
        twin.__dict__ = {key: value for key, value in self.__dict__.items() if key != "_generator"}
        twin = copy.deepcopy(twin)
        twin._generator = torch.Generator()
        return twin.requires_grad_(False)

    def save(self, folder: Any) -> None:
        """Write weights and sizes of all networks, added ones included."""
        config = {"shape": self.shape, "hidden": self.hidden, "grown": self.grown}
        write_policy(folder, "offline", self.state_dict(), config)

    @classmethod
    def load(cls, folder: str | Path) -> OfflinePolicy:
        """Read what `save` wrote.

        Raises:
            UserError: the folder holds no such policy.
        """
        config, tensors = read_policy(folder, "offline", "offline policy")
        try:
            observations, actions = config["shape"]
            policy = cls(observations, actions, config["hidden"])
            grow = {"critics": policy.add_critics, "values": policy.add_values, "spread": policy.add_spread}
            for name in config["grown"]:
                grow[name]()
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"there is no offline policy in {folder}: {error!r}") from error
        policy.load_state_dict(tensors)
        return policy


class NormedMLP(nn.Module):
    """Perceptron with layer normalisation before each ReLU."""

    def __init__(self, sizes: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        layers = [nn.Linear(i, o) for i, o in pairwise(sizes)]
        self.linears = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.LayerNorm(o) for o in sizes[1:-1])
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        for layer, norm in zip(self.linears, self.norms, strict=False):
            x = torch.relu(norm(layer(x)))
        last: Tensor = self.linears[-1](x)
        return last


def _still(module: Any) -> Any:
    return module.requires_grad_(False)
