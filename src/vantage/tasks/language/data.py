"""User's problems from a file or a data set, split into training and held-out ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated

from vantage.core import between
from vantage.core.component import check_value
from vantage.core.errors import UserError
from vantage.rewards import verifiers
from vantage.rewards.verifiers import Verifier, named_scores
from vantage.tasks.language.problem import Problem, check_index, check_split
from vantage.tasks.language.reading import Row, answer_of, before_answers, choose, prompt_of, read_rows
from vantage.tasks.language.space import held_out as falls_out

PROMPTS = ("prompt", "question", "problem", "query", "instruction", "input", "messages")
ANSWERS = ("answer", "final_answer", "ground_truth", "target", "label", "solution", "output", "completion", "response")
SOLUTIONS = ("solution", "rationale", "reasoning", "completion", "response", "output")


@dataclass(frozen=True)
class ProblemTable:
    """Problem set of a file, in two splits, with one verifier. Built by `load_problems`."""

    name: str
    train: Sequence[Problem]
    test: Sequence[Problem]
    verifier: Verifier
    columns: Mapping[str, str] = field(default_factory=dict)
    """Role -> the field that has it."""
    dropped: int = 0
    """Number of training rows left out because their prompt is in the separate test file."""

    @property
    def description(self) -> str:
        """One line for a reader."""
        return f"{len(self.train)} training and {len(self.test)} held-out problems of {self.name}"

    def size(self, split: str) -> int:
        """Number of problems in a split."""
        check_split(split)
        return len(self.test if split == "test" else self.train)

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of a split, in the order of the file."""
        check_index(self.name, split, index, self.size(split))
        return (self.test if split == "test" else self.train)[index]

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return the verifier's scores by name; a single one is called `correct`."""
        score = self.verifier(problem, completion)
        return named_scores("" if isinstance(score, Mapping) else "correct", score)


def load_problems(
    path: str | Path,
    fields: Mapping[str, str] | None = None,
    answer_after: str | None = None,
    split: str | None = None,
    held_out: float = 0.1,
    test: str | Path | None = None,
    verifier: Verifier | str = "exact",
    limit: int | None = None,
) -> ProblemTable:
    """Read problems with reference answers.

    Args:
        path: .jsonl, .json, .csv, .tsv, .parquet, a folder that `datasets` saved, or the name of a data set.
        fields: role -> field, for the roles `prompt` (text or chat messages), `answer`, `solution`. Roles that are not named are
            guessed (`PROMPTS`, `ANSWERS`, `SOLUTIONS`); all other fields go to `Problem.fields`.
        answer_after: the answer is the text after the last occurrence of this marker in its field ("####" for GSM8K); the
            whole field is then the solution, unless another is named.
        split: split of a data set that has several; "train" by default where there is one.
        held_out: share of the prompts to hold out, by a hash of the prompt: the same prompt is always in the same split,
            whatever else is in the file.
        test: a file of held-out problems instead; training rows whose prompt is in it are dropped.
        verifier: scores the answers, or its specification (`vantage.rewards.verifiers.verifier`).
        limit: largest number of rows to read.

    Raises:
        UserError: something cannot be read; the message says what, where (file and line), and why.
    """
    check_value("load_problems: held_out", held_out, Annotated[float, between(0, 1)])
    scorer = verifiers.verifier(verifier) if isinstance(verifier, str) else verifier
    rows, columns = _read(path, dict(fields or {}), answer_after, split, limit)
    if test is not None:
        tested, _ = _read(test, dict(fields or {}), answer_after, None, None)
        known = {prompt_key(problem) for problem in tested}
        train = [problem for problem in rows if prompt_key(problem) not in known]
        return ProblemTable(Path(path).name, train, tested, scorer, columns, len(rows) - len(train))
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in rows:
        sides[falls_out(prompt_key(problem), held_out)].append(problem)
    return ProblemTable(Path(path).name, *sides, scorer, columns)


def prompt_key(problem: Problem) -> str:
    """Return the text that decides a prompt's split: white space and case are ignored."""
    prompt = problem.prompt if isinstance(problem.prompt, str) else json.dumps(problem.prompt, sort_keys=True)
    return " ".join(prompt.split()).casefold()


def _read(
    path: str | Path, wanted: dict[str, str], answer_after: str | None, split: str | None, limit: int | None
) -> tuple[list[Problem], dict[str, str]]:
    problems: list[Problem] = []
    columns: dict[str, str] = {}
    for where, row in islice(read_rows(path, split), limit):
        if not columns:
            guesses = {"prompt": PROMPTS, "answer": ANSWERS, "solution": SOLUTIONS}
            columns = choose(where, row, wanted, guesses, ("prompt", "answer"))
        problems.append(_problem(where, row, columns, answer_after))
    return problems, columns


def _problem(where: str, row: Row, columns: Mapping[str, str], answer_after: str | None) -> Problem:
    prompt = prompt_of(where, row, columns["prompt"], columns.get("context", ""))
    answer = answer_of(where, row, columns["answer"])
    worked = columns.get("solution")
    solution = "" if worked is None or row.get(worked) is None else answer_of(where, row, worked)
    for name in (columns["answer"], worked if solution else None):
        if name is not None:
            prompt = before_answers(where, row, columns["prompt"], prompt, name)
    if answer_after:
        _, marker, answer_only = answer.rpartition(answer_after)
        if not marker:
            raise UserError(
                f"{where}: the field {columns['answer']!r} has no {answer_after!r} for the answer to follow"
            )
        solution, answer = solution or answer, answer_only
    answer = answer.strip()
    if not answer and "tests" not in row and "schema" not in row:
        raise UserError(f"{where}: the answer is empty")
    used = {columns["prompt"], columns["answer"]}
    return Problem(prompt, answer, solution, {key: value for key, value in row.items() if key not in used})
