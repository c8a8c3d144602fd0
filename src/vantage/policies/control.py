"""Policy for control: separate actor and critic perceptrons, or one convolutional trunk for images."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.policies import spaces
from vantage.policies.control_options import check_options
from vantage.policies.distributions import (
    Categorical,
    Distribution,
    Gaussian,
    MultiCategorical,
    SquashedGaussian,
)
from vantage.policies.folder import read_policy, write_policy
from vantage.policies.networks import MLP, ActionValues, HostMLP, NatureCNN, both, host_actor
from vantage.policies.normalize import RunningMoments
from vantage.policies.spaces import Actions, Observations

ACTOR_GAIN = 0.01
CRITIC_GAIN = 1.0
CRITICS_SEED = zlib.crc32(b"action values")
LOG_STD_RANGE = (-20.0, 2.0)


class ControlPolicy(nn.Module):
    """Actor and critic for vectors, whole numbers or images; actions discrete, multi-discrete or continuous.

    Weights are orthogonal (gain sqrt(2), the actor's last layer 0.01, the critic's 1), biases zero. A Gaussian's log
    standard deviation is a parameter that does not depend on the state, unless `state_dependent_std`.

    `evaluate` and `value_of` take observations as a batch stores them: normalised, where the policy normalises. `act`
    takes raw ones and normalises by the present statistics.

    Args:
        observations: observation space.
        actions: action space.
        hidden: widths of the hidden layers of the actor and of the critic; for images, width of the trunk's output alone.
        activation: 'tanh', 'relu', 'silu', 'elu' or 'gelu'.
        shared: one trunk for actor and critic; None: for images.
        state_dependent_std: the actor also outputs the log standard deviation (clipped to [-20, 2]).
        squash: tanh of the Gaussian, scaled to the bounds of the action space, which must be finite.
        log_std: initial log standard deviation.
        normalize_observations: keep running moments of the observations and normalise by them.
        seed: seed of the initial weights.

    Raises:
        UserError: an option does not fit the spaces.
    """

    memoryless = True
    _offsets: Tensor

    def __init__(
        self,
        observations: Observations,
        actions: Actions,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        shared: bool | None = None,
        state_dependent_std: bool = False,
        squash: bool = False,
        log_std: float = 0.0,
        normalize_observations: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        image = observations.kind == "image"
        shared = image if shared is None else shared
        check_options(
            observations, actions, hidden, activation, shared, state_dependent_std, squash, normalize_observations
        )
        self.observations = observations
        self.actions = actions
        self.config: dict[str, Any] = {
            "hidden": list(hidden),
            "activation": activation,
            "shared": shared,
            "state_dependent_std": state_dependent_std,
            "squash": squash,
            "log_std": log_std,
            "normalize_observations": normalize_observations,
        }
        generator = torch.Generator().manual_seed(seed)
        outputs = actions.width * (2 if state_dependent_std else 1)
        self.trunk: nn.Module | None = None
        if image:
            self.trunk = NatureCNN(observations.shape, hidden[-1], generator)
        elif shared:
            self.trunk = MLP([observations.width, *hidden], activation, 2.0**0.5, generator, activate_last=True)
        inner = [hidden[-1]] if shared else [observations.width, *hidden]
        self.actor = MLP([*inner, outputs], activation, ACTOR_GAIN, generator)
        self.critic = MLP([*inner, 1], activation, CRITIC_GAIN, generator)
        self._inner = inner
        self.heads = nn.ModuleDict()
        self.action_values: ActionValues | None = None
        self.log_std: nn.Parameter | None = None
        if actions.kind == "continuous" and not state_dependent_std:
            self.log_std = nn.Parameter(torch.full((actions.width,), float(log_std)))
        self._log_std_shift = log_std
        self.normalizer = RunningMoments(observations.shape) if normalize_observations else None
        if observations.kind == "discrete":
            sizes = torch.tensor(observations.sizes)
            offsets = sizes.cumsum(0) - sizes - torch.tensor(observations.start)
            self.register_buffer("_offsets", offsets, persistent=False)
        self._bounds = actions.bounds
        self._start = np.array(actions.start, dtype=np.int64)
        self._as_is = actions.kind == "discrete" and actions.start == (0,)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.actor.linears[0].weight.device

    # evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Evaluate the batch's decisions from its columns `observation` [N, T, ...] and `action`.

        Returns logp, entropy and value [N, T], hidden [N, T, H] (the actor's), and the distribution: an object with
        `log_prob`, `entropy`, `kl` and `mode`; added heads are in `extras`, [N, T] each. Only the outputs in `want` are
        computed. They carry gradient.

        Raises:
            UserError: `want` names an output that this policy does not have.
        """
        heads = want & set(self.heads)
        odd = want - heads - {"logp", "entropy", "value", "hidden", "distribution"}
        if odd:
            raise UserError(f"a control policy has no output {', '.join(sorted(odd))}")
        features = self._features(batch.observation)
        evaluation = Evaluation()
        acts, values = bool(want & {"logp", "entropy", "distribution"}), "value" in want
        output = value = None
        if "hidden" in want:
            evaluation.hidden = hidden = self.actor.hidden(features)
            output = self.actor.output(hidden) if acts else None
        elif acts and values:
            output, value = both(features, self.actor, self.critic)
        elif acts:
            output = self.actor(features)
        if values:
            evaluation.value = (self.critic(features) if value is None else value).squeeze(-1)
        if acts:
            assert output is not None
            distribution = self.head(output)
            if "logp" in want:
                evaluation.logp = distribution.log_prob(batch.action)
            if "entropy" in want:
                evaluation.entropy = distribution.entropy()
            if "distribution" in want:
                evaluation.distribution = distribution
        for name in sorted(heads):
            evaluation.extras[name] = self.heads[name](features).squeeze(-1)
        return evaluation

    def add_head(self, name: str) -> None:
        """Add a further value head, of the critic's shape, as an output of this name; a second call changes nothing."""
        if name not in self.heads:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            head = MLP([*self._inner, 1], self.config["activation"], CRITIC_GAIN, generator)
            self.heads[name] = head.to(self.device)

    def add_critics(self) -> None:
        """Add twin action values and their targets, with the actor's hidden layers; a second call changes nothing.

        Raises:
            UserError: actions are not continuous, or actor and critic share a trunk.
        """
        if self.actions.kind != "continuous" or self.trunk is not None:
            raise UserError(
                "action values need continuous actions, and an actor with a network of its own (shared=False)"
            )
        if self.action_values is None:
            sizes = (self.observations.width + self.actions.width, self.config["hidden"], self.config["activation"])
            self.action_values = ActionValues(*sizes, torch.Generator().manual_seed(CRITICS_SEED)).to(self.device)

    def q(self, observation: Tensor, action: Tensor, *, target: bool = False, frozen: bool = False) -> Tensor:
        """Return both action values [2, ...] of observations [..., *shape] and actions [..., D] as a batch stores them.

        `target` evaluates the targets; with `frozen` gradient flows to the action alone, not to the weights.

        Raises:
            UserError: there are none: a component adds them by `add_critics` in its `prepare`.
        """
        if self.action_values is None:
            raise UserError(
                "this policy has no action values: the component that reads them must call policy.add_critics()"
            )
        if self.config["squash"]:
            unit = torch.tanh(action)
        else:
            middle, half = (torch.as_tensor(part, device=action.device) for part in self.actions.centre)
            unit = (action - middle) / half
        return self.action_values(torch.cat([self.encode(observation), unit], -1), target=target, frozen=frozen)

    def targets(self) -> list[tuple[Tensor, Tensor]]:
        """Return (parameter, target's parameter) of all networks with targets."""
        return [] if self.action_values is None else self.action_values.targets()

    def value_of(self, observation: Tensor) -> Tensor:
        """Return the critic's value [...] of observations [..., *shape] as a batch stores them."""
        return self.critic(self._features(observation)).squeeze(-1)

    def distribution_of(self, observation: Tensor) -> Distribution:
        """Return the distribution of the action for observations [..., *shape] as a batch stores them."""
        return self.head(self.outputs_of(observation))

    @torch.no_grad()
    def values(self, batch: Trajectories) -> tuple[Tensor, Tensor]:
        """Return `value` and `next_value` [N, T] of a rollout with its bootstrap columns; no gradient.

        The state after decision t is the one before decision t + 1; the state after the last is in `last_observation`
        [N, *shape]; where an episode was truncated it is in `final_observation` [N, K, *shape], of which row n holds one
        for each of its decisions that are truncated and not terminated, in order. Without a column `final_observation` such
        states are in the row itself, as where an environment resets one step late. After a termination `next_value` is
        undefined.
        """
        value = self._value_in_parts(batch.observation)
        finals = batch.get("final_observation")
        last = batch["last_observation"]
        cut = None
        if finals is not None:
            cut = batch.truncated & ~batch.terminated
            held = torch.arange(finals.shape[1], device=cut.device) < cut.sum(-1, keepdim=True)
            last = torch.cat([last, finals[held]])
        after = self.value_of(last)
        rows = len(batch)
        next_value = torch.cat([value[:, 1:], after[:rows, None]], 1)
        if cut is not None:
            # Both are ordered by row, and within a row by truncation.
            next_value[cut] = after[rows:]
        return value, next_value

    def _value_in_parts(self, observation: Tensor, inputs: int = 2**22) -> Tensor:
        """Return values [N, T] of [N, T, *shape], in chunks of about `inputs` numbers where there is a convolutional trunk."""
        rows, steps = observation.shape[:2]
        part = rows if self.trunk is None else max(1, inputs // max(1, steps * self.observations.width))
        if part >= rows:
            return self.value_of(observation)
        return torch.cat([self.value_of(some) for some in observation.split(part)])

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that only the value depends on."""
        return self.critic.parameters()

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that the action depends on, a shared trunk included."""
        return (
            p for name, p in self.named_parameters() if not name.startswith(("critic.", "heads.", "action_values."))
        )

    def head(self, output: Tensor) -> Distribution:
        """Return the distribution of the actor's outputs [..., outputs]."""
        if self.actions.kind == "discrete":
            return Categorical(output)
        if self.actions.kind == "multidiscrete":
            return MultiCategorical(output, self.actions.sizes)
        if self.log_std is None:
            mean, log_std = output.chunk(2, -1)
            log_std = (log_std + self._log_std_shift).clamp(*LOG_STD_RANGE)
        else:
            mean, log_std = output, self.log_std
        return SquashedGaussian(mean, log_std) if self.config["squash"] else Gaussian(mean, log_std)

    def _features(self, observation: Tensor) -> Tensor:
        if self.observations.kind == "image":
            assert self.trunk is not None
            return self.trunk(observation)
        x = self.encode(observation)
        return x if self.trunk is None else self.trunk(x)

    def encode(self, observation: Tensor) -> Tensor:
        """Return the first layer's input [..., width], floats, of observations [..., *shape]."""
        if self.observations.kind == "discrete":
            coordinates = observation.unsqueeze(-1) if not self.observations.shape else observation
            index = coordinates.long() + self._offsets
            one_hot = torch.zeros(*index.shape[:-1], self.observations.width, device=index.device)
            return one_hot.scatter_(-1, index, 1.0)
        lead = observation.shape[: observation.dim() - len(self.observations.shape)]
        return observation.reshape(*lead, self.observations.width).float()

    # acting --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(
        self, observation: np.ndarray, *, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> np.ndarray:
        """Return actions, as the environment takes them, [n, ...], for raw observations [n, *shape].

        Observations are normalised by the present statistics. `deterministic` takes the mode.
        """
        raw = torch.from_numpy(np.ascontiguousarray(observation)).to(self.device)
        distribution = self.distribution_of(self.normalize(raw))
        action = distribution.mode if deterministic else distribution.sample(generator)
        return self.to_environment(action.cpu().numpy())

    def normalize(self, observation: Tensor) -> Tensor:
        """Normalise raw observations [..., *shape] by the present statistics."""
        return observation if self.normalizer is None else self.normalizer(observation)

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        """Convert stored actions [n, ...] to the environment's: shifted, clipped or squashed, reshaped."""
        if self._as_is:
            return action
        space = self.actions
        if space.kind == "continuous":
            low, high = self._bounds
            squashed = self.config["squash"]
            bounded = space.stretch(np.tanh(action)) if squashed else np.minimum(np.maximum(action, low), high)
            return bounded.reshape(-1, *space.shape).astype(np.float32, copy=False)
        shifted = action + self._start
        return shifted if space.kind == "discrete" else shifted.reshape(-1, *space.shape)

    def outputs_of(self, observation: Tensor) -> Tensor:
        """Return the actor's outputs [..., outputs], the parameters of `head`'s distribution."""
        return self.actor(self._features(observation))

    def actor_for(self, rows: int) -> Callable[[np.ndarray, np.ndarray], None]:
        """Return `(observation [n, *shape], out [n, outputs]) -> None` for up to `rows` observations as a batch stores them.

        It is the actor without gradient, in numpy on views of the parameters where the network is small and on the CPU. It sees
        optimiser steps taken in place, but not a move to another device: make a new one for each rollout.
        """
        if self.trunk is None and HostMLP.suits(self.actor):
            return host_actor(self.observations, HostMLP(self.actor, rows))
        device = self.device

        def in_torch(observation: np.ndarray, out: np.ndarray) -> None:
            with torch.no_grad():
                out[...] = self.outputs_of(torch.from_numpy(observation).to(device)).cpu().numpy()

        return in_torch

    # saving --------------------------------------------------------------------------------------------------------

    def frozen(self) -> ControlPolicy:
        """Return a frozen copy."""
        held = copy.deepcopy(self)
        held.requires_grad_(False)
        return held.eval()

    def save(self, folder: Any) -> None:
        """Write `model.safetensors` (weights and statistics) and `config.json` into the folder."""
        config = {
            "observations": spaces.to_plain(self.observations),
            "actions": spaces.to_plain(self.actions),
            **self.config,
            **({"heads": list(self.heads)} if len(self.heads) else {}),
            **({"action_values": True} if self.action_values is not None else {}),
        }
        write_policy(folder, "control", self.state_dict(), config)

    @classmethod
    def load(cls, folder: Any) -> ControlPolicy:
        """Read what `save` wrote.

        Raises:
            UserError: the folder holds no control policy; the message says what is missing.
        """
        config, tensors = read_policy(folder, "control", "control policy")
        seen, done = spaces.observations(config.pop("observations")), spaces.actions(config.pop("actions"))
        heads, twins = config.pop("heads", []), config.pop("action_values", False)
        policy = cls(seen, done, **config)
        for name in heads:
            policy.add_head(name)
        if twins:
            policy.add_critics()
        policy.load_state_dict(tensors)
        return policy
