"""Completions stored with a run, as a Parquet data set that is written atomically, and their listing."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vantage.core.checkpoint import write_atomically
from vantage.core.errors import UserError, require

FOLDER = "samples.parquet"
"""Folder of Parquet files, which Parquet readers read as one table."""


@dataclass(frozen=True)
class Graded:
    """Decoded and scored rows of a step; every list has one entry per row.

    `advantage` is the mean over the row's decisions, None where it was not computed.
    """

    problem: list[int]
    prompt: list[str]
    completion: list[str]
    rewards: list[dict[str, float]]
    advantage: list[float | None]
    length: list[int]
    finished: list[bool]


def _schema(pa: Any) -> Any:
    return pa.schema(
        [
            ("step", pa.int64()),
            ("problem", pa.int64()),
            ("prompt", pa.string()),
            ("completion", pa.string()),
            ("rewards", pa.map_(pa.string(), pa.float64())),
            ("advantage", pa.float64()),
            ("length", pa.int32()),
            ("finished", pa.bool_()),
        ]
    )


class SampleWriter:
    """Listener that stores some completions of every step under `samples.parquet`.

    Rows are buffered and written as files, each atomically: a crash loses at most the last seconds and never leaves a
    file that cannot be read. On a resumed run, rows of steps that are run again are dropped first. When `most` rows are
    exceeded, every second stored step is deleted, and from then on only every second one is stored.

    Args:
        folder: folder of the run.
        source: `(report) -> Graded | None`, the rows of the last step.
        most: largest number of rows kept in total.
        part: rows buffered before a file is written.
        seconds: longest time that rows are buffered.
    """

    def __init__(
        self,
        folder: Path,
        source: Callable[[Any], Graded | None],
        *,
        most: int = 20_000,
        part: int = 1024,
        seconds: float = 30.0,
    ) -> None:
        self.folder = Path(folder) / FOLDER
        self.source = source
        self.most, self.part, self.seconds = most, part, seconds
        self.every = 1
        self._pa = require("pyarrow", "language")
        require("pyarrow.parquet", "language")
        self._rows: list[dict[str, Any]] = []
        self._number = 0
        self._stored = 0
        self._written = time.monotonic()
        self._opened = False

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, *problem: object) -> None:
        self.flush()

    def __call__(self, report: Any) -> None:
        """Store the rows of a step."""
        if not self._opened:
            self._open(report.step)
        graded = self.source(report)
        if graded is None or report.step % self.every:
            return
        for place in range(len(graded.completion)):
            row = {name: values[place] for name, values in vars(graded).items()}
            self._rows.append({"step": report.step, **row, "rewards": list(row["rewards"].items())})
        if len(self._rows) >= self.part or time.monotonic() - self._written > self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows as a file."""
        self._written = time.monotonic()
        if not self._rows:
            return
        self._write(self._pa.Table.from_pylist(self._rows, schema=_schema(self._pa)), self._next())
        self._stored += len(self._rows)
        self._rows = []
        if self._stored > self.most:
            self._thin()

    def _next(self) -> Path:
        self._number += 1
        return self.folder / f"part-{self._number:06d}.parquet"

    def _write(self, table: Any, path: Path) -> None:
        from pyarrow import parquet

        self.folder.mkdir(parents=True, exist_ok=True)
        sink = self._pa.BufferOutputStream()
        parquet.write_table(table, sink, compression="zstd")
        write_atomically(path, sink.getvalue().to_pybytes())

    def _open(self, step: int) -> None:
        """Drop rows of this step and later ones that an earlier run stored, and continue the numbering of its files."""
        self._opened = True
        for path in _parts(self.folder):
            self._number = max(self._number, int(path.stem.partition("-")[2]))
        self._keep(lambda steps: steps < step)

    def _thin(self) -> None:
        while self._stored > self.most:
            self.every *= 2
            self._keep(lambda steps: steps % self.every == 0)
            if self.every > 1 << 40:
                return

    def _keep(self, wanted: Callable[[Any], Any]) -> None:
        self._stored = 0
        for path in _parts(self.folder):
            table = _read(path)
            if table is None:
                path.unlink()
                continue
            mask = wanted(table["step"].to_numpy())
            kept = int(mask.sum())
            if kept == 0:
                path.unlink()
            elif kept < len(table):
                self._write(table.filter(self._pa.array(mask)), path)
            self._stored += kept


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet")) if folder.is_dir() else []


