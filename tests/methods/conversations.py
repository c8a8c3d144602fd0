"""Batches of conversations, for methods of several turns."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vantage.core import Trajectories


def talk(turns: Sequence[Sequence[int]], inserted: int = 2, seed: int = 0) -> Trajectories:
    """Rows whose turns have these numbers of the policy's tokens, `inserted` of the environment between two turns."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(turns)
    length = torch.tensor([sum(row) + inserted * (len(row) - 1) for row in turns])
    steps = int(length.max())
    mask = torch.zeros(rows, steps, dtype=torch.bool)
    turn = torch.zeros(rows, steps, dtype=torch.int64)
    for i, row in enumerate(turns):
        place = 0
        for number, size in enumerate(row):
            mask[i, place : place + size] = True
            turn[i, place:] = number
            place += size + inserted
    last = torch.arange(steps) == (length - 1).unsqueeze(1)
    return Trajectories(
        {
            "mask": mask,
            "turn": turn,
            "length": length,
            "logp_old": -torch.rand(rows, steps, generator=generator, dtype=torch.float64) - 0.1,
            "reward": torch.zeros(rows, steps, dtype=torch.float64),
            "terminated": last,
            "truncated": torch.zeros(rows, steps, dtype=torch.bool),
            "group": torch.zeros(rows, dtype=torch.int64),
            "prompt": torch.zeros(rows, dtype=torch.int64),
        }
    )
