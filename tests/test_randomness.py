"""The seed decides every global generator, and their states are saved and restored together."""

from __future__ import annotations

import random

import numpy as np
import torch

from vantage.randomness import random_state, seed_all, set_random_state


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_a_seed_decides_all_draws() -> None:
    generator = torch.Generator()
    before = random_state(generator)
    try:
        found = []
        for seed in (3, 3, 2**63 - 1):
            seed_all(seed)
            found.append(drawn())
        assert found[0] == found[1]
        assert all(one != other for one, other in zip(found[0], found[2], strict=True))
        held = random_state(generator)
        after = drawn()
        set_random_state(held, generator)
        assert drawn() == after
    finally:
        set_random_state(before, generator)
