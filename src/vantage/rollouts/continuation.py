"""Operations on rows of a language engine that continue other rows: the column `turn`, inserted texts, joined decisions.

Turns are those of the policy, counted from 0. Inserted tokens belong to the turn that they follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vantage.core.trajectories import ENVIRONMENT, POLICY, Trajectories, exists, own
from vantage.functions.rows import value_at_last


def turn_numbers(forced: Tensor) -> Tensor:
    """Return the number of each token's turn [N, T], given which tokens were inserted [N, T].

    A turn begins where a sampled token follows an inserted one, which belongs to the turn before.
    """
    starts = torch.zeros(forced.shape, dtype=torch.int64, device=forced.device)
    starts[:, 1:] = forced[:, :-1] & ~forced[:, 1:]
    return starts.cumsum(1)


def origins(forced: Tensor) -> Tensor:
    """Return the column `origin` [N, T] int8 of tokens, given which of them the environment inserted."""
    return torch.where(forced, ENVIRONMENT, POLICY).to(torch.int8)


def with_origin(batch: Trajectories) -> Trajectories:
    """Return the batch with the column `origin`; where it is missing, tokens outside of `own` are the environment's."""
    return batch if "origin" in batch else batch.replace(origin=origins(exists(batch) & ~own(batch)))


def continued_turns(batch: Trajectories, rows: Tensor, kept: Tensor, action: Tensor) -> dict[str, Tensor]:
    """Return `turn` and `origin` of tokens [K, S] that the policy samples after the first `kept` [K] positions of rows [K]."""
    last = (kept - 1).clamp(min=0).unsqueeze(-1)
    # Tokens that the environment inserted belong to the turn before; after them a turn begins.
    turn = batch.turn[rows].gather(1, last) + (batch.origin[rows].gather(1, last) != POLICY)
    turn = torch.where(kept.unsqueeze(-1) > 0, turn, 0)
    return {"turn": turn.expand(action.shape).clone(), "origin": torch.zeros_like(action, dtype=torch.int8)}


def last_turn(batch: Trajectories) -> Tensor:
    """Return the number of each row's last turn [N], counted from 0, which is the number of the environment's answers."""
    return value_at_last(batch.turn, batch.length)


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return token rows padded on the right, [N, P] int64, and their lengths [N]."""
    longest = max((len(row) for row in rows), default=0)
    tokens = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], dtype=torch.int64)
    length = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    return tokens.view(len(rows), longest).to(device), length.to(device)


DECISIONS = ("action", "mask", "logp_old", "entropy_old", "logp_sampling", "terminated", "truncated", "turn", "origin")


def joined_rows(batch: Trajectories, rows: Tensor, kept: Tensor, fresh: Trajectories, learn: bool) -> Trajectories:
    """Return rows [K] of the batch cut to their first `kept` [K] decisions, each followed by its row of `fresh` [K].

    `learn` says whether the kept decisions remain in the mask. Columns per decision that only one side has are dropped.
    """
    head = batch.select(rows)
    steps = int((kept + fresh.length).max())
    place = torch.arange(steps, device=kept.device).expand(len(rows), steps)
    old = place < kept.unsqueeze(-1)
    columns: dict[str, Any] = {}
    for name in DECISIONS:
        if name not in fresh and name not in head:
            continue
        # Without truncation the policy's distribution is the sampling distribution.
        source = "logp_old" if name == "logp_sampling" else name
        first = head.get(name, head.get(source))
        second = fresh.get(name, fresh.get(source))
        if first is None or second is None:
            continue
        left = first.gather(1, place.clamp(max=first.shape[1] - 1))
        right = second.gather(1, (place - kept.unsqueeze(-1)).clamp(min=0, max=second.shape[1] - 1))
        columns[name] = torch.where(old, left, right)
    length = kept + fresh.length
    inside = place < length.unsqueeze(-1)
    columns["mask"] = columns["mask"] & inside & (~old | learn)
    for name in ("terminated", "truncated"):
        columns[name] = columns[name] & ~old & inside
    return fresh.replace(**dict.fromkeys(DECISIONS), length=length).replace(**columns)


def inserted_before(fresh: Trajectories, inserted: Sequence[Sequence[int]], turn: Tensor, origin: int) -> Trajectories:
    """Return rows [K] whose completions begin with the inserted tokens, as part of turn `turn` [K, 1] and of this origin."""
    tokens, sizes = padded(inserted, 0, fresh.device)
    blank = tokens.new_zeros(tokens.shape)
    zeros = torch.zeros(tokens.shape, device=fresh.device)
    false = zeros.bool()
    columns: dict[str, Any] = {
        "action": tokens, "mask": false, "logp_old": zeros, "entropy_old": zeros, "terminated": false, "truncated": false,
        "turn": blank + turn, "origin": (blank + origin).to(torch.int8), "length": sizes,
        "group": fresh.group, "prompt": fresh.prompt, "observation": fresh.observation,
    }  # fmt: skip
    head = Trajectories(columns)
    return joined_rows(head, torch.arange(len(sizes), device=fresh.device), sizes, fresh, False)


def replace_rows(batch: Trajectories, rows: Tensor, new: Trajectories) -> Trajectories:
    """Return the batch with rows `rows` [K] replaced by `new` [K], which may be longer."""
    steps = max(batch.steps, new.steps)
    columns: dict[str, Any] = {}
    for name in DECISIONS:
        if name not in batch or name not in new:
            continue
        wide = torch.nn.functional.pad(batch[name], (0, steps - batch.steps))
        columns[name] = wide.index_copy(0, rows, torch.nn.functional.pad(new[name], (0, steps - new.steps)))
    columns["length"] = batch.length.index_copy(0, rows, new.length)
    return batch.replace(**columns)
