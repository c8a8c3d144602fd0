"""Packing of rows of prompt and completion into the tokens that a model computes, and the scatter of results to [N, T].

A row's input is its prompt followed by its completion up to the last decision that is evaluated; the decision at step t of
the completion is predicted at position (prompt length + t - 1) of the input. The inputs of all rows are concatenated, so that
no padding is computed; rows that have the same prompt may share it, so that it is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.core.trajectories import Trajectories
from vantage.policies.attention import Plan, plan


@dataclass(frozen=True)
class Inputs:
    """Left-aligned inputs of the rows, and the positions at which the evaluated decisions are predicted.

    Attributes:
        tokens: [N, S] int64, each row's input from column 0 on; later entries are arbitrary.
        length: [N] number of tokens that must be computed; 0 for a row without evaluated decisions.
        prompt: [N] number of tokens of the prompt.
        row: [M] row of each evaluated decision, in row-major order.
        step: [M] its step in the completion.
        steps: T.
    """

    tokens: Tensor
    length: Tensor
    prompt: Tensor
    row: Tensor
    step: Tensor
    steps: int

    @property
    def column(self) -> Tensor:
        """Column of `tokens` [M] at which each evaluated decision is predicted."""
        return self.prompt[self.row] + self.step - 1

    def spread(self, values: Tensor) -> Tensor:
        """Scatter values of the evaluated decisions [M, ...] to their rows and steps: [N, T, ...], 0 elsewhere."""
        rows = len(self.length)
        table = values.new_zeros(rows * self.steps, *values.shape[1:])
        return table.index_put((self.row * self.steps + self.step,), values).view(rows, self.steps, *values.shape[1:])


def inputs(batch: Trajectories, evaluated: Tensor) -> Inputs:
    """Make the inputs of the rows of a language batch.

    Args:
        batch: holds `observation` (tokens [N, P], padded on the right; length [N], at least 1) and `action` [N, T].
        evaluated: [N, T'] bool, decisions to evaluate. T' may be T + 1: step T is then the state after the whole row.
    """
    seen, prompt = batch.observation["tokens"], batch.observation["length"]
    steps = evaluated.shape[1]
    place = torch.arange(steps, device=seen.device)
    last = torch.where(evaluated, place, -1).amax(-1) if steps else torch.full_like(prompt, -1)
    length = torch.where(last >= 0, prompt + last, 0)
    whole = torch.cat([seen, batch.action], 1)
    column = torch.arange(whole.shape[1], device=seen.device).expand_as(whole)
    # The completion follows the prompt: columns after the prompt skip its padding.
    column = column + torch.where(column < prompt.unsqueeze(-1), 0, seen.shape[1] - prompt.unsqueeze(-1))
    aligned = whole.gather(1, column.clamp_(max=whole.shape[1] - 1))
    row, step = evaluated.nonzero(as_tuple=True)
    return Inputs(aligned, length, prompt, row, step, steps)


@dataclass(frozen=True)
class Packed:
    """Packed list of S tokens and the positions that are read.

    Attributes:
        tokens: [S] int64.
        positions: [S] position of each token in its row's input.
        plan: attention structure.
        needed: [K] distinct positions of the list whose last hidden states are read.
        index: [M] index into `needed` for each evaluated decision; None when they are the same, in order.
    """

    tokens: Tensor
    positions: Tensor
    plan: Plan
    needed: Tensor
    index: Tensor | None


def pack(layout: Inputs, share: bool | str) -> Packed:
    """Pack the rows' inputs.

    Args:
        layout: inputs with at least one evaluated decision.
        share: whether rows with the same prompt share its tokens; "auto" where that saves a fifth of the tokens.
    """
    if share:
        same, first = _same_prompts(layout)
        # One transfer for all numbers that determine shapes.
        length, prompt, prefix = torch.stack([layout.length, layout.prompt, same]).tolist()
        used = [i for i, size in enumerate(length) if size]
        plain = sum(length)
        own = {prefix[i]: prompt[i] for i in used}
        shared = sum(own.values()) + sum(length[i] - prompt[i] for i in used)
        if shared < plain if share is True else shared <= 0.8 * plain:
            return _shared(layout, length, prompt, prefix, first)
    return _plain(layout)


def _plain(layout: Inputs) -> Packed:
    sizes, order = torch.sort(layout.length, descending=True, stable=True)
    counts = [size for size in sizes.tolist() if size]
    order = order[: len(counts)]
    offset = torch.arange(counts[0], device=order.device).expand(len(counts), -1)
    real = offset < sizes[: len(counts)].unsqueeze(-1)
    starts = torch.zeros_like(layout.length)
    starts[order] = sizes[: len(counts)].cumsum(0) - sizes[: len(counts)]
    return Packed(
        tokens=layout.tokens[order, : counts[0]][real],
        positions=offset[real],
        plan=plan(counts, None, order.device),
        needed=starts[layout.row] + layout.column,
        index=None,
    )


def _shared(layout: Inputs, length: list[int], prompt: list[int], prefix: list[int], first: Tensor) -> Packed:
    """Pack the prefixes, then each prefix's continuations."""
    device = layout.tokens.device
    used = sorted((i for i, size in enumerate(length) if size), key=lambda i: (prefix[i], prompt[i] - length[i]))
    kept = sorted({prefix[i] for i in used})
    heads = {key: number for number, key in enumerate(kept)}
    sizes = [0] * len(kept)
    continued = [0] * len(kept)
    tails = []
    for i in used:
        number, tail = heads[prefix[i]], length[i] - prompt[i]
        sizes[number] = prompt[i]
        continued[number] += tail
        if tail:
            tails.append(i)
    head_rows, head_sizes = first[torch.tensor(kept, device=device)], torch.tensor(sizes, device=device)
    head_tokens, head_places = _ragged(layout.tokens[head_rows], head_sizes, 0)
    tail_rows = torch.tensor(tails, dtype=torch.int64, device=device)
    tail_sizes = torch.tensor([length[i] - prompt[i] for i in tails], dtype=torch.int64, device=device)
    tail_tokens, tail_places = _ragged(layout.tokens[tail_rows], tail_sizes, layout.prompt[tail_rows])
    total = sum(sizes)
    starts = torch.zeros_like(layout.length)
    starts[tail_rows] = total + tail_sizes.cumsum(0) - tail_sizes
    # The first decision of a completion is predicted at the end of its prefix, at once for all rows that share it.
    opening = layout.step == 0
    rest = (~opening).nonzero().squeeze(-1)
    index = torch.empty_like(layout.row)
    number_of = torch.tensor([heads.get(key, 0) for key in prefix], device=device)
    index[opening] = number_of[layout.row[opening]]
    index[rest] = len(kept) + torch.arange(len(rest), device=device)
    later = starts[layout.row[rest]] + layout.step[rest] - 1
    return Packed(
        tokens=torch.cat([head_tokens, tail_tokens]),
        positions=torch.cat([head_places, tail_places]),
        plan=plan([*sizes, *(length[i] - prompt[i] for i in tails)], continued, device),
        needed=torch.cat([head_sizes.cumsum(0) - 1, later]),
        index=index,
    )


def _ragged(tokens: Tensor, sizes: Tensor, start: Tensor | int) -> tuple[Tensor, Tensor]:
    """Return `sizes` [K] tokens of each row [K, S] from column `start` [K] on, packed, and their columns."""
    offset = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begin = start.unsqueeze(-1) if isinstance(start, Tensor) else start
    real = (offset >= begin) & (offset < sizes.unsqueeze(-1) + begin)
    return tokens[real], offset[real]


def _same_prompts(layout: Inputs) -> tuple[Tensor, Tensor]:
    """Return a number for each row [N], equal for equal prompts, and for each number the first row that has it."""
    inside = torch.arange(layout.tokens.shape[1], device=layout.tokens.device) < layout.prompt.unsqueeze(-1)
    # A random linear hash in 64 bits finds the candidates; a comparison of the tokens decides.
    salt = torch.randint(-(2**63), 2**63 - 1, (layout.tokens.shape[1],), generator=torch.Generator().manual_seed(0)).to(
        inside.device
    )
    tokens = torch.where(inside, layout.tokens + 1, 0)
    keys = (tokens * salt).sum(-1)
    _, same = torch.unique(keys, return_inverse=True)
    first = _first_of(same)
    if not bool((tokens[first][same] == tokens).all()):
        _, same = torch.unique(tokens, dim=0, return_inverse=True)
        first = _first_of(same)
    return same, first


def _first_of(same: Tensor) -> Tensor:
    count = int(same.max()) + 1
    rows = torch.arange(len(same), device=same.device)
    return torch.full((count,), len(same), device=same.device).scatter_reduce_(0, same, rows, "amin")


def buckets(length: Tensor, waste: float = 0.125, overhead: int = 64) -> list[tuple[Tensor, int]]:
    """Divide rows into buckets of similar length for models that take no packed tokens: (row indices, longest) each.

    In order of falling length, a bucket ends when its padding would exceed `waste` of its tokens by more than
    `overhead` tokens, about the cost of a further forward pass. Rows of length 0 are left out.
    """
    sizes, order = torch.sort(length, descending=True)
    lengths: list[int] = sizes.tolist()
    lengths = lengths[: len(lengths) - lengths.count(0)]
    found: list[tuple[Tensor, int]] = []
    start = tokens = 0
    for index, size in enumerate(lengths):
        tokens += size
        if (index - start + 1) * lengths[start] - tokens > waste * tokens + overhead:
            found.append((order[start:index], lengths[start]))
            start, tokens = index, size
    if lengths:
        found.append((order[start : len(lengths)], lengths[start]))
    return found
