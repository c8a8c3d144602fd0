"""Running mean and variance, stored as buffers of a policy and updated in numpy by rollouts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.floating]

EPSILON = 1e-8
CLIP = 10.0


class Moments:
    """Mean, variance and count in numpy arrays, which may be views; updated in place.

    Moments are merged as by Chan, Golub and LeVeque (1979). `count` starts at 1e-4 with mean 0 and variance 1, as in the
    reference implementations, so that the first values dominate.
    """

    __slots__ = ("_deviation", "_scale", "count", "mean", "var")

    def __init__(self, mean: Floats, var: Floats, count: Floats) -> None:
        self.mean, self.var, self.count = mean, var, count
        self._scale = np.empty_like(mean)
        self._deviation = np.empty_like(mean)

    def update(self, values: Floats) -> None:
        """Merge the moments of values [n, ...]; without values nothing changes."""
        n = len(values)
        if not n:
            return
        count = float(self.count)
        total = count + n
        if n == 1:
            delta = values[0] - self.mean
            self.var *= count / total
        else:
            mean = values.mean(0, dtype=np.float64)
            delta = mean - self.mean
            spread = values - mean
            # var <- (var * count + batch_var * n) / total, then the term of the difference of the means.
            self.var *= count / total
            self.var += np.square(spread).sum(0) / total
        self.mean += delta * (n / total)
        self.var += np.square(delta) * (count * n / (total * total))
        self.count[...] = total

    def normalize(self, values: Floats, out: Floats) -> None:
        """Write clip((values - mean) / sqrt(var + 1e-8), -10, 10) into `out`."""
        np.add(self.var, EPSILON, out=self._scale)
        np.sqrt(self._scale, out=self._scale)
        scaled = (values - self.mean) / self._scale
        np.minimum(scaled, CLIP, out=scaled)
        np.maximum(scaled, -CLIP, out=scaled)
        out[...] = scaled


class RunningMoments(nn.Module):
    """Running mean, variance [...] and count of observations, as float64 buffers.

    A rollout updates them through `on_host`; `forward` reads them without a change.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))

    @contextmanager
    def on_host(self) -> Iterator[Moments]:
        """Yield the moments as numpy arrays: views of the buffers on the CPU, elsewhere copies that are written back."""
        buffers = (self.mean, self.var, self.count)
        held = [buffer.detach().cpu().numpy() for buffer in buffers]
        yield Moments(*held)
        if self.mean.device.type != "cpu":
            for buffer, array in zip(buffers, held, strict=True):
                buffer.copy_(torch.from_numpy(array))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the observation [..., *shape] normalised and clipped to +-10, float32; the moments do not change."""
        scaled = (observation.double() - self.mean) / torch.sqrt(self.var + EPSILON)
        return scaled.clamp(-CLIP, CLIP).float()
