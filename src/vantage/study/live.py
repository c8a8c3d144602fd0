"""Progress display of a comparison: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from vantage.study.runner import Work, default_jobs

MARKS = {"waiting": "[dim]·[/dim]", "running": "[cyan]▸[/cyan]", "ok": "[green]✓[/green]", "crashed": "[red]✗[/red]"}
ROWS = 12
"""Largest number of running, crashed and newest finished runs in a terminal; the others are counted."""


def seconds_left(works: Sequence[Work], jobs: int) -> float | None:
    """Return the estimated remaining seconds, from finished runs of the same arm, otherwise of all; None at first."""
    known = [work for work in works if not work.cached and work.share > 0.02 and work.began]
    if not known:
        return None if any(work.state in ("waiting", "running") for work in works) else 0.0
    whole = {id(work): work.seconds / work.share for work in known if work.state != "crashed"}
    if not whole:
        return None
    average = sum(whole.values()) / len(whole)

    def length(work: Work) -> float:
        own = [whole[id(other)] for other in known if other.arm == work.arm and id(other) in whole]
        return sum(own) / len(own) if own else average

    ahead = [length(work) * (1 - work.share) for work in works if work.state in ("waiting", "running")]
    # With fewer runs left than processes, the longest of them is a lower bound.
    return max(sum(ahead) / max(jobs, 1), max(ahead, default=0.0))


class Live:
    """Watcher that shows every run's progress, current score and time left.

    Args:
        title: title of the display.
        works: the runs.
        jobs: number of parallel runs.
        decimals: decimals of scores.
        live: whether to show a table that is redrawn; None: in a terminal.
        interval: seconds between plain lines of one run.
    """

    def __init__(
        self,
        title: str,
        works: Sequence[Work],
        jobs: int | None = None,
        *,
        live: bool | None = None,
        interval: float = 15.0,
    ) -> None:
        self.title, self.works, self.jobs = title, works, jobs or default_jobs()
        self.live = sys.stdout.isatty() if live is None else live
        self.interval = interval
        self._said: dict[int, float] = {}
        self._display: Any = None

    def __enter__(self) -> Live:
        cached = sum(work.cached for work in self.works)
        if self.live:
            from rich.live import Live as Display

            self._display = Display(self._table(), refresh_per_second=4, transient=False)
            self._display.__enter__()
        else:
            print(
                f"{self.title}: {len(self.works)} runs, {self.jobs} at a time" + (f", {cached} kept" if cached else "")
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.update(self._table())
            self._display.__exit__(kind, error, trace)

    def changed(self, work: Work) -> None:
        """Show a run that has begun, has a new score, or has ended."""
        if self.live:
            return
        now = time.monotonic()
        ended = work.state in ("ok", "crashed")
        if ended or now - self._said.get(id(work), float("-inf")) >= self.interval:
            self._said[id(work)] = now
            print(self._line(work), flush=True)

    def tick(self) -> None:
        """Redraw."""
        if self._display is not None:
            self._display.update(self._table())

    def _line(self, work: Work) -> str:
        name = f"{work.arm} seed {work.seed}"
        if work.state == "crashed":
            return f"{name}  crashed: {work.error}"
        score = "" if work.score is None else f"  score {_number(work.score)}"
        if work.state == "ok":
            how = "kept from before" if work.cached else f"finished in {_time(work.seconds)}"
            done = sum(other.state in ("ok", "crashed") for other in self.works)
            left = seconds_left(self.works, self.jobs)
            rest = f", all in {_time(left)}" if left else ""
            return f"{name}  {how}{score}  ({done} of {len(self.works)}{rest})"
        left = work.seconds * (1 - work.share) / work.share if work.share > 0.02 else None
        return f"{name}  {work.share:4.0%}{score}" + (f"  left {_time(left)}" if left else "")

    def _table(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done = sum(work.state in ("ok", "crashed") for work in self.works)
        left = seconds_left(self.works, self.jobs)
        whole = sum(work.share if work.state != "crashed" else 1.0 for work in self.works)
        head = Table.grid(padding=(0, 1))
        ending = "" if left is None else "done" if not left else f"left {_time(left)}"
        head.add_row(
            Text(self.title, style="bold"),
            ProgressBar(total=max(len(self.works), 1), completed=whole, width=30),
            Text(f"{done}/{len(self.works)}"),
            Text(ending, style="dim"),
        )
        return Group(head, self._runs(), self._arms())

    def _runs(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        shown = [work for work in self.works if work.state == "running"]
        shown += [work for work in self.works if work.state == "crashed"]
        for work in shown[:ROWS]:
            left = work.seconds * (1 - work.share) / work.share if work.share > 0.02 else None
            ending = Text(work.error, style="red", overflow="ellipsis", no_wrap=True) if work.error else Text(
                "" if left is None else f"left {_time(left)}", style="dim"
            )  # fmt: skip
            table.add_row(
                Text.from_markup(MARKS[work.state]),
                Text(f"{work.arm} seed {work.seed}", overflow="ellipsis", no_wrap=True),
                ProgressBar(total=1.0, completed=work.share, width=20),
                Text("" if work.score is None else _number(work.score)),
                ending,
            )
        if len(shown) > ROWS:
            table.add_row("", Text(f"and {len(shown) - ROWS} more", style="dim"))
        return table

    def _arms(self) -> Any:
        """One line an arm: its seeds' states and the scores that there are."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for arm in dict.fromkeys(work.arm for work in self.works):
            own = [work for work in self.works if work.arm == arm]
            ended = [work.score for work in own if work.state == "ok" and work.score is not None]
            mean = f"{_number(sum(ended) / len(ended))}" if ended else ""
            each = " ".join(_number(score) for score in ended) if len(ended) <= 10 else ""
            marks = "".join(MARKS[work.state] for work in own)
            table.add_row(
                Text(arm, overflow="ellipsis", no_wrap=True),
                Text.from_markup(marks),
                Text(mean, style="bold"),
                Text(each, style="dim", overflow="ellipsis", no_wrap=True),
            )
        return table


def _number(value: float) -> str:
    return f"{value:.4g}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
