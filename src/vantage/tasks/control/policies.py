"""Policies of control tasks (Gaussian or categorical, flow, diffusion) and their warm start by behaviour cloning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vantage.core.errors import UserError, unknown
from vantage.policies.control import ControlPolicy
from vantage.policies.folder import CONFIG
from vantage.policies.generative import PROCESSES, GenerativePolicy
from vantage.policies.spaces import Actions, Observations

KINDS = ("distribution", *PROCESSES)
_GENERATIVE = ("hidden", "activation", "critic_hidden", "output_scale", "normalize_observations")
PROCESS_OPTIONS = tuple(dict.fromkeys((*_GENERATIVE, *(f.name for kind in PROCESSES.values() for f in fields(kind)))))


def make_policy(
    kind: str, observations: Observations, actions: Actions, options: Mapping[str, Any], seed: int
) -> ControlPolicy:
    """Return a new policy of a kind: 'distribution' (Gaussian or categorical), 'flow' or 'diffusion'.

    Raises:
        UserError: the kind is not known, or an option or the spaces do not fit it.
    """
    if kind not in KINDS:
        raise unknown("policy", kind, KINDS)
    if kind == "distribution":
        return ControlPolicy(observations, actions, seed=seed, **options)
    own = [f.name for f in fields(PROCESSES[kind])]
    odd = [name for name in options if name not in (*own, *_GENERATIVE)]
    if odd:
        raise UserError(f"policy={kind} has no option {odd[0]!r} (options: {', '.join((*own, *_GENERATIVE))})")
    process = PROCESSES[kind](**{name: value for name, value in options.items() if name in own})
    rest = {name: value for name, value in options.items() if name not in own}
    return GenerativePolicy(observations, actions, process, seed=seed, **rest)


def load_policy(folder: str | Path) -> ControlPolicy:
    """Load a policy of any of these kinds from a folder.

    Raises:
        UserError: the folder holds none.
    """
    config = Path(folder) / CONFIG
    kind = json.loads(config.read_text()).get("policy") if config.is_file() else None
    return GenerativePolicy.load(folder) if kind in PROCESSES else ControlPolicy.load(folder)


def clone(policy: Any, observation: Tensor, action: Tensor, steps: int, seed: int, lr: float = 3e-3) -> float:
    """Train a policy by behaviour cloning: `steps` steps of Adam on 256 pairs each, the learning rate falling to 0.

    A flow or diffusion policy uses its process's own loss; a Gaussian maximises the likelihood. A frozen copy inside the policy
    is set to the result.

    Args:
        policy: changed in place.
        observation: [n, *shape], as the policy sees them.
        action: [n, width], as the environment takes them.
        steps: optimiser steps, at least 1.
        seed: of the minibatches and of the loss's own noise.
        lr: learning rate of the first step.

    Returns:
        Loss of the last step.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in policy.actor_parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    loss = torch.zeros(())
    for step in range(steps):
        rows = torch.randint(len(observation), (256,), generator=generator)
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        if hasattr(policy, "imitation_loss"):
            loss = policy.imitation_loss(observation[rows], action[rows], generator).mean()
        else:
            loss = -policy.distribution_of(observation[rows]).log_prob(action[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if hasattr(policy, "settle"):
        policy.settle()
    return float(loss.detach())
