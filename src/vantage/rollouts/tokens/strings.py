"""Detection of stop strings in the tokens of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class StopStrings:
    """Detector of stop strings in decoded text, which decodes only where a token could end one."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._closing: dict[tuple[str, ...], Tensor | None] = {}

    def closing(self, stops: tuple[str, ...]) -> Tensor | None:
        """Return the tokens, [V] bool, whose text may contain the last character of a stop string; None: any may.

        A token of part of a character decodes to the replacement character and may complete any text. White space at
        the end of a stop string may be missing in a token decoded alone, so that every token is checked then.
        """
        if stops not in self._closing:
            found = None
            if not any(stop[-1].isspace() for stop in stops):
                ends = {stop[-1] for stop in stops} | {"\ufffd"}
                texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
                found = torch.tensor([not ends.isdisjoint(text) for text in texts])
            self._closing[stops] = found
        return self._closing[stops]

    def ends(self, stops: tuple[str, ...], before: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """Return whether a stop string ends in each token, [n, k] bool, of `tokens` [n, k], which follow `before` of each row.

        Of `before` the last tokens that could contain a stop string suffice: a token is at least a byte.
        """
        tokens = tokens.cpu()
        found = torch.zeros(tokens.shape, dtype=torch.bool)
        window = max(len(stop.encode()) for stop in stops) + 8
        closing = self.closing(stops)
        look = torch.ones_like(found) if closing is None else closing[tokens.clamp(max=len(closing) - 1)]
        for row in look.any(1).nonzero().squeeze(1).tolist():
            tail = before[row][-window:].tolist()
            new = tokens[row].tolist()
            for place in look[row].nonzero().squeeze(1).tolist():
                held = [*tail, *new[: place + 1]][-window:]
                text = self.tokenizer.decode(held, skip_special_tokens=False, clean_up_tokenization_spaces=False)
                if any(stop in text for stop in stops):
                    found[row, place] = True
                    break
        return found
