"""Templates that rewrite prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from vantage.core.errors import UserError


@dataclass(frozen=True)
class Template:
    """Template that rewrites a prompt of text, or the user's last message of a chat.

    Attributes:
        text: with {prompt} for the original prompt and {NAME} for each further field.
    """

    text: str

    def __call__(self, item: Any, **fields: Any) -> Any:
        """Return the new prompt.

        Raises:
            UserError: the prompt is neither text nor messages, or the text names a field that is not given.
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

    def check(self, where: str, given: Sequence[str]) -> None:
        """Raise a UserError unless the text names exactly the given fields.

        Raises:
            UserError: the text does not, or is not a template; the message begins with `where`.
        """
        try:
            names = {re.split(r"[.\[]", name)[0] for _, name, _, _ in Formatter().parse(self.text) if name is not None}
        except ValueError as error:
            raise UserError(f"{where}: text={self.text!r} cannot be filled ({error})") from error
        listed = ", ".join(f"{{{name}}}" for name in given)
        for name in (*(name for name in given if name not in names), *sorted(names - set(given))):
            what = "lacks" if name in given else "names a field that is not given,"
            raise UserError(f"{where}: text={self.text!r} {what} {{{name}}}; it must have {listed}")

    def _fill(self, prompt: str, fields: Mapping[str, Any]) -> str:
        try:
            return self.text.format(prompt=prompt, **fields)
        except (KeyError, IndexError, ValueError) as error:
            given = ", ".join(("prompt", *fields))
            raise UserError(f"Template.text={self.text!r} cannot be filled ({error}); given are: {given}") from error
