"""Reader of rows from files: JSON lines, JSON, CSV, parquet, and folders and names of the library `datasets`."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from vantage.core.errors import UserError, nearest, require, unknown

Row = Mapping[str, Any]
Prompt = str | list[dict[str, str]]
"""A text, or chat messages."""
_SYSTEM = {"system", "developer"}
_READERS = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"}


def read_rows(path: str | Path, split: str | None = None) -> Iterator[tuple[str, Row]]:
    """Yield every row of a file, folder or data set, with its location ("FILE, line 3") for messages.

    Files are streamed. Formats: .jsonl, .json (a list of objects, or an object that holds one list), .csv, .tsv,
    .parquet, the first four also with .gz; a folder that `datasets` saved; the name of a data set that `datasets` can load.

    Args:
        path: file, folder or name.
        split: split of a folder or name that has several.

    Raises:
        UserError: the file is missing or empty, its format is not known, or a row is invalid (file, line, reason).
        ImportError: the format needs a library that is not installed.
    """
    place = Path(path)
    empty = True
    for where, row in _open(str(path), place, split):
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: expected an object of named fields, found {_kind(row)}")
        empty = False
        yield where, row
    if empty:
        raise UserError(f"{path}: there are no rows in it")


def _open(name: str, place: Path, split: str | None) -> Iterator[tuple[str, Any]]:
    if place.is_dir():
        return _saved(place, split)
    suffixes = place.suffixes[-2:]
    packed = suffixes[-1:] == [".gz"]
    kind = (suffixes[-2] if packed and len(suffixes) > 1 else place.suffix).lower()
    if not place.exists():
        if kind in _READERS or place.suffix or name.startswith((".", "/", "~")) or name.count("/") > 1:
            beside = place.parent.iterdir() if place.parent.is_dir() else ()
            raise UserError(f"there is no file {name}{nearest(place.name, [each.name for each in beside])}")
        return _named(name, split)
    if split is not None:
        raise UserError(f"{name}: a file has no splits; leave split={split!r} out")
    if kind in (".jsonl", ".ndjson"):
        return _lines(place, packed)
    if kind == ".json":
        return _json(place, packed)
    if kind in (".csv", ".tsv"):
        return _table(place, packed, "\t" if kind == ".tsv" else ",")
    if kind == ".parquet" and not packed:
        return _parquet(place)
    raise UserError(
        f"{name}: cannot read {place.suffix or 'a file without extension'} (known: {', '.join(sorted(_READERS))})"
    )


def _binary(place: Path, packed: bool) -> BinaryIO:
    try:
        return gzip.open(place) if packed else place.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise UserError(f"{place}: {error.strerror or error}") from None


def _lines(place: Path, packed: bool) -> Iterator[tuple[str, Any]]:
    with _binary(place, packed) as file:
        number = 0
        while True:
            number += 1
            where = f"{place}, line {number}"
            try:
                line = file.readline()
            except (OSError, EOFError) as error:
                raise UserError(f"{where}: {error}") from None
            if not line:
                return
            if line.strip():
                yield where, _parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, where)


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise UserError(f"{where}: not JSON at {at}: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{where}: JSON that is nested too deeply") from None


def _json(place: Path, packed: bool) -> Iterator[tuple[str, Any]]:
    with _binary(place, packed) as file:
        whole = _parse(file.read().removeprefix(b"\xef\xbb\xbf"), str(place))
    if isinstance(whole, Mapping):
        lists = {key: value for key, value in whole.items() if isinstance(value, list)}
        if len(lists) != 1:
            raise UserError(
                f"{place}: expected a list of objects, or an object with one list; found {len(lists)} lists"
            )
        whole = next(iter(lists.values()))
    if not isinstance(whole, list):
        raise UserError(f"{place}: expected a list of objects, found {_kind(whole)}")
    for number, row in enumerate(whole, 1):
        yield f"{place}, row {number}", row


def _table(place: Path, packed: bool, comma: str) -> Iterator[tuple[str, Any]]:
    with _binary(place, packed) as file:
        reader = csv.reader(_text(file, place), delimiter=comma, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise UserError(f"{place}, line 1: two columns have the same name ({', '.join(header)})")
            for cells in reader:
                where = f"{place}, line {reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise UserError(f"{where}: {len(cells)} cells under {len(header)} columns")
                yield where, dict(zip(header, cells))
        except csv.Error as error:
            raise UserError(f"{place}, line {reader.line_num}: {error}") from None


def _text(file: BinaryIO, place: Path) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{place}, line {number}: not UTF-8 at byte {error.start + 1}") from None


def _parquet(place: Path) -> Iterator[tuple[str, Any]]:
    library = require("pyarrow.parquet", "language")
    number = 0
    try:
        for batch in library.ParquetFile(place).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{place}, row {number}", row
    except (OSError, ValueError) as error:  # pyarrow's own errors are subclasses of these
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place}: not a parquet file: {error}") from None


def _saved(place: Path, split: str | None) -> Iterator[tuple[str, Any]]:
    if not any((place / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise UserError(
            f"{place} is a folder that `datasets` has not saved (there is no state.json); name a file in it"
        )
    try:
        data = require("datasets", "language").load_from_disk(str(place))
    except ImportError:
        raise
    except Exception as error:
        raise UserError(f"{place}: {type(error).__name__}: {error}") from None
    return _rows(str(place), data, split)


def _named(name: str, split: str | None) -> Iterator[tuple[str, Any]]:
    library = require("datasets", "language")
    try:
        data = library.load_dataset(name)
    except Exception as error:
        raise UserError(f"{name} is neither a file nor a data set that could be loaded: {error}") from None
    return _rows(name, data, split)


def _rows(name: str, data: Any, split: str | None) -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping):
        if split is None and len(data) > 1 and "train" not in data:
            raise UserError(f"{name} has the splits {', '.join(map(str, data))}: name one with split=")
        split = split or ("train" if "train" in data else next(iter(data)))
        if split not in data:
            raise unknown("split", split, map(str, data), name)
        name, data = f"{name} ({split})", data[split]
    elif split is not None and split != str(data.split):
        raise UserError(f"{name} has no splits; leave split={split!r} out")
    for number, row in enumerate(data, 1):
        yield f"{name}, row {number}", row


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {dict: "an object", list: "a list", str: "a text", bool: "a boolean"}.get(type(value), "a number")


def choose(
    where: str, row: Row, wanted: Mapping[str, str], guesses: Mapping[str, Sequence[str]], needed: Sequence[str]
) -> dict[str, str]:
    """Return the field of each role: the one that the user named, else the first guess that the row has.

    Args:
        where: the row's location, for messages.
        row: the first row.
        wanted: role -> field that the user named.
        guesses: role -> names to try; a role without any is left out.
        needed: roles that must have a field.

    Raises:
        UserError: a role is not known, a named field is missing, or a needed role has no field; the message lists the
            fields of the row.
    """
    there = ", ".join(map(str, row)) or "none"
    for role, name in wanted.items():
        if role not in guesses:
            raise unknown("role", role, guesses, "fields")
        if name not in row:
            raise UserError(f"{where}: there is no field {name!r} for the {role}{nearest(name, row)} (fields: {there})")
    found = dict(wanted)
    for role, names in guesses.items():
        if role not in found:
            taken = set(found.values())
            match = next((name for name in names if name in row and name not in taken), None)
            if match is not None:
                found[role] = match
            elif role in needed:
                raise UserError(f"{where}: no field for the {role}: name it, {role}=FIELD (fields: {there})")
    # In the format of Alpaca a question is an instruction and its input.
    if found.get("prompt") == "instruction" and "prompt" not in wanted and "input" not in found.values():
        found["context"] = "input"
    return found


def text_of(where: str, row: Row, name: str) -> str:
    """Return a field as text; numbers and booleans are written out, lists and objects as JSON.

    Raises:
        UserError: the row lacks the field, or it is null.
    """
    value = row.get(name)
    if value is None:
        raise UserError(
            f"{where}: the field {name!r} is {'null' if name in row else f'missing (fields: {_names(row)})'}"
        )
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def messages_of(where: str, value: Any, name: str = "messages") -> list[dict[str, str]]:
    """Check chat messages, a list of objects with a `role` and a text `content`, and return them with these two keys alone.

    Raises:
        UserError: a message is invalid; the error says which and why.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not len(value):
        raise UserError(f"{where}: the field {name!r} is {_kind(value)}; expected a list of messages")
    found = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            held = _names(message) if isinstance(message, Mapping) else _kind(message)
            raise UserError(f"{where}: message {number} of {name!r} needs role and content (found: {held})")
        role, content = message["role"], message["content"]
        if role not in ("system", "developer", "user", "assistant", "tool"):
            raise unknown(
                "role", str(role), ("system", "user", "assistant", "tool"), f"{where}, message {number} of {name!r}"
            )
        if not isinstance(content, str):
            raise UserError(f"{where}: the content of message {number} of {name!r} is {_kind(content)}, not a text")
        found.append({"role": role, "content": content})
    return found


