"""The 8 by 8 digits that come with scikit-learn, and the classifiers that score sampled ones."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.core import between, component, one_of
from vantage.core.errors import require
from vantage.policies.networks import MLP

REWARDS = ("class", "ink")
STEPS, WIDTH = 300, 64
"""Optimiser steps and width of a classifier; its accuracy on held-out digits is 97 %."""


@functools.lru_cache(maxsize=1)
def data() -> tuple[Tensor, Tensor]:
    """Return the 1797 digits: images [n, 64] with ink from -1 to 1, and labels [n].

    Raises:
        ImportError: scikit-learn is not installed.
    """
    found: Any = require("sklearn.datasets", "generative").load_digits()
    return torch.tensor(found.data, dtype=torch.float32) / 8 - 1, torch.tensor(found.target, dtype=torch.int64)


@functools.lru_cache(maxsize=2)
def classifier(half: int) -> nn.Module:
    """Return a classifier of images [n, 64] trained on the even (0) or odd (1) digits alone; the same in every process.

    Noise on the training images keeps it from being confident on images that are no digit.
    """
    images, labels = data()
    images, labels = images[half::2], labels[half::2]
    generator = torch.Generator().manual_seed(half)
    model = MLP([64, WIDTH, 10], "relu", 1.0, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with torch.enable_grad():
        for _ in range(STEPS):
            chosen = torch.randint(len(labels), (128,), generator=generator)
            noise = 0.3 * torch.randn(128, 64, generator=generator)
            loss = F.cross_entropy(model(images[chosen] + noise), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.requires_grad_(False).eval()


@component(label="task 'digits'")
class Digits:
    """Digits as samples [n, 64] with their labels; a prompt is the requested digit.

    Rewards: "class" is the probability that the first classifier gives to the requested digit, "ink" the mean ink of the image,
    in [0, 1], whatever the digit.

    Attributes:
        reward: "class" or "ink".
        mislabelled: share of the training pairs whose label is drawn at random, 0 to 1; it limits how well the base model follows
            its label.
    """

    reward: Annotated[str, one_of(REWARDS)] = "class"
    mislabelled: Annotated[float, between(0, 1)] = 0.3

    classes = 10
    sample_shape = (64,)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample `count` training pairs: images [count, 64] and labels [count]."""
        images, labels = data()
        chosen = torch.randint(len(labels), (count,), generator=generator)
        wrong = torch.rand(count, generator=generator) < self.mislabelled
        other = torch.randint(10, (count,), generator=generator)
        return images[chosen], torch.where(wrong, other, labels[chosen])

    def rewards(self, x: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        """Return the reward [n] of images [n, 64], under its name."""
        if self.reward == "ink":
            return {"ink": (x.clamp(-1, 1).mean(-1) + 1) / 2}
        assert label is not None
        network = classifier(0).to(x.device)
        return {"class": network(x).softmax(-1).gather(-1, label.unsqueeze(-1)).squeeze(-1)}

    def measure(self, x: Tensor, label: Tensor | None) -> dict[str, float]:
        """Return `gold`, the share that the second classifier assigns to the requested digit, and `distance` to the data.

        The distance is the root mean square per pixel to the nearest of all digits.
        """
        images, _ = data()
        right = classifier(1).to(x.device)(x).argmax(-1) == label
        nearest = torch.cdist(x, images.to(x)).amin(1) / 8
        return {"gold": float(right.double().mean()), "distance": float(nearest.double().mean())}
