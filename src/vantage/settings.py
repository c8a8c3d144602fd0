"""Parser of settings: one value, `name=value` pairs, and lists of pairs between commas.

    value   a number, true, false, none, a list, a mapping, or text
    list    [1, 2], [[8, 8], [4]], [a, "b, c"]
    mapping {correct: 1, "length": 0.5}
    text    anything else; quotes make a text of anything: "1", 'none', "[a]"

Names and words of lists need no quotes; JSON is valid. Inside brackets and quotes a comma does not separate settings.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from vantage.core.errors import UserError

_PLAIN = {"true": True, "false": False, "none": None, "null": None}
_CLOSING = {"[": "]", "{": "}"}
_QUOTES = "\"'"


def parse_value(text: str) -> Any:
    """Return the value that a text denotes.

    Raises:
        UserError: a bracket or a quote is not closed, or a mapping has an entry without name.
    """
    text = text.strip()
    if text.lower() in _PLAIN:
        return _PLAIN[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if text[:1] in _QUOTES and len(text) > 1 and _end_of_quote(text, 0) == len(text) - 1:
        return _unquoted(text)
    if text[:1] in _CLOSING and text:
        if text[-1] != _CLOSING[text[0]] or len(text) < 2:
            raise UserError(
                f"value {text!r} is not complete: {text[0]!r} is closed by {_CLOSING[text[0]]!r} at its end"
            )
        entries = split(text[1:-1])
        return [parse_value(entry) for entry in entries] if text[0] == "[" else dict(map(_entry, entries))
    return text


def parse_settings(pairs: Iterable[str], where: str = "") -> dict[str, Any]:
    """Return the settings of `name=value` pairs.

    Args:
        pairs: the texts.
        where: the owner of the settings, for errors: `task cartpole`.

    Raises:
        UserError: a pair has no '=' or no name, or its value cannot be read.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            example = "" if where else ", for example update.optimizer.lr=3e-4"
            raise UserError(f"{where or 'settings'}: {pair.strip()!r} must be written name=value{example}")
        settings[name.strip()] = parse_value(value)
    return settings


def read_settings(text: str, where: str = "") -> dict[str, Any]:
    """Return the settings of `name=value,name=value`; see `parse_settings`."""
    return parse_settings(filter(str.strip, split(text)), where)


def split(text: str, separator: str = ",") -> list[str]:
    """Split a text at separators outside brackets and quotes; "" gives an empty list.

    Raises:
        UserError: a bracket is not closed, or closed without having been opened.
    """
    parts, start, place, inside = [], 0, 0, []
    while place < len(text):
        letter = text[place]
        if letter in _QUOTES and _begins_value(text, place):
            place = _end_of_quote(text, place)
        elif letter in _CLOSING:
            inside.append(_CLOSING[letter])
        elif letter in "]}":
            if not inside or inside.pop() != letter:
                raise UserError(f"{text!r} cannot be read: {letter!r} closes nothing")
        elif letter == separator and not inside:
            parts.append(text[start:place].strip())
            start = place + 1
        place += 1
    if inside:
        raise UserError(f"{text!r} cannot be read: {inside[-1]!r} is missing")
    last = text[start:].strip()
    return [*parts, last] if last else parts


def tuples(value: Any) -> Any:
    """Return a list as a tuple, inner lists too; anything else unchanged."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def _begins_value(text: str, place: int) -> bool:
    """Return whether a quote at this position opens a quoted value; within a word (it's) it is a letter."""
    before = text[:place].rstrip()
    return not before or before[-1] in "=,:[{"


def _end_of_quote(text: str, place: int) -> int:
    """Return the position of the quote that closes the one at `place`, the end of the text where none does."""
    quote, place = text[place], place + 1
    while place < len(text) and text[place] != quote:
        place += 2 if text[place] == "\\" else 1
    return place


def _unquoted(text: str) -> str:
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError) as error:
        raise UserError(f"value {text} is not a quoted text: {error}") from error


def _entry(text: str) -> tuple[str, Any]:
    name, *rest = split(text, ":")
    if not rest:
        raise UserError(f"{text!r} is not an entry of a mapping: write {{name: value}}")
    return str(_unquoted(name) if name[:1] in _QUOTES else name), parse_value(text[text.index(":", len(name)) + 1 :])
