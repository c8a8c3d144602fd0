"""Texts of completions and conversations: for verifiers, and as displayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

READS = ("own", "last", "all")
"""own: the policy's turns, one per line; last: its last turn; all: the environment's text included, unchanged."""


def verified_texts(
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
    return ["\n".join(parts) for parts in _pieces(tokens, own, turn, decode)]


def marked_texts(
    tokens: Tensor, length: Tensor, own: Tensor | None, decode: Callable[[list[list[int]]], Sequence[str]]
) -> list[str]:
    """Return each row's text for display: of a conversation one line per turn, `[policy] ...` or `[inserted] ...`.

    Arguments as of `verified_texts`. A row without inserted tokens is its text alone.
    """
    inside = torch.arange(tokens.shape[1], device=tokens.device) < length.unsqueeze(-1)
    own = inside if own is None else own & inside
    part = torch.zeros_like(tokens)
    part[:, 1:] = (own[:, 1:] != own[:, :-1]).cumsum(1)
    first = own[:, :1].flatten().tolist() if tokens.shape[1] else []
    found = []
    for place, texts in enumerate(_pieces(tokens, inside, part, decode)):
        names = [("inserted", "policy")[(number + first[place]) % 2] for number in range(len(texts))]
        said = [f"[{name}] {text}" for name, text in zip(names, texts, strict=True)]
        found.append("\n".join(said) if "inserted" in names else "".join(texts))
    return found


def _pieces(
    tokens: Tensor, chosen: Tensor, part: Tensor, decode: Callable[[list[list[int]]], Sequence[str]]
) -> list[list[str]]:
    """Return the texts of each row's parts: of its chosen tokens [N, T], those with the same number `part` [N, T] as one text."""
    row, place = chosen.nonzero(as_tuple=True)
    keys, sizes = torch.unique_consecutive(torch.stack([row, part[row, place]], 1), dim=0, return_counts=True)
    pieces = [piece.tolist() for piece in tokens[row, place].split(sizes.tolist())] if len(row) else []
    texts: list[list[str]] = [[] for _ in range(len(tokens))]
    for number, text in zip(keys[:, 0].tolist(), decode(pieces), strict=True):
        texts[number].append(text)
    return texts


def read(found: Any, reads: str, decode: Callable[[list[list[int]]], Sequence[str]]) -> list[str]:
    """Return the verifier's texts of completions of an engine's `complete`; see `verified_texts`."""
    return verified_texts(found.tokens, found.length, _own(found), reads, decode)


def marked(found: Any, decode: Callable[[list[list[int]]], Sequence[str]]) -> list[str]:
    """Return the texts for display of completions of an engine's `complete`; see `marked_texts`."""
    return marked_texts(found.tokens, found.length, _own(found), decode)


def _own(found: Any) -> Tensor | None:
    """Return which tokens the policy produced [N, T], None for all."""
    forced = getattr(found, "forced", None)
    return None if forced is None else ~forced
