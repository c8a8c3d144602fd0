"""Small classifier: a perceptron on the 1,797 handwritten digits of 8 by 8 pixels that come with scikit-learn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vantage.core.errors import UserError, require
from vantage.fields.compression.network import Network, Rows
from vantage.fields.compression.training import fit, seeded, trained

TRAIN = 1200
STEPS, BATCH, RATE = 800, 64, 3e-3


def digits(hidden: Sequence[int] | str = (64, 64), seed: int = 0, steps: int = STEPS) -> Network:
    """Return a perceptron 64-`hidden`-10 with rectifiers, trained on 1,200 digits; the other 597 are held out.

    Args:
        hidden: widths of the hidden layers; as text, 64x64.
        seed: seed of the split, the initial weights and the order of training.
        steps: optimiser steps of its training.

    Raises:
        UserError: there is no hidden layer, or one without neurons.
        ImportError: scikit-learn is not installed; the message names the extra.
    """
    given = str(hidden).split("x") if isinstance(hidden, str | int) else hidden
    try:
        widths = [int(width) for width in given]
    except ValueError:
        widths = []
    if not widths or min(widths) < 1:
        raise UserError(f"hidden={hidden!r}: give the widths of the hidden layers, each at least 1, as in 64x64")
    held = require("sklearn.datasets", "compression").load_digits()
    pixels = torch.from_numpy(held.data).float() / 16
    labels = torch.from_numpy(held.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    columns: Rows = (pixels[order], labels[order])
    network = Network(
        name="digits",
        model=seeded(seed, lambda: perceptron([64, *widths, 10])),
        train=tuple(column[:TRAIN] for column in columns),
        held=tuple(column[TRAIN:] for column in columns),
        predict=classify,
    )
    return trained(
        network,
        {"hidden": widths, "seed": seed, "steps": steps},
        (__file__,),
        lambda: fit(network, steps=steps, batch=BATCH, lr=RATE, seed=seed, decay=1e-4),
    )


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers of these widths with rectifiers between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def classify(model: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return logits [B, V] and labels [B] of rows (inputs, labels)."""
    return model(rows[0]), rows[1]
