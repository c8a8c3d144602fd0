"""Distributions over the actions of a control task, parametrised by a network's output.

All are batched over leading dimensions [...]. `log_prob` and `entropy` are summed over the coordinates of an action, so
that an action is one decision. Gradient flows from every result to the distribution's parameters.
"""

from __future__ import annotations

import math
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_SQRT_TWO_PI = 0.5 * math.log(2 * math.pi)
LOG_TWO = math.log(2.0)

D = TypeVar("D", bound="Distribution")


class Distribution(Protocol):
    """Interface of distributions over actions, batched over leading dimensions [...]."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log p(action), [...]."""
        ...

    def entropy(self) -> Tensor:
        """Return the entropy in nats, [...]."""
        ...

    def kl(self: D, other: D) -> Tensor:
        """Return KL(self || other) in nats, [...]; twice differentiable with respect to both."""
        ...

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Sample one action for each element of the batch; no gradient."""
        ...

    @property
    def mode(self) -> Tensor:
        """Most likely action."""
        ...


class Categorical:
    """Categorical distribution over A actions; action [...] int64, logits [..., A]."""

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = F.log_softmax(logits, -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log p(action), [...]."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return the entropy in nats, [...]."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        """Return KL(self || other) in nats, [...]."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Sample actions [...] int64, by the Gumbel-max trick; no gradient."""
        noise = torch.empty_like(self.log_probs).exponential_(generator=generator).log_()
        return (self.log_probs.detach() - noise).argmax(-1)

    @property
    def mode(self) -> Tensor:
        """Most likely action, [...] int64."""
        return self.log_probs.argmax(-1)


class MultiCategorical:
    """K independent choices, the k-th among sizes[k]; action [..., K] int64, logits [..., sum(sizes)].

    The logits are padded to [..., K, max(sizes)], so that any K costs one log-softmax.
    """

    def __init__(self, logits: Tensor, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        widest = max(sizes)
        if all(size == widest for size in sizes):
            table = logits.unflatten(-1, (len(sizes), widest))
        else:
            # The lowest finite number, not -inf: its probability is exactly 0, and its product with 0 is not NaN.
            present = torch.arange(widest, device=logits.device) < torch.tensor(sizes, device=logits.device)[:, None]
            table = logits.new_full((*logits.shape[:-1], len(sizes), widest), torch.finfo(logits.dtype).min)
            table = table.masked_scatter(present.expand_as(table), logits)
        self.log_probs = F.log_softmax(table, -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log p(action), [...]."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy in nats, [...]."""
        return -(self.log_probs.exp() * self.log_probs).sum((-2, -1))

    def kl(self, other: MultiCategorical) -> Tensor:
        """Return KL(self || other) in nats, [...]."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum((-2, -1))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Sample actions [..., K] int64; no gradient."""
        noise = torch.empty_like(self.log_probs).exponential_(generator=generator).log_()
        return (self.log_probs.detach() - noise).argmax(-1)

    @property
    def mode(self) -> Tensor:
        """Most likely action, [..., K] int64."""
        return self.log_probs.argmax(-1)


class Gaussian:
    """Independent normals; action and mean [..., D], log_std [D] or [..., D]."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean
        self.log_std = log_std

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density of the action, [...]."""
        scaled = (action - self.mean) * torch.exp(-self.log_std)
        return -0.5 * scaled.square().sum(-1) - self.log_std.sum(-1) - LOG_SQRT_TWO_PI * self.mean.shape[-1]

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, [...]."""
        entropy = self.log_std.sum(-1) + (0.5 + LOG_SQRT_TWO_PI) * self.mean.shape[-1]
        return entropy.expand(self.mean.shape[:-1])

    def kl(self, other: Gaussian) -> Tensor:
        """Return KL(self || other) in nats, [...]."""
        gap = self.log_std - other.log_std
        distance = ((self.mean - other.mean) * torch.exp(-other.log_std)).square()
        return 0.5 * (torch.exp(2 * gap) + distance - 1 - 2 * gap).sum(-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Sample actions [..., D]; no gradient."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return (self.mean + noise * self.log_std.exp()).detach()

    def of_noise(self, noise: Tensor) -> Tensor:
        """Return mean + std * noise, [..., D]: with standard normal noise a reparametrised sample, which carries gradient."""
        return self.mean + noise * self.log_std.exp()

    @property
    def mode(self) -> Tensor:
        """Mean, [..., D]."""
        return self.mean


class SquashedGaussian(Gaussian):
    """Distribution of the tanh of a Gaussian; actions are stored before the tanh, [..., D], so that no inverse is needed.

    `log_prob` is the log-density of tanh(action) in (-1, 1)^D: the Gaussian's less log(1 - tanh^2), written without
    cancellation. KL does not change under an invertible map, so it is the Gaussian's.
    """

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density of tanh(action), [...]."""
        return super().log_prob(action) - log_slope(action).sum(-1)

    def entropy(self) -> Tensor:
        """Return the differential entropy of tanh(action) in nats, [...].

        The Gaussian's plus E[log(1 - tanh^2)], which has no closed form and is taken by 20-node Gauss-Hermite quadrature
        (within 1e-4 up to a standard deviation of 1, 1e-2 up to 4): without noise, and differentiable.
        """
        nodes, weights = _hermite(self.mean)
        points = self.mean.unsqueeze(-1) + self.log_std.exp().unsqueeze(-1) * nodes
        return super().entropy() + (log_slope(points) * weights).sum((-2, -1))


def log_slope(action: Tensor) -> Tensor:
    """Return log(1 - tanh(action)^2), elementwise, exact for large actions too."""
    return 2 * (LOG_TWO - action - F.softplus(-2 * action))


def _hermite(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the standard normal's 20-point quadrature."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    return like.new_tensor(nodes), like.new_tensor(weights / weights.sum())
