"""Prompts made from prompts: a text around or behind what was asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vantage.core.errors import UserError


@dataclass(frozen=True)
class Template:
    """Rewrites a prompt, given as text or as chat messages (their last one of the user is rewritten).

    Attributes:
        text: with {prompt} for what it was and {NAME} for what else is given.
    """

    text: str

    def __call__(self, item: Any, **fields: Any) -> Any:
        """Return the new prompt.

        Raises:
            UserError: the prompt is neither text nor messages, or the text names what is not given.
        """
        if isinstance(item, str):
            return self._fill(item, fields)
        if isinstance(item, list | tuple) and item and isinstance(item[0], Mapping):
            asked = [place for place, message in enumerate(item) if message.get("role") == "user"]
            if not asked:
                raise UserError("Template: the chat has no message of the user to rewrite")
            place = asked[-1]
            return [
                *item[:place],
                {**item[place], "content": self._fill(item[place]["content"], fields)},
                *item[place + 1 :],
            ]
        raise UserError(f"Template rewrites text or chat messages, not a prompt of type {type(item).__name__}")

    def _fill(self, prompt: str, fields: Mapping[str, Any]) -> str:
        try:
            return self.text.format(prompt=prompt, **fields)
        except (KeyError, IndexError, ValueError) as error:
            given = ", ".join(("prompt", *fields))
            raise UserError(f"Template.text={self.text!r} cannot be filled ({error}); given are: {given}") from error
