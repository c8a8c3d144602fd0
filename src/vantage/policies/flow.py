"""Flow-matching model as a policy: a decision is one step of its sampler.

Convention (rectified flow, arXiv 2209.03003): x_t = (1 - t) x_0 + t x_1 with data at t = 0 and noise x_1 ~ N(0, I) at t = 1; the
network predicts the velocity v = E[x_1 - x_0 | x_t], and a sampler goes from t = 1 down to 0. Every step is normal:

    mu = x + [v + sigma^2 / (2 t) (x + (1 - t) v)] dt        dt = t' - t < 0        x' ~ N(mu, sigma^2 (-dt) I)

which for any diffusion sigma(t) >= 0 keeps, as the steps shrink, the marginals of the flow (Flow-GRPO, arXiv 2505.05470, eq. 9);
sigma = 0 is the ODE x' = x + v dt. The batch holds sigma, so that the policy evaluates samples of any such sampler.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories, declare
from vantage.policies.folder import read_policy, write_policy
from vantage.policies.networks import MLP
from vantage.policies.networks import activation as known_activation

declare("observation.x", "[N, T, ...]", "state before the step", "the denoising engine")
declare("observation.time", "[N, T]", "time before the step", "the denoising engine")
declare("observation.next_time", "[N, T]", "time after the step", "the denoising engine")
declare(
    "observation.sigma",
    "[N, T]",
    "standard deviation of the step's noise over the root of its duration",
    "the denoising engine",
)
declare("observation.label", "[N, T]", "requested class", "the denoising engine")

LOG_TWO_PI = math.log(2 * math.pi)


def over(row: Tensor, like: Tensor) -> Tensor:
    """Return a value per decision [...] with the trailing dimensions of `like` [..., *shape], each of size 1."""
    return row.reshape(*row.shape, *[1] * (like.dim() - row.dim()))


def transition(x: Tensor, velocity: Tensor, time: Tensor, next_time: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean [..., *shape], standard deviation [...]) of the sampler's step from x; float32 at least.

    Args:
        x: state [..., *shape].
        velocity: the network's output at x [..., *shape]; gradient flows through it.
        time: time of x, in (0, 1], [...].
        next_time: time of the next state, in [0, time), [...].
        sigma: diffusion at `time`, at least 0, [...].
    """
    if velocity.dtype in (torch.float16, torch.bfloat16):
        velocity, x = velocity.float(), x.float()  # a step is small relative to x: half precision would lose it
    dt = next_time - time
    pull = 0.5 * sigma.square() / time
    mean = x * over(1 + pull * dt, x) + velocity * over((1 + pull * (1 - time)) * dt, x)
    return mean, sigma * (-dt).sqrt()


