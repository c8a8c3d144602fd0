"""Verifiers of a completion's text: equality, regular expression, JSON schema.

Each is a frozen dataclass called with (problem, completion) that returns 1.0 or 0.0. `isolated` means that a call may run
long or crash and is made in a worker process; the others take microseconds and run in the calling process.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from vantage.core import checked_by, component
from vantage.core.errors import require
from vantage.rewards.fences import answer_block


class Graded(Protocol):
    """Interface of a problem to verifiers."""

    @property
    def prompt(self) -> str | list[dict[str, str]]:
        """Prompt, as text or as chat messages."""
        ...

    @property
    def answer(self) -> str:
        """Reference answer."""
        ...

    @property
    def fields(self) -> Mapping[str, Any]:
        """Further fields of the problem."""
        ...


def after_marker(text: str, marker: str) -> str | None:
    """Return the text after the last `marker`, the whole text for an empty marker, None where it is absent."""
    if not marker:
        return text
    _, found, rest = text.rpartition(marker)
    return rest if found else None


@dataclass(frozen=True)
class Exact:
    """Verifier that scores 1 where the completion equals the reference answer after normalisation.

    Attributes:
        after: compare only the text after the last occurrence of this marker ("" for the whole completion).
        case: whether case matters.
        space: whether inner white space matters; at the ends it never does.
    """

    after: str = ""
    case: bool = True
    space: bool = False
    isolated: ClassVar[bool] = False

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when they are the same, else 0.0."""
        found = after_marker(completion, self.after)
        return float(found is not None and self._normal(found) == self._normal(problem.answer))

    def _normal(self, text: str) -> str:
        text = text.strip() if self.space else " ".join(text.split())
        return text if self.case else text.casefold()


def _regular(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None


@component(label="verifier regex")
class Regex:
    """Verifier that scores 1 where the completion has the pattern; with a group named `answer`, where it is the reference answer.

    The dot matches line ends too. A pattern can take exponential time on adversarial text, hence `isolated`.

    Raises:
        UserError: the pattern is not a regular expression.
    """

    pattern: Annotated[str, checked_by(_regular)]
    full: bool = False
    case: bool = True
    isolated: ClassVar[bool] = True

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when the pattern (and its answer) is there, else 0.0."""
        pattern = re.compile(self.pattern, re.DOTALL | (0 if self.case else re.IGNORECASE))
        text = completion.strip()
        match = pattern.fullmatch(text) if self.full else pattern.search(text)
        if match is None:
            return 0.0
        if "answer" not in pattern.groupindex:
            return 1.0
        normal = Exact(case=self.case)
        return float(normal._normal(match["answer"] or "") == normal._normal(problem.answer))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _schema(path: str) -> Any:
    """Return the validator of a schema file, None without one."""
    try:
        return _validator(Path(path).read_text("utf-8")) if path else None
    except OSError as error:
        raise ValueError(str(error)) from None


@component(label="verifier json-schema")
class JsonSchema:
    """Verifier that scores 1 where the completion is JSON that satisfies a schema.

    Read is the last closed block that is fenced as JSON; without one, the last block without a language that is JSON; without
    any block, the whole completion.

    Attributes:
        schema: path of the schema file; "" to read the schema from the problem's field `schema`.

    Raises:
        UserError: the file does not exist, or is not a JSON schema.
    """

    schema: Annotated[str, checked_by(_schema)] = ""
    isolated: ClassVar[bool] = True

    def prepare(self) -> None:
        """Import the library ahead of the first call."""
        require("jsonschema", "language")

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when the JSON satisfies the schema, else 0.0."""
        validator = _schema(self.schema)
        if validator is None and "schema" in problem.fields:
            schema = problem.fields["schema"]
            validator = _validator(schema if isinstance(schema, str) else json.dumps(schema))
        if validator is None:
            raise ValueError("no schema: give the verifier one, or the problem a field `schema`")
        try:
            value = json.loads(answer_block(completion, ("json",), _is_json))
        except (ValueError, RecursionError):
            return 0.0
        return float(validator.is_valid(value))


@functools.lru_cache(maxsize=256)
def _validator(text: str) -> Any:
    library, referencing = require("jsonschema", "language"), require("referencing", "language")
    schema = json.loads(text)
    maker = library.validators.validator_for(schema)
    try:
        maker.check_schema(schema)
    except library.exceptions.SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.message}") from None
    # A registry without retrieval: the library's default one would fetch references over the network.
    return maker(schema, registry=referencing.Registry())
