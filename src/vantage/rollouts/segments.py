"""Division of a row into steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from vantage.core import component
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories
from vantage.rollouts.sentences import sentence_starts


@component
class Steps:
    """Assignment of each decision to a step, by the text of its row.

    A token belongs to the step of its first character, and the token that terminates a row to the last step. Steps in which no
    token begins are not counted.

    Attributes:
        by: "lines": `separator` begins the next step. "sentences": a sentence or a line break does, see `sentence_starts`.
            "tokens": each token is a step.
        separator: of lines.
        answer: text that begins the final answer, which belongs to the last step that is not blank; "" for none.
        ids: these tokens begin a step instead; for policies without a tokenizer.
    """

    by: Literal["lines", "sentences", "tokens"] = "lines"
    separator: str = "\n"
    answer: str = "\n#### "
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.by == "lines" and not self.separator:
            raise UserError("Steps.separator='' is empty: give one, or by='tokens', which makes each token a step")

    @property
    def needs(self) -> frozenset[str]:
        """Need of a language model, unless `ids` or tokens define the steps."""
        return frozenset() if self.by == "tokens" or self.ids else frozenset({"text"})

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the numbers [N, T], 0 for a row's first step; undefined beyond its length."""
        if self.by == "tokens":
            return torch.arange(batch.steps, device=batch.device).expand(batch.mask.shape)
        if self.ids:
            begins = torch.isin(batch.action, torch.tensor(self.ids, device=batch.device))
            begins[:, 1:] &= ~batch.terminated[:, 1:]
        else:
            step = self._of_characters(batch, context)
            begins = step != step.roll(1, 1)
        begins[:, :1] = False
        return begins.cumsum(1)

    def _of_characters(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the step of each token's first character [N, T]; a step may have none."""
        tokenizer = getattr(context.policy, "tokenizer", None)
        if tokenizer is None:
            raise UserError(f"Steps(by={self.by!r}): {type(context.policy).__name__} has no tokenizer; give `ids`")
        starts: Callable[[str], list[int]] = sentence_starts if self.by == "sentences" else self.line_starts
        inside = torch.arange(batch.steps, device=batch.device) < batch.length.unsqueeze(-1)
        kinds, kind = torch.unique(torch.where(inside & ~batch.terminated, batch.action, -1).cpu(), return_inverse=True)
        pieces = ["" if one < 0 else _piece(tokenizer, one) for one in kinds.tolist()]
        size = torch.tensor([len(piece) for piece in pieces])[kind]
        begun = [starts("".join(pieces[one] for one in row)) for row in kind.tolist()]
        width = max(map(len, begun))
        bounds = torch.tensor([row + [1 << 40] * (width - len(row)) for row in begun])
        return (torch.searchsorted(bounds, size.cumsum(1) - size, right=True) - 1).to(batch.device)

    def line_starts(self, text: str) -> list[int]:
        """Return the start positions of steps, in characters: 0, and each separator except those of blank lines at the start
        and before the answer."""
        head, answer, _ = text.partition(self.answer) if self.answer else (text, "", "")
        lines = head.split(self.separator)
        filled = [number for number, line in enumerate(lines) if line.strip()] or [0]
        last = filled[-1] if answer else len(lines) - 1
        places = [match.start() for match in re.finditer(re.escape(self.separator), head)]
        return [0, *places[filled[0] : last]]


def _piece(tokenizer: Any, token: int) -> str:
    """Return the text that a token adds to a row; decoded after itself, since some tokenizers strip the first token's space."""
    if token in getattr(tokenizer, "all_special_ids", ()):
        return ""
    once, twice = tokenizer.batch_decode([[token], [token, token]])
    return str(twice[len(once) :])


def first_places(segment: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Return (start, count): the first position of each step of a row [N, S] (T where there is none), and its steps [N].

    Args:
        segment: numbers of the steps [N, T].
        length: of the rows [N]; an empty row has no step.
    """
    steps = segment.shape[1]
    place = torch.arange(steps, device=segment.device).expand(segment.shape)
    inside = place < length.unsqueeze(-1)
    count = torch.where(inside, segment + 1, 0).amax(1)
    start = segment.new_full((len(segment), max(int(count.max()), 1)), steps)
    start.scatter_reduce_(1, torch.where(inside, segment, 0), torch.where(inside, place, steps), "amin")
    return start, count