def prompt_of(where: str, row: Row, name: str, context: str = "") -> Prompt:
    """Return a prompt: a text that is not empty, or messages of which the last is not the assistant's.

    A text in the field `context` follows that of the prompt, after an empty line.

    Raises:
        UserError: the field is neither.
    """
    value = row.get(name)
    if isinstance(value, Sequence) and not isinstance(value, str):
        messages = messages_of(where, value, name)
        if messages[-1]["role"] == "assistant":
            raise UserError(
                f"{where}: the messages of {name!r} end with the assistant's: there is no question left to answer"
            )
        return messages
    text = text_of(where, row, name)
    if not text.strip():
        raise UserError(f"{where}: the field {name!r} is empty")
    more = "" if row.get(context) is None else text_of(where, row, context)
    return f"{text}\n\n{more}" if more.strip() else text


def answer_of(where: str, row: Row, name: str) -> str:
    """Return an answer: a text, or the content of the last message, which is the assistant's.

    Raises:
        UserError: the field is neither.
    """
    value = row.get(name)
    if _holds_messages(value):
        messages = messages_of(where, value, name)
        if messages[-1]["role"] != "assistant":
            raise UserError(f"{where}: the messages of {name!r} must end with the assistant's")
        return messages[-1]["content"]
    return text_of(where, row, name)


