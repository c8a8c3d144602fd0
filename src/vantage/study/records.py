"""Records of claims: what came out, dated, in `claims/FAMILY/NAME.json`.

A record is of the commit that it names. It does not become wrong when a file changes; whether a change altered what its runs
compute is told by the probe beside it (`vantage.study.probes`), and a record that was measured before such a change says so.
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
    """One side of a claim as it was run: full settings, and a value for each seed (None for a crashed run)."""

    method: str
    settings: Mapping[str, Any]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Change:
    """A change of the code after which a record's runs would come out otherwise: when it was accepted, at which commit, why."""

    date: str
    commit: str
    reason: str

    @staticmethod
    def now(reason: str) -> Change:
        """Return a change accepted today at the commit that is here."""
        return Change(datetime.now(UTC).date().isoformat(), commit(), reason)


@dataclass(frozen=True)
class Result:
    """What came out of a claim.

    Args:
        name: the claim's label on its page.
        claim: the claim in words.
        verdict: "holds", "not shown" or "contradicted".
        effect: mean of the method minus mean of the baseline, in the metric's unit.
        interval: its 95 % interval; None with too few runs.
        p: of the verdict's test, which is of the difference beyond the margin.
        seeds: that both sides ran.
        ours, theirs: the two sides.
        metric, direction, margin, arena, note: of the claim.
        budget: what each run could spend.
        seeds_needed: runs a side that would show an effect of this size four times in five, where the spread is known.
        reason: why it is "not shown" where the numbers are not the reason.
        date: ISO 8601.
        duration: wall-clock seconds of all runs, one after the other.
        cpu_seconds: their user and system time.
        commit: of the code; "+" for changes that were not committed.
        versions: of the libraries.
        seen: what looking at the runs showed, of a result that does not hold or holds for another reason than its words
            suggest. Written by hand, from figures, into the file.
        changes: of the code since, that alter what the runs compute (`vantage claims bless`).
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
        """When and of which code, and before which changes of it."""
        said = f"{self.date[:10]}, {self.commit[:7] or 'no commit'}{'+' * self.commit.endswith('+')}"
        if self.changes:
            said += "; measured before: " + "; ".join(
                f"{change.reason} ({change.date}, {change.commit[:7]})" for change in self.changes
            )
        return said


@dataclass(frozen=True)
class Results:
    """The file of a page: its results by the claims' names."""

    format: int
    method: str
    family: str
    claims: Mapping[str, Result] = field(default_factory=dict)

    @staticmethod
    def path(folder: Path, page: registry.Page) -> Path:
        """Return where a page's results are stored."""
        return folder / page.family / f"{page.name}.json"

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file of results.

        Raises:
            UserError: it cannot be read or holds something else.
        """
        try:
            return decode(cls, json.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is no file of claim results: {error}") from error

    @classmethod
    def of(cls, folder: Path, page: registry.Page) -> Results:
        """Return the stored results of a page, without any when it has no file.

        Raises:
            UserError: its file holds something else.
        """
        path = cls.path(folder, page)
        return cls.load(path) if path.is_file() else cls(FORMAT, page.name, page.family)

    def store(self, folder: Path) -> Path:
        """Write the file of the page, whole or not at all; return it."""
        path = folder / self.family / f"{self.method}.json"
        write_atomically(path, json.dumps(encode(self), indent=1) + "\n")
        return path


def files(folder: Path) -> Iterator[Path]:
    """Yield the files of results in a folder."""
    yield from (path for path in sorted(folder.glob("*/*.json")) if not path.name.endswith(".probe.json"))


def mark(folder: Path, page: registry.Page, labels: tuple[str, ...], change: Change) -> list[str]:
    """Note in a page's results that they were measured before a change of the code; return the names of those.

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
