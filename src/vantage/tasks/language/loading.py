"""Language tasks made from a name or from the user's own file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vantage.core.errors import UserError
from vantage.tasks.language.task import LanguageTask

DATA_OPTIONS = ("fields", "answer_after", "split", "held_out", "test", "limit", "format")


def task_from_spec(spec: str, verifier: str = "", options: Mapping[str, Any] | None = None) -> LanguageTask:
    """Make the task of a generated problem set such as `addition:digits=3`."""
    from vantage.tasks.language.problems import problem_set

    return LanguageTask(problem_set(spec), verifier, **dict(options or {}))


def task_from_data(data: str, verifier: str = "", options: Mapping[str, Any] | None = None) -> LanguageTask:
    """Make the task of the user's own problems.

    Args:
        data: file or saved `datasets` folder; see `vantage.tasks.language.data`.
        verifier: scores the answers, as in `LanguageTask`; "exact" when empty.
        options: of the task, and of reading: `fields` (`prompt=question,answer=final`), `answer_after`, `split`, `held_out`
            (share), `test` (a file of held-out problems), `limit`, and `format`: "problems", "demonstrations" for
            texts to imitate that need no separate answer, or "pairs" for preferences, the default for a file
            with the fields `chosen` and `rejected`.

    Raises:
        UserError: the file cannot be read; the message names file, line and reason.
    """
    from vantage.tasks.language.data import load_problems

    given = dict(options or {})
    reading = {name: given.pop(name) for name in DATA_OPTIONS if name in given}
    if isinstance(reading.get("fields"), str):
        reading["fields"] = _pairs(reading["fields"])
    kind = reading.pop("format", "") or ("pairs" if holds_pairs(data, reading.get("split")) else "problems")
    if kind == "pairs":
        from vantage.tasks.language.preference import task_from_pairs

        return task_from_pairs(data, verifier, reading, given)
    if kind == "demonstrations":
        from vantage.tasks.language.pairs import load_demonstrations
        from vantage.tasks.language.sft import demonstration_set

        share = float(reading.pop("held_out", 0.1))
        for name in ("answer_after", "test"):
            if name in reading:
                raise UserError(f"option {name!r} goes with format=problems, not with demonstrations")
        return LanguageTask(
            demonstration_set(Path(data).name, load_demonstrations(data, **reading), share),
            verifier or "exact",
            **given,
        )
    if kind != "problems":
        raise UserError(f"format={kind!r} is not known: problems, demonstrations or pairs")
    return LanguageTask(load_problems(data, **reading), verifier or "exact", **given)


def holds_pairs(data: str, split: str | None) -> bool:
    """Return whether the first row has the fields of a preference pair."""
    from vantage.tasks.language.reading import read_rows

    _, row = next(read_rows(data, split))
    return "chosen" in row and "rejected" in row


def _pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        role, equals, name = pair.partition("=")
        if not equals or not role.strip() or not name.strip():
            raise UserError(f"fields: {pair!r} is no role=field, as in prompt=question,answer=final")
        found[role.strip()] = name.strip()
    return found
