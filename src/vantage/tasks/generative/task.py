"""Tasks of flow models: data to be matched, and a reward of the model's samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import UserError, nearest
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.flow import FlowPolicy
from vantage.rewards.specs import build, parse
from vantage.rollouts.denoising import DenoisingEngine, Sampler
from vantage.tasks.generative.digits import Digits
from vantage.tasks.generative.mixture import Mixture

DATA = {"flow2d": Mixture, "digits": Digits}
PRIMARY = {"flow2d": "shape", "digits": "reward"}
POLICY_OPTIONS = ("hidden", "activation", "frequencies")
SAMPLER_OPTIONS = ("steps", "noise", "kind", "shift")
TASK_OPTIONS = ("evaluation_steps",)


class Data(Protocol):
    """Training samples, and the rewards and metrics of generated ones."""

    classes: int
    sample_shape: tuple[int, ...]

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Sample training data [count, *shape] and their labels [count], None where there are none."""
        ...

    def rewards(self, x: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        """Return the named rewards [n] of generated samples."""
        ...

    def measure(self, x: Tensor, label: Tensor | None) -> dict[str, float]:
        """Return further metrics of generated samples, for the evaluation."""
        ...


class FlowTask:
    """Generation of samples with a high reward. Prompts are labels; data without labels have one prompt for each sample.

    Args:
        name: of the task, options included.
        data: training samples and rewards.
        **options: of the policy (`hidden`, `activation`, `frequencies`), of the sampler that is used where the method has none
            (`steps`, `noise`, `kind`, `shift`), and `evaluation_steps` (of the ODE, 40).

    Raises:
        UserError: an option is not known.
    """

    default_steps = 200

    def __init__(self, name: str, data: Data, **options: Any) -> None:
        known = (*POLICY_OPTIONS, *SAMPLER_OPTIONS, *TASK_OPTIONS)
        for option in options:
            if option not in known:
                raise UserError(
                    f"task {name}: no option {option!r}{nearest(option, known)} (options: {', '.join(known)})"
                )
        self.name = self.spec = name
        self.data = data
        self.size = data.classes
        self.policy_options = {key: options[key] for key in POLICY_OPTIONS if key in options}
        self.sampler = Sampler(**{key: options[key] for key in SAMPLER_OPTIONS if key in options})
        self.evaluation_steps = int(options.get("evaluation_steps", 40))
        if self.evaluation_steps < 1:
            raise UserError(f"task {name}: evaluation_steps={self.evaluation_steps} is out of range: at least 1")

    def prompts(self, ids: Tensor) -> Prompts:
        """Return the labels with these ids [B]; without labels the items are None."""
        return Prompts(ids, ids.tolist() if self.size else [None] * len(ids))

    def score(self, batch: Trajectories, context: Context) -> dict[str, Tensor]:
        """Return the named rewards [N] of generated samples; none for rows that are training pairs of the matching loss."""
        if "outcome" not in batch:
            return {}
        outcome = batch["outcome"].squeeze(1)
        return self.data.rewards(outcome, batch.prompt if self.size else None)

    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """Generate `samples` samples by the ODE, the same number per label, and score them.

        Returns:
            Mean of each reward as `score` and under its name, and the data's own metrics (`gold`, ...).
        """
        device = next(policy.parameters()).device
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(samples, *self.data.sample_shape, generator=generator).to(device)
        label = torch.arange(samples, device=device) % self.size if self.size else None
        drawn = policy.generate(noise, label, self.evaluation_steps)
        rewards = {name: float(value.double().mean()) for name, value in self.data.rewards(drawn, label).items()}
        return {"score": sum(rewards.values()), **rewards, **self.data.measure(drawn, label)}

    def make_policy(self, model: str | Path = "", seed: int = 0) -> FlowPolicy:
        """Return a policy with random weights, or the saved one in the folder `model`.

        Raises:
            UserError: the folder holds no policy, or one for samples of another shape.
        """
        if not model:
            return FlowPolicy.new(self.data.sample_shape, self.data.classes, seed=seed, **self.policy_options)
        policy = FlowPolicy.load(model)
        if (policy.shape, policy.classes) != (self.data.sample_shape, self.data.classes):
            raise UserError(
                f"the policy in {model} draws samples of shape {policy.shape} with {policy.classes} labels; {self.name} has"
                f" {self.data.sample_shape} with {self.data.classes}"
            )
        return policy

    def make_engine(self, policy: FlowPolicy, seed: int = 0) -> DenoisingEngine:
        """Return an engine that generates the policy's samples."""
        return DenoisingEngine(policy, self.sampler)


def task_from_spec(spec: str, options: Mapping[str, Any] | None = None) -> FlowTask:
    """Make the task of `flow2d:ring,reward=proxy` or `digits:class,mislabelled=0.5`.

    Raises:
        UserError: an unknown task or setting, or a value out of range.
    """
    name, settings = parse("task", spec, DATA, PRIMARY)
    return FlowTask(spec, build("task", name, DATA[name], settings), **dict(options or {}))
