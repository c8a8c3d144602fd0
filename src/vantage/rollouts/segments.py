"""Division of a row into steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories


@dataclass(frozen=True)
class StepsByToken:
    """Number of the step that each decision belongs to: a step ends with a token that ends steps.

    Consecutive such tokens end one step, at the last of them. A token in which a step ends and another begins belongs to the
    first, and the token that terminates a row belongs to the last step, unless each token is one.

    Attributes:
        text: a token ends a step if its text holds this; decoded once by the policy's tokenizer. "": each token is a step.
        ids: these tokens end a step instead; for policies without a tokenizer.
    """

    text: str = "\n"
    ids: tuple[int, ...] = ()
    _memory: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def needs(self) -> frozenset[str]:
        """Name a tokenizer, where the separator is given as text."""
        return frozenset({"text"} if self.text and not self.ids else ())

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the numbers [N, T], 0 for a row's first step; undefined beyond its length."""
        if not self.text and not self.ids:
            return torch.arange(batch.steps, device=batch.device).expand(batch.mask.shape)
        ends = torch.isin(batch.action, self._ends(context).to(batch.device))
        inside = torch.arange(batch.steps, device=batch.device) < batch.length.unsqueeze(-1)
        ends &= inside
        following = torch.zeros_like(ends)
        following[:, :-1] = ends[:, 1:] | (batch.terminated & inside)[:, 1:]
        last = ends & ~following
        return last.cumsum(1) - last.long()

    def _ends(self, context: Context) -> Tensor:
        if self.ids:
            return torch.tensor(self.ids)
        if "ids" not in self._memory:
            tokenizer = getattr(context.policy, "tokenizer", None)
            if tokenizer is None:
                raise UserError(
                    f"StepsByToken(text={self.text!r}): {type(context.policy).__name__} has no tokenizer; give `ids`"
                )
            texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
            found = [token for token, text in enumerate(texts) if self.text in text]
            self._memory["ids"] = torch.tensor(found, dtype=torch.int64)
        return self._memory["ids"]


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
