"""Text of a completion or a conversation that a verifier reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

READS = ("own", "last", "all")
"""own: the policy's turns, one per line; last: its last turn; all: the environment's text included, unchanged."""


def judged_texts(
    tokens: Tensor, length: Tensor, own: Tensor | None, reads: str, decode: Callable[[list[list[int]]], Sequence[str]]
) -> list[str]:
    """Return the text of each row that a verifier reads.

    Args:
        tokens: [N, T] int64.
        length: [N], number of positions of each row.
        own: [N, T] bool, positions that the policy produced; None for all.
        reads: one of `READS`.
        decode: token lists to texts.
    """
    inside = torch.arange(tokens.shape[1], device=tokens.device) < length.unsqueeze(-1)
    own = inside if own is None else own & inside
    if reads == "all" or bool((own == inside).all()):
        return list(decode([row[:size] for row, size in zip(tokens.tolist(), length.tolist(), strict=True)]))
    begins = own.clone()
    begins[:, 1:] &= ~own[:, :-1]
    turn = begins.cumsum(1)
    if reads == "last":
        own = own & (turn == turn.amax(1, keepdim=True))
    row, place = own.nonzero(as_tuple=True)
    keys, sizes = torch.unique_consecutive(torch.stack([row, turn[row, place]], 1), dim=0, return_counts=True)
    pieces = [part.tolist() for part in tokens[row, place].split(sizes.tolist())]
    texts: list[list[str]] = [[] for _ in range(len(tokens))]
    for number, text in zip(keys[:, 0].tolist(), decode(pieces), strict=True):
        texts[number].append(text)
    return ["\n".join(parts) for parts in texts]


def read(found: Any, reads: str, decode: Callable[[list[list[int]]], Sequence[str]]) -> list[str]:
    """Return the texts that a verifier reads of an engine's `complete`; without `forced` all tokens are the policy's."""
    forced = getattr(found, "forced", None)
    return judged_texts(found.tokens, found.length, None if forced is None else ~forced, reads, decode)
