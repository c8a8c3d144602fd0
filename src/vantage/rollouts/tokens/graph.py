"""Decode steps by a captured CUDA graph, replayed without work on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vantage.rollouts.tokens.sampling import Draw, Sampling, draw
from vantage.rollouts.tokens.shared import NEVER, attended

if TYPE_CHECKING:
    from vantage.rollouts.tokens.cache import Storage

WINDOW = 32
"""Largest number of replayed steps before the host reads the drawn tokens."""


class DecodeGraph:
    """Decode step of a lean cache, from token to token, on tensors that keep their addresses.

    The values that change from step to step (the tokens, the column that is written, the step's number) are in tensors that the
    step itself advances, so a replay needs nothing from the host. The attention runs over all columns that the storage
    has, those not yet written masked. A graph is valid for one state of the cache's storage (`Storage.version`).

    Args:
        cache: the rows; its storage must not be replaced while the graph is used.
        sampling: settings of sampling.
        capture: capture a CUDA graph; False runs the same step operation by operation (any device).
    """

    def __init__(self, cache: Storage, sampling: Sampling, *, capture: bool) -> None:
        device, rows = cache.weights.device, cache.rows
        self.cache, self.sampling, self.version = cache, sampling, cache.version
        self.low, self.columns = cache.low, cache.kv[0].shape[3]
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.position = torch.zeros_like(self.tokens)
        self.column = torch.zeros(1, dtype=torch.int64, device=device)
        self.step = torch.zeros_like(self.column)
        self.stream = torch.zeros(WINDOW, rows, dtype=torch.float64, device=device)
        self.bias = torch.zeros(rows, self.columns - self.low, device=device)
        self.drawn: list[Tensor] = []
        # The table of rotations must not be reallocated while its address is in the graph.
        self.table = cache.weights.table(cache.farthest + self.columns - cache.end + 1)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.capture = capture

    def fits(self, cache: Storage, sampling: Sampling, steps: int) -> bool:
        """Return whether the graph can run this many steps of the cache in its present state."""
        same = cache is self.cache and cache.version == self.version and sampling == self.sampling
        return same and cache.end + steps <= self.columns

    def run(self, pending: Tensor, stream: Tensor | None, steps: int) -> Draw:
        """Decode `steps` tokens per row [n, steps] from the pending ones [n] with uniform numbers [steps, n]."""
        cache = self.cache
        self.tokens.copy_(pending)
        self.position.copy_(cache.position)
        self.column.fill_(cache.end)
        self.step.zero_()
        self.bias.copy_(cache.explicit()[: cache.rows, self.low :])
        self.bias[:, cache.end - self.low :] = NEVER
        if stream is not None:
            self.stream[:steps] = stream[:steps]
        done = 0
        if self.graph is None:
            # The first step runs by itself: its result is used, and libraries initialise before the capture.
            self._prepare()
            self._advance()
            done = 1
            if self.capture and steps > 1:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self._advance()
        for _ in range(steps - done):
            if self.graph is not None:
                self.graph.replay()
            else:
                self._advance()
        cache.position = self.position.clone()
        cache.end += steps
        cache.farthest += steps
        cache.ahead += steps
        unlike = {id(x): x[:steps].t().clone() for x in self.drawn}
        return Draw(*(unlike[id(x)] for x in self.drawn))

    def _prepare(self) -> None:
        """Allocate tensors for the draws; columns that share a tensor stay shared."""
        if self.drawn:
            return
        sampling, shape = self.sampling, (WINDOW, len(self.tokens))
        token = torch.zeros(shape, dtype=torch.int64, device=self.tokens.device)
        logp, entropy = (torch.zeros(shape, device=token.device) for _ in range(2))
        other = torch.zeros_like(logp) if sampling.truncates or sampling.greedy else logp
        raw = torch.zeros_like(logp) if sampling.temperature != 1 else logp
        self.drawn = [token, logp, other, raw, entropy]

    def _advance(self) -> None:
        """Feed the tokens, draw the next, and advance the step."""
        cache, weights, rows = self.cache, self.cache.weights, len(self.tokens)
        plan = cache.plan()
        self.bias.index_fill_(1, self.column - self.low, 0.0)
        bias = cache.spread(self.bias)

        def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
            held = cache.kv[layer][:, :rows]
            held.index_copy_(3, self.column, kv.transpose(0, 1).unsqueeze(3))
            keys, values = held.flatten(1, 2)[:, :, self.low :]
            return attended(layer, q, keys, values, bias, weights.scale, plan)

        logits = weights.logits(weights.trunk(self.tokens, self.position, 0, attend))
        uniform = None if self.sampling.greedy else self.stream.index_select(0, self.step).squeeze(0)
        found = draw(logits, uniform, self.sampling)
        for kept, new in {id(kept): (kept, new) for kept, new in zip(self.drawn, found)}.values():
            kept.index_copy_(0, self.step, new.unsqueeze(0))
        self.tokens.copy_(found.token)
        for counter in (self.position, self.column, self.step):
            counter.add_(1)


def replayed(cache: Storage, pending: Tensor, stream: Tensor | None, steps: int, sampling: Sampling) -> Draw:
    """Decode up to `WINDOW` tokens per row [n, k] with the cache's graph, captured again when the cache has changed."""
    steps = min(steps, WINDOW)
    cache.reserve(cache.end + steps)
    if cache.graph is None or not cache.graph.fits(cache, sampling, steps):
        cache.graph = None  # free the old graph's memory before the new one is allocated
        cache.graph = DecodeGraph(cache, sampling, capture=pending.device.type == "cuda")
    return cache.graph.run(pending, stream, steps)
