"""Readers of texts to imitate (supervised fine-tuning) and of preference pairs, from a file or a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vantage.core.errors import UserError
from vantage.tasks.language.data import PROMPTS
from vantage.tasks.language.reading import (
    Row,
    answer_of,
    before_answers,
    check_prompt,
    choose,
    messages_of,
    prompt_of,
    read_rows,
)


@dataclass(frozen=True)
class Demonstration:
    """Prompt, as text or chat messages, and the text to imitate."""

    prompt: str | list[dict[str, str]]
    completion: str


def load_demonstrations(
    path: str | Path, fields: Mapping[str, str] | None = None, split: str | None = None, limit: int | None = None
) -> list[Demonstration]:
    """Read texts for supervised fine-tuning: prompt and completion, or chat messages that end with the assistant's.

    Roles for `fields`: `prompt` and `completion`, or `messages`.

    Raises:
        UserError: something cannot be read; the message says what, where (file and line), and why.
    """
    found: list[Demonstration] = []
    columns: dict[str, str] = {}
    guesses = {
        "messages": ("messages", "conversation"),
        "prompt": tuple(name for name in PROMPTS if name != "messages"),
        "completion": ("completion", "response", "output", "solution", "answer", "target"),
    }
    wanted = dict(fields or {})
    for where, row in islice(read_rows(path, split), limit):
        if not columns:
            columns = choose(where, row, wanted, guesses, ())
            if "prompt" in wanted or "completion" in wanted or ("messages" not in columns):
                columns = choose(where, row, wanted, guesses, ("prompt", "completion"))
                columns.pop("messages", None)
        if "messages" in columns:
            messages = messages_of(where, row.get(columns["messages"]), columns["messages"])
            if messages[-1]["role"] != "assistant" or len(messages) < 2:
                raise UserError(f"{where}: the messages must end with the assistant's, after at least one other")
            if row.get(columns.get("prompt", "")) is not None:
                prompt = prompt_of(where, row, columns["prompt"], columns.get("context", ""))
                check_prompt(where, columns["prompt"], prompt, repr(columns["messages"]), messages[:-1])
            found.append(Demonstration(messages[:-1], messages[-1]["content"]))
            continue
        text = answer_of(where, row, columns["completion"])
        if not text.strip():
            raise UserError(f"{where}: the field {columns['completion']!r} is empty")
        prompt = prompt_of(where, row, columns["prompt"], columns.get("context", ""))
        prompt = before_answers(where, row, columns["prompt"], prompt, columns["completion"])
        found.append(Demonstration(prompt, text))
    return found


@dataclass(frozen=True)
class Pair:
    """Prompt, as text or chat messages, with a chosen and a rejected completion."""

    prompt: str | list[dict[str, str]]
    chosen: str
    rejected: str


def load_pairs(
    path: str | Path, fields: Mapping[str, str] | None = None, split: str | None = None, limit: int | None = None
) -> list[Pair]:
    """Read preference pairs: `prompt`, `chosen`, `rejected`, as texts or as chat messages.

    Chosen and rejected may be whole conversations that share all but the last message, the assistant's; the prompt is then the
    shared messages, system message and earlier turns included, and needs no field of its own. A prompt that is text becomes
    the user's message where chosen and rejected are the assistant's messages alone, so that both use the chat template.

    Raises:
        UserError: something cannot be read (the message says what, where, by file and line, and why), or chosen and rejected
            are equal.
    """
    found: list[Pair] = []
    columns: dict[str, str] = {}
    guesses = {
        "chosen": ("chosen", "preferred", "chosen_response"),
        "rejected": ("rejected", "dispreferred", "rejected_response"),
        "prompt": PROMPTS,
    }
    for where, row in islice(read_rows(path, split), limit):
        if not columns:
            columns = choose(where, row, dict(fields or {}), guesses, ("chosen", "rejected"))
        sides = [answer_of(where, row, columns[side]) for side in ("chosen", "rejected")]
        if sides[0] == sides[1]:
            raise UserError(f"{where}: chosen and rejected are the same text")
        if "prompt" in columns:
            prompt = prompt_of(where, row, columns["prompt"], columns.get("context", ""))
            prompt = before_answers(where, row, columns["prompt"], prompt, columns["chosen"], columns["rejected"])
        else:
            prompt = _shared(where, row, columns)
        found.append(Pair(prompt, *sides))
    return found


def _shared(where: str, row: Row, columns: Mapping[str, str]) -> list[dict[str, str]]:
    values = [row.get(columns[side]) for side in ("chosen", "rejected")]
    if any(not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 2 for value in values):
        raise UserError(f"{where}: no field for the prompt: name it, prompt=FIELD (fields: {', '.join(map(str, row))})")
    chosen, rejected = (messages_of(where, value)[:-1] for value in values)
    if chosen != rejected:
        raise UserError(f"{where}: chosen and rejected do not begin with the same messages")
    return chosen
