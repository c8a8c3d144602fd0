"""Result of the token engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Completions:
    """Generated tokens, one row per completion, in the order requested: prefix 0 n times, prefix 1 n times, ...

    Attributes:
        tokens: [N, T] int64, padded on the right with the pad token.
        length: [N] int64, tokens of the completion, the stop token and forced tokens included.
        logp: [N, T] float32, log-probability under the policy at the sampling temperature, nothing truncated; an
            update uses it as the old log-probability. 0 past the end and for forced tokens.
        logp_sampling: [N, T], under the distribution drawn from: after top-k, top-p and min-p; 0 when greedy. The same
            object as `logp` where nothing truncates.
        logp_raw: [N, T], at temperature 1, nothing truncated. The same object as `logp` where the temperature is 1.
        entropy: [N, T] float32, in nats, of the distribution of `logp`.
        forced: [N, T] bool, inserted tokens (`Session.append`), which were not sampled.
        finished: [N] bool, ended by a stop token or stop string; False where the length limit ended it.
        prefix: [N] int64, index of the prefix that the row continues.
        seed: [N] int64, seeds of the rows' random streams: the same prefix and seed draw the same tokens again.
    """

    tokens: Tensor
    length: Tensor
    logp: Tensor
    logp_sampling: Tensor
    logp_raw: Tensor
    entropy: Tensor
    forced: Tensor
    finished: Tensor
    prefix: Tensor
    seed: Tensor

    def __len__(self) -> int:
        return len(self.length)

    @property
    def mask(self) -> Tensor:
        """Tokens that were sampled from the policy, [N, T] bool."""
        width = self.tokens.shape[1]
        inside = torch.arange(width, device=self.tokens.device) < self.length[:, None]
        return inside & ~self.forced