def before_answers(where: str, row: Row, name: str, prompt: Prompt, *answers: str) -> Prompt:
    """Return the prompt of the answers in these fields, with the messages before the answers where they are conversations.

    Args:
        where: the row's place, for messages.
        row: the row.
        name: the field of the prompt.
        prompt: the prompt, as `prompt_of` gives it.
        *answers: fields of the answers.

    Raises:
        UserError: some answers are texts and others messages, they do not begin with the same messages, or the prompt does not
            agree with these.
    """
    values = [row.get(one) for one in answers]
    messages = [_holds_messages(value) for value in values]
    if not any(messages):
        return prompt
    both = " and ".join(answers)
    if not all(messages):
        raise UserError(f"{where}: of {both} one is a text and the other messages")
    before, *others = (messages_of(where, value, one)[:-1] for value, one in zip(values, answers, strict=True))
    if any(other != before for other in others):
        raise UserError(f"{where}: {both} do not begin with the same messages")
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not before or asked[-len(before) :] == before:
        return asked
    # Messages that begin with the assistant's continue the prompt; otherwise they are the conversation from its beginning.
    if before[0]["role"] == "assistant":
        return asked + before
    if {message["role"] for message in before} <= _SYSTEM and asked[0]["role"] not in _SYSTEM:
        return before + asked
    check_prompt(where, name, prompt, both, before)
    return before


def check_prompt(where: str, name: str, prompt: Prompt, other: str, before: list[dict[str, str]]) -> None:
    """Check that a prompt agrees with the messages that another field has before the answer.

    It does where it is a part of them: messages that follow each other, or a text in one of them. A text that holds all of
    theirs, in their order, does too.

    Raises:
        UserError: it does not; the message names both fields.
    """
    if isinstance(prompt, str):
        said = [message["content"].strip() for message in before]
        ends = [0]
        for text in said:
            at = prompt.find(text, ends[-1])
            ends.append(at + len(text) if at >= 0 and ends[-1] >= 0 else -1)
        agrees = any(prompt.strip() in text for text in said) or ends[-1] >= 0
    else:
        agrees = any(before[at : at + len(prompt)] == prompt for at in range(len(before) - len(prompt) + 1))
    if not agrees:
        shown = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        raise UserError(
            f"{where}: the prompt in the field {name!r} ({shown!r:.60}) is none of the messages before the answer in {other}"
            f" ({before[-1]['content']!r:.60}): correct one of them, or leave the field {name!r} out"
        )


def _holds_messages(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and isinstance(value[0], Mapping)


def _names(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"