def _read(path: Path) -> Any:
    """Return the table of a file, None when it cannot be read."""
    from pyarrow import parquet
    from pyarrow.lib import ArrowException

    try:
        return parquet.ParquetFile(path).read()
    except (OSError, ArrowException):
        return None


def read_samples(run: Path) -> list[dict[str, Any]]:
    """Return the stored rows of a run, in order of their steps, each with `rewards` as a dict.

    Raises:
        UserError: the folder does not exist, or holds no samples.
    """
    require("pyarrow", "language")
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}")
    parts = _parts(run / FOLDER)
    if not parts:
        raise UserError(f"the run {run} has no {FOLDER}: only language runs store samples, from their first step on")
    rows: list[dict[str, Any]] = []
    for path in parts:
        table = _read(path)
        if table is not None:
            rows += table.to_pylist()
    for row in rows:
        row["rewards"] = dict(row["rewards"])
    return sorted(rows, key=lambda row: row["step"])


def browse(
    run: Path,
    *,
    step: int | None = None,
    everything: bool = False,
    order: str = "stored",
    contains: str = "",
    limit: int = 10,
    as_json: bool = False,
) -> str:
    """Return stored completions as text.

    Args:
        run: folder of the run.
        step: only this step; None for the last one stored, unless `everything`.
        everything: all steps.
        order: "stored", "best" (highest total reward first) or "worst".
        contains: only rows whose prompt or completion contains this text.
        limit: largest number of rows, at least 1.
        as_json: JSON lines instead of formatted text.

    Raises:
        UserError: the run has no samples, or none of the step (the steps stored are named).
    """
    if limit < 1:
        raise UserError(f"limit={limit} is out of range: at least 1")
    if order not in ("stored", "best", "worst"):
        raise UserError(f"order={order!r} is not known: stored, best or worst")
    rows = read_samples(run)
    steps = sorted({row["step"] for row in rows})
    if step is not None and step not in steps:
        near = sorted(steps, key=lambda s: abs(s - step))[:3]
        raise UserError(f"step {step} has no samples; near it: {', '.join(map(str, sorted(near)))} (of {len(steps)})")
    if not everything:
        wanted = steps[-1] if step is None else step
        rows = [row for row in rows if row["step"] == wanted]
    rows = [row for row in rows if contains in row["prompt"] or contains in row["completion"]]
    if order != "stored":
        rows.sort(key=lambda row: _total(row["rewards"]), reverse=order == "best")
    shown = rows[:limit]
    if as_json:
        return "\n".join(json.dumps(row) for row in shown)
    if not shown:
        return f"no stored completion contains {contains!r}"
    blocks = [_block(row) for row in shown]
    rest = f"\n\n{len(shown)} of {len(rows)} rows; --limit shows more" if len(rows) > len(shown) else ""
    return "\n\n".join(blocks) + rest


def _total(rewards: Mapping[str, float]) -> float:
    return sum(value for value in rewards.values() if value == value)


def _block(row: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{visible(name)} {value:.4g}" for name, value in row["rewards"].items()) or "no reward"
    advantage = "" if row["advantage"] is None else f", advantage {row['advantage']:+.3f}"
    end = "finished" if row["finished"] else "truncated"
    head = f"step {row['step']}, problem {row['problem']}: {scores}{advantage}, {row['length']} tokens, {end}"
    return "\n".join([head, _indented("prompt", row["prompt"]), _indented("answer", row["completion"])])


def visible(text: str) -> str:
    """Return a text whose control and direction characters are written as escapes: a terminal would obey them."""
    return "".join(
        one if one in "\n\t" or unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else ascii(one)[1:-1]
        for one in text
    )


def _indented(label: str, text: str) -> str:
    lines = visible(text).split("\n")
    return "\n".join([f"  {label}  {lines[0]}", *(f"          {line}" for line in lines[1:])])
