"""Conversations whose turns are written down, for tests of what happens between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from vantage.rollouts.tokens.sampling import Sampling


class Scripted(torch.nn.Module):
    """A token engine and its session: a row says its turns of `script(prompt, row)`, one a step, with log-probability 0."""

    def __init__(self, policy: Any, script: Callable[[str, int], Sequence[str]]) -> None:
        super().__init__()
        self.script = script
        self.tokenizer, self.pad_token_id = policy.tokenizer, policy.tokenizer.pad_token_id
        self.end = policy.stop_tokens[0]

    def open(self, encoded: Any, count: int, settings: Sampling, seed: int) -> Scripted:
        self.limit = settings.max_new_tokens
        prompts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in encoded for _ in range(count)]
        self.said = [list(self.script(prompt, row)) for row, prompt in enumerate(prompts)]
        rows = len(self.said)
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.forced: list[list[bool]] = [[] for _ in range(rows)]
        self.finished, self.live = [False] * rows, [True] * rows
        self.prefix = torch.arange(rows) // count
        return self

    def step(self) -> None:
        for row, live in enumerate(self.live):
            if live and not self.finished[row]:
                turn = [*self.tokenizer(self.said[row].pop(0))["input_ids"], self.end]
                self.finished[row] = len(turn) <= self.limit
                self.tokens[row] += turn[: self.limit]
                self.forced[row] += [False] * len(turn[: self.limit])

    def append(self, rows: list[int], tokens: list[list[int]], max_new_tokens: int) -> None:
        for row, ids in zip(rows, tokens, strict=True):
            self.tokens[row] += ids
            self.forced[row] += [True] * len(ids)
            self.finished[row] = False

    def close(self, rows: list[int]) -> None:
        for row in rows:
            self.live[row] = False

    def result(self, rows: list[int] | None = None) -> Any:
        index = list(range(len(self.tokens))) if rows is None else rows
        width = max(len(self.tokens[row]) for row in index)
        length = torch.tensor([len(self.tokens[row]) for row in index])
        tokens = torch.tensor(
            [[*self.tokens[row], *[self.pad_token_id] * (width - len(self.tokens[row]))] for row in index]
        )
        forced = torch.tensor([[*self.forced[row], *[False] * (width - len(self.forced[row]))] for row in index])
        zeros = torch.zeros(tokens.shape)
        return SimpleNamespace(
            tokens=tokens, length=length, forced=forced, logp=zeros, logp_sampling=zeros, entropy=zeros,
            finished=torch.tensor([self.finished[row] for row in index]), prefix=self.prefix[index],
            mask=(torch.arange(width) < length[:, None]) & ~forced,
        )  # fmt: skip
