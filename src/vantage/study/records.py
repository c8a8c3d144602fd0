"""Dated records of claims' results, in `claims/FAMILY/NAME.json`.

A record is of the commit that it names. It does not become wrong when a file changes; the probe beside it
(`vantage.study.probes`) tells whether a change altered what its runs compute, and a record that was measured before such a
change is marked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from vantage.config import commit
from vantage.core.errors import UserError
from vantage.methods import registry
from vantage.study.schema import decode, encode, write_atomically

Verdict = Literal["holds", "not shown", "contradicted"]
FORMAT = 2


@dataclass(frozen=True)
class Side:
    """One side of a claim: full settings, and a value for each seed (None for a crashed run)."""

    method: str
    settings: Mapping[str, Any]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Change:
    """Change of the code that altered the results of a record's runs: date and commit of its acceptance, and reason."""

    date: str
    commit: str
    reason: str

    @staticmethod
    def now(reason: str) -> Change:
        """Return a change accepted today at the present commit."""
        return Change(datetime.now(UTC).date().isoformat(), commit(), reason)


@dataclass(frozen=True)
class Result:
    """Result of a claim.

    Args:
        name: the claim's label on its page.
        claim: the claim in words.
        verdict: "holds", "not shown" or "contradicted".
        effect: mean of the method minus mean of the baseline, in the metric's unit.
        interval: its 95 % interval; None with too few runs.
        p: p-value of the verdict's test, which is of the difference beyond the margin.
        seeds: seeds of both sides.
        ours, theirs: the two sides.
        metric, direction, margin, arena, note: those of the claim.
        budget: budget of each run.
        seeds_needed: runs per side that would show an effect of this size with probability 0.8, where the standard deviation
            is known.
        reason: reason of "not shown" where it is not the numbers.
        date: ISO 8601.
        duration: sum of the runs' wall-clock seconds.
        cpu_seconds: their user and system time.
        commit: commit of the code; "+" for uncommitted changes.
        versions: library -> version.
        seen: remarks on the runs of a result that does not hold, or that holds for another reason than its words suggest.
            Written by hand, from measured numbers, into the file.
        changes: later changes of the code that alter what the runs compute (`vantage claims bless`).
    """

    name: str
    claim: str
    verdict: Verdict
    effect: float | None
    interval: tuple[float, float] | None
    p: float | None
    seeds: tuple[int, ...]
    ours: Side
    theirs: Side
    metric: str
    direction: str
    margin: float | None
    arena: str
    budget: str
    note: str
    seeds_needed: float | None
    reason: str
    date: str
    duration: float
    cpu_seconds: float
    commit: str
    versions: Mapping[str, str]
    seen: str = ""
    changes: tuple[Change, ...] = ()

    @property
    def measured(self) -> str:
        """Date and commit of the measurement, and later changes that altered it."""
        said = f"{self.date[:10]}, {self.commit[:7] or 'no commit'}{'+' * self.commit.endswith('+')}"
        if self.changes:
            said += "; measured before: " + "; ".join(
                f"{change.reason} ({change.date}, {change.commit[:7]})" for change in self.changes
            )
        return said


@dataclass(frozen=True)
class Results:
    """Results file of a page: its results by the claims' names."""

    format: int
    method: str
    family: str
    claims: Mapping[str, Result] = field(default_factory=dict)

    @staticmethod
    def path(folder: Path, page: registry.Page) -> Path:
        """Return the path of a page's results."""
        return folder / page.family / f"{page.name}.json"

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file of results.

        Raises:
            UserError: the file cannot be read or is not a results file.
        """
        try:
            return decode(cls, json.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is no file of claim results: {error}") from error

    @classmethod
    def of(cls, folder: Path, page: registry.Page) -> Results:
        """Return the stored results of a page, empty when it has no file.

        Raises:
            UserError: the file is not a results file.
        """
        path = cls.path(folder, page)
        return cls.load(path) if path.is_file() else cls(FORMAT, page.name, page.family)

    def store(self, folder: Path) -> Path:
        """Write the file of the page, atomically; return it."""
        path = folder / self.family / f"{self.method}.json"
        write_atomically(path, json.dumps(encode(self), indent=1) + "\n")
        return path


def files(folder: Path) -> Iterator[Path]:
    """Yield the files of results in a folder."""
    yield from (path for path in sorted(folder.glob("*/*.json")) if not path.name.endswith(".probe.json"))


def mark(folder: Path, page: registry.Page, labels: tuple[str, ...], change: Change) -> list[str]:
    """Mark a page's results as measured before a change of the code; return their names.

    Of two changes with the same reason the later one is kept.
    """
    held = Results.of(folder, page)
    marked = {
        name: replace(result, changes=(*(c for c in result.changes if c.reason != change.reason), change))
        if name in labels
        else result
        for name, result in held.claims.items()
    }
    if marked != held.claims:
        replace(held, claims=marked).store(folder)
    return [name for name in labels if name in held.claims]
