"""A control policy whose action is made by a generative process: noise turned into an action, step by step.

The process (`vantage.policies.flow_control.Flow`, `vantage.policies.diffusion.Diffusion`) says how noise becomes an action, what of
that is kept with the decision, and how likely the kept decision is. The rollout hands in all noise, so that a run follows
from its seed; what the learner needs later (a chain, auxiliary draws) is part of the stored decision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vantage.core.checkpoint import load_tensors
from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.policies import spaces
from vantage.policies.control import CONFIG, WEIGHTS, ControlPolicy
from vantage.policies.diffusion import Diffusion
from vantage.policies.flow_control import Flow
from vantage.policies.processes import Denoiser, Networks, Process
from vantage.policies.spaces import Actions, Observations

PROCESSES: dict[str, Any] = {kind.kind: kind for kind in (Flow, Diffusion)}


@dataclass(frozen=True)
class LongActions(Actions):
    """An action space of which `stored` numbers are kept a decision."""

    stored: int = 0

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of one decision in the column `action`."""
        return (self.stored,)


class GenerativePolicy(ControlPolicy):
    """Actor by a generative process, critic by a perceptron of its own; continuous actions.

    Actions are made in [-1, 1] and stretched, coordinate by coordinate, to the bounds of the action space where these are
    finite (`Actions.stretch`). The column `action` holds decisions as the process keeps them. Without noise (`deterministic`,
    `greedy`) the process starts from 0.

    Args:
        observations, actions: the spaces.
        process: how noise becomes an action.
        hidden, activation: of the actor.
        critic_hidden: of the critic.
        output_scale: on the actor's output.
        normalize_observations: as `ControlPolicy`.
        seed: of the initial weights.

    Raises:
        UserError: actions are not continuous, or observations are images.
    """

    def __init__(
        self,
        observations: Observations,
        actions: Actions,
        process: Process,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        critic_hidden: Sequence[int] = (64, 64),
        output_scale: float = 1.0,
        normalize_observations: bool = False,
        seed: int = 0,
    ) -> None:
        if actions.kind != "continuous":
            raise UserError(f"policy={process.kind} makes continuous actions, not {actions.kind} ones")
        if observations.kind == "image":
            raise UserError(f"policy={process.kind} reads numbers, not images")
        super().__init__(
            observations,
            actions,
            hidden=critic_hidden,
            activation=activation,
            normalize_observations=normalize_observations,
            seed=seed,
        )
        self.made_for = actions
        self.process = process
        width = actions.width
        self.actions = LongActions(
            **{f.name: getattr(actions, f.name) for f in fields(actions)}, stored=process.stored_width(width)
        )
        self.log_std = None
        generator = torch.Generator().manual_seed(seed)
        shape = (observations.width, width, process.time_features, hidden, activation, output_scale)
        self.actor = Denoiser(*shape, generator, process.own_numbers)  # type: ignore[assignment]
        self.early: Denoiser | None = None
        if process.frozen_steps:
            self.early = Denoiser(*shape, generator, process.own_numbers).requires_grad_(False)
            self.settle()
        self.noise_width = process.noise_width(width)
        self.config = {
            "policy": process.kind,
            "process": asdict(process),  # type: ignore[call-overload]
            "hidden": list(hidden),
            "activation": activation,
            "critic_hidden": list(critic_hidden),
            "output_scale": output_scale,
            "normalize_observations": normalize_observations,
        }

    @property
    def networks(self) -> Networks:
        """What the process runs on."""
        return Networks(self.actor, self.early)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.actor.parameters()).device

    def settle(self) -> None:
        """Let the frozen copy, which takes the process's first steps, be what the actor is now."""
        if self.early is not None:
            self.early.load_state_dict(self.actor.state_dict())

    def actor_parameters(self) -> Any:
        """The parameters that learn to act."""
        return self.actor.parameters()

    # judging -------------------------------------------------------------------------------------------------------

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Judge the batch's decisions: `logp` and `value` [N, T], heads, and the process's own outputs in `extras`.

        Raises:
            UserError: `want` names an output that this policy does not have, such as an entropy.
        """
        heads = want & set(self.heads)
        odd = want - heads - {"logp", "value"} - self.process.outputs
        if odd:
            raise UserError(f"a policy that acts by {self.process.kind} has no output {', '.join(sorted(odd))}")
        seen = self.encode(batch.observation)
        evaluation = Evaluation()
        if want - heads - {"value"}:
            evaluation = self.process.evaluate(self.networks, seen, batch, want)
        if "value" in want:
            evaluation.value = self.critic(seen).squeeze(-1)
        for name in sorted(heads):
            evaluation.extras[name] = self.heads[name](seen).squeeze(-1)
        return evaluation

    def head(self, output: Tensor) -> Any:
        """Make encoded observations [..., W] an object with `log_prob(decision)`."""
        return _Judge(self, output)

    def distribution_of(self, observation: Tensor) -> Any:
        """As `head`, for observations [..., *shape] as they stand in a batch."""
        return _Judge(self, self.encode(observation))

    def imitation_loss(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss [n] that teaches to take these actions of the environment [n, width] when seeing these observations."""
        middle, half = (torch.as_tensor(part, device=action.device) for part in self.made_for.centre)
        scaled = (action - middle) / half
        return self.process.imitation(self.networks, self.encode(observation), scaled, generator)

    def add_critics(self) -> None:
        """Refuse: a decision is the whole of the process, not an action."""
        raise UserError(f"a policy that acts by {self.process.kind} has no action values: take policy=distribution")

    # acting --------------------------------------------------------------------------------------------------------

    def actor_for(self, rows: int) -> Callable[[np.ndarray, np.ndarray], None]:
        """Return what hands on encoded observations; the process itself runs in `chooser`, which gets the noise."""

        def encode(observation: np.ndarray, out: np.ndarray) -> None:
            out[...] = self.encode(torch.from_numpy(observation).to(self.device)).cpu().numpy()

        return encode

    def chooser(self) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
        """Return `(encoded observation, noise [n, noise_width], decision) -> None`, which runs the process."""
        networks, device = self.networks, self.device

        def choose(encoded: np.ndarray, noise: np.ndarray, decision: np.ndarray) -> None:
            with torch.no_grad():
                given, drawn = torch.from_numpy(encoded).to(device), torch.from_numpy(noise).to(device)
                decision[...] = self.process.sample(networks, given, drawn).cpu().numpy()

        return choose

    @torch.no_grad()
    def act(
        self, observation: np.ndarray, *, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> np.ndarray:
        """Choose actions for raw observations [n, *shape], as the environment takes them."""
        raw = torch.from_numpy(np.ascontiguousarray(observation)).to(self.device)
        seen = self.encode(self.normalize(raw))
        noise = torch.zeros(len(seen), self.noise_width, device=self.device)
        if not deterministic:
            noise.normal_(generator=generator)
        return self.to_environment(self.process.sample(self.networks, seen, noise).cpu().numpy())

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        """Turn stored decisions [n, stored] into the environment's actions."""
        bounded = self.process.bounded(action[:, -self.made_for.width :])
        return self.made_for.stretch(bounded).reshape(-1, *self.made_for.shape)

    # keeping -------------------------------------------------------------------------------------------------------

    def save(self, folder: Any) -> None:
        """Write weights and settings into the folder."""
        kept = self.actions
        self.actions = self.made_for
        try:
            super().save(folder)
        finally:
            self.actions = kept

    @classmethod
    def load(cls, folder: Any) -> GenerativePolicy:
        """Read what `save` wrote.

        Raises:
            UserError: the folder holds no such policy.
        """
        path = Path(folder)
        config = json.loads((path / CONFIG).read_text()) if (path / CONFIG).is_file() else {}
        kind = config.pop("policy", None)
        if kind not in PROCESSES or not (path / WEIGHTS).is_file():
            raise UserError(f"{path} holds no policy that acts by {' or '.join(PROCESSES)}")
        seen, done = spaces.observations(config.pop("observations")), spaces.actions(config.pop("actions"))
        heads = config.pop("heads", [])
        policy = cls(seen, done, PROCESSES[kind](**config.pop("process")), **config)
        for name in heads:
            policy.add_head(name)
        policy.load_state_dict(load_tensors(path / WEIGHTS))
        return policy


class _Judge:
    """What the policy would do when seeing `observation` (encoded, [..., W])."""

    def __init__(self, policy: GenerativePolicy, observation: Tensor) -> None:
        self.policy, self.observation = policy, observation

    def log_prob(self, decision: Tensor) -> Tensor:
        """Return `logp` of decisions [..., stored], [...]."""
        return self.policy.process.log_prob(self.policy.networks, self.observation, decision)