def normal_logp(action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return log N(action; mean, std^2 I) [...], summed over the trailing dimensions; 0 where std is 0."""
    size = math.prod(action.shape[std.dim() :])
    moves = std > 0
    safe = torch.where(moves, std, 1.0)
    scaled = ((action - mean) / over(safe, action)).square().flatten(std.dim()).sum(-1)
    return torch.where(moves, -0.5 * scaled - size * (safe.log() + 0.5 * LOG_TWO_PI), 0.0)


class VelocityMLP(nn.Module):
    """Perceptron that predicts the velocity from state, time and label.

    Args:
        shape: shape of a sample.
        classes: number of labels, 0 for none.
        hidden: widths of the hidden layers.
        frequencies: the inputs for the time are t and sine and cosine of k pi t for k up to this.
        activation: name, as in `vantage.policies.networks`.
        seed: seed of the initial weights.
    """

    _waves: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 0,
        hidden: Sequence[int] = (64, 64, 64),
        frequencies: int = 4,
        activation: str = "silu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.classes = tuple(shape), classes
        self.size = math.prod(self.shape)
        inputs = self.size + 1 + 2 * frequencies + classes
        self.mlp = MLP([inputs, *hidden, self.size], activation, 1.0, torch.Generator().manual_seed(seed))
        self.register_buffer("_waves", math.pi * torch.arange(1, frequencies + 1), persistent=False)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Map x [..., *shape], time [...] and label [...] to the velocity [..., *shape]."""
        lead = time.shape
        angle = time.unsqueeze(-1) * self._waves
        seen = [x.reshape(*lead, self.size), time.unsqueeze(-1), angle.sin(), angle.cos()]
        if self.classes:
            assert label is not None
            seen.append(F.one_hot(label, self.classes).to(x.dtype))
        return self.mlp(torch.cat(seen, -1)).reshape(x.shape)


class FlowPolicy(nn.Module):
    """Policy that evaluates the steps of a sampler by their exact densities, and generates samples.

    In a batch, `action` [N, T, *shape] is the state after the step, and `observation` a table of `x` [N, T, *shape] before it,
    `time`, `next_time` and `sigma` [N, T], and with labels `label` [N, T]. A batch without `sigma` holds pairs of flow matching:
    `action` is the velocity x_1 - x_0 to be predicted, and `logp` the proxy -mean (v - action)^2.

    Args:
        network: `(x, time, label) -> velocity`, with attributes `shape` and `classes`.
        config: arguments that make the network; None for a network of the user's own, which `load` must be given.
    """

    memoryless = True

    def __init__(self, network: Any, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.network = network
        self.config = config

    @classmethod
    def new(
        cls,
        shape: Sequence[int],
        classes: int = 0,
        *,
        hidden: Sequence[int] = (64, 64, 64),
        frequencies: int = 4,
        activation: str = "silu",
        seed: int = 0,
    ) -> FlowPolicy:
        """Return a policy with a perceptron of random weights; the arguments are `VelocityMLP`'s.

        Raises:
            UserError: an argument is out of range.
        """
        if not shape or min(shape) < 1 or classes < 0 or frequencies < 0 or not hidden or min(hidden) < 1:
            raise UserError(
                f"flow: shape={tuple(shape)}, classes={classes}, hidden={tuple(hidden)}, frequencies={frequencies} is out of"
                " range: sizes and widths are at least 1, classes and frequencies at least 0"
            )
        known_activation(activation)
        config = {
            "shape": list(shape),
            "classes": classes,
            "hidden": list(hidden),
            "frequencies": frequencies,
            "activation": activation,
        }
        return cls(VelocityMLP(shape, classes, hidden, frequencies, activation, seed), config)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample."""
        return tuple(self.network.shape)

    @property
    def classes(self) -> int:
        """Number of labels, 0 for none."""
        return int(self.network.classes)

    def velocity(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the velocity [..., *shape] at x [..., *shape] and time [...]; carries gradient."""
        found: Tensor = self.network(x, time, label if self.classes else None)
        return found

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Evaluate the batch's decisions; with gradient.

        Returns:
            `logp` [N, T]: exact log-density of the step, summed over the sample's dimensions; 0 for steps without noise.
            `entropy` [N, T]: that of the step, a constant. In `extras`, where in `want`: the step's `mean` [N, T, *shape] and
            `velocity` [N, T, *shape].
        """
        seen = batch.observation
        x, time = seen["x"], seen["time"]
        velocity = self.velocity(x, time, seen.get("label", None))
        evaluation = Evaluation(extras={"velocity": velocity} if "velocity" in want else {})
        sigma = seen.get("sigma", None)
        if sigma is None:
            evaluation.logp = -(velocity.float() - batch.action).square().flatten(2).mean(-1)
            evaluation.proxy = True
            return evaluation
        mean, std = transition(x, velocity, time, seen["next_time"], sigma)
        if "logp" in want:
            evaluation.logp = normal_logp(batch.action, mean, std)
        if "mean" in want:
            evaluation.extras["mean"] = mean
        if "entropy" in want:
            size = math.prod(self.shape)
            evaluation.entropy = torch.where(std > 0, size * (std.clamp(min=1e-30).log() + 0.5 * (1 + LOG_TWO_PI)), 0.0)
        return evaluation

    @torch.no_grad()
    def generate(self, noise: Tensor, label: Tensor | None = None, steps: int = 40) -> Tensor:
        """Return samples [N, *shape] from noise [N, *shape] by `steps` equal Euler steps of the ODE."""
        x = noise
        times = torch.linspace(1.0, 0.0, steps + 1).tolist()
        for now, then in pairwise(times):
            x = x + (then - now) * self.velocity(x, x.new_full((len(x),), now), label)
        return x

    # saving --------------------------------------------------------------------------------------------------------

    def frozen(self) -> FlowPolicy:
        """Return a frozen copy."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    def save(self, folder: Any) -> None:
        """Write `model.safetensors` and `config.json` into the folder."""
        write_policy(folder, "flow", self.state_dict(), {"network": self.config})

    @classmethod
    def load(cls, folder: Any, network: Any = None) -> FlowPolicy:
        """Read what `save` wrote; `network` takes the weights where it is not this module's perceptron.

        Raises:
            UserError: the folder holds no flow policy; the message says what is missing.
        """
        config, tensors = read_policy(folder, "flow", "flow policy")
        if network is None and config["network"] is None:
            raise UserError(
                f"{folder} holds the weights of a network of the user's own: give it, FlowPolicy.load(..., network)"
            )
        policy = cls(network) if network is not None else cls.new(**config["network"])
        policy.load_state_dict(tensors)
        return policy
