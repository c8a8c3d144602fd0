"""Evaluates a method's loss on given log-probabilities, without a policy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vantage.core import Evaluation, Method, Trajectories
from vantage.core.context import Metrics
from vantage.core.loss import method_loss, weighted


class Leaf:
    """A policy whose outputs are given tensors."""

    memoryless = False

    def __init__(self, **outputs: Tensor) -> None:
        self.outputs = outputs

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        return Evaluation(**self.outputs)


def context(**fields: Any) -> Any:
    """A context that records metrics and holds what a part asks for."""
    metrics = Metrics()
    return SimpleNamespace(record=metrics.record, metrics=metrics, generator=torch.Generator().manual_seed(0), **fields)


def loss_of(method: Method, batch: Trajectories, **outputs: Tensor) -> Tensor:
    """The method's loss on a whole minibatch, from outputs of the policy."""
    where = context(method=method)
    ready = weighted(batch, method.averaging)
    return method_loss(Evaluation(**outputs), ready, where, len(batch))


def random_batch(
    rows: int = 8, steps: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64, size: int = 4
) -> Trajectories:
    """Ragged rows in groups of `size`, with log-probabilities of three policies and binary scores."""
    generator = torch.Generator().manual_seed(seed)

    def logs() -> Tensor:
        return -torch.rand(rows, steps, generator=generator, dtype=dtype) - 0.1

    length = torch.randint(1, steps + 1, (rows,), generator=generator)
    last = torch.arange(steps) == (length - 1).unsqueeze(1)
    return Trajectories(
        {
            "mask": torch.arange(steps) < length.unsqueeze(1),
            "length": length,
            "logp_old": logs(),
            "logp_ref": logs(),
            "group": torch.arange(rows) // size,
            "score": torch.randint(2, (rows,), generator=generator).to(dtype),
            "reward": torch.zeros(rows, steps, dtype=dtype),
            "terminated": last,
            "truncated": torch.zeros(rows, steps, dtype=torch.bool),
            "prompt": torch.arange(rows) // size,
        }
    )


def new_logp(batch: Trajectories, seed: int = 1, scale: float = 0.3) -> Tensor:
    """Log-probabilities near the old ones, some ratios beyond the usual clip; a leaf that takes gradient."""
    noise = torch.randn(batch.logp_old.shape, generator=torch.Generator().manual_seed(seed), dtype=batch.logp_old.dtype)
    return (batch.logp_old + scale * noise).requires_grad_()
