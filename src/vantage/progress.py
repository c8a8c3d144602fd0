"""Progress of a run: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from vantage.core.context import Context
from vantage.core.costs import cost
from vantage.core.trainer import Report

_SHOWN = (
    "score",
    "episode/return",
    "episode/length",
    "length/mean",
    "loss/policy",
    "loss/value",
    "perplexity",
    "entropy",
    "kl/old",
    "kl/reference",
    "clip_fraction",
    "grad_norm",
    "groups/without_variance",
    "rollout/informative",
)


def outlook(context: Context) -> str:
    """Return the length of a run, as far as its rollout plan determines it: steps, samples, optimiser steps."""
    method, steps, budget = context.method, context.total_steps, context.budget
    each = cost(method.rollout, getattr(context.task, "episode_length", None))
    updates = getattr(method.update, "optimizer_steps", None)
    if budget is not None and budget.each is None:
        said = [f"{budget.size:,} environment steps, in an unknown number of steps"]
        said += [f"{_count(each.rows, 'episode')} a step"] if each.rows else []
        return ", ".join([*said, *([f"{_count(updates, 'optimiser step')} a step"] if updates else [])])
    if budget is not None:
        assert budget.each is not None
        rest = budget.size - (steps - 1) * budget.each
        size = f"{rest:,}" if steps == 1 or rest == budget.each else f"{budget.each:,} (the last of {rest:,})"
        said = [f"{budget.size:,} environment steps: {_count(steps, 'step')} of {size}"]
    elif each.samples is not None:
        said = [f"{_count(steps, 'step')} of {_count(each.samples, 'sample')}", f"{steps * each.samples:,} in all"]
    else:
        said = [_count(steps, "step"), "samples known only afterwards"]
    return ", ".join([*said, *([_count(round(steps * updates), "optimiser step")] if updates else [])])


def _count(number: float, what: str) -> str:
    return f"{number:,g} {what}" if number == 1 else f"{number:,.10g} {what}s"


class Progress:
    """Listener that shows progress, the time left and the most important metrics.

    A rich display in a terminal; otherwise one plain line at most every `interval` seconds, and for every evaluation.
    """

    def __init__(self, title: str, interval: float = 5.0, live: bool | None = None) -> None:
        self.title = title
        self.interval = interval
        self.live = sys.stdout.isatty() if live is None else live
        self._started = time.monotonic()
        self._first: int | None = None
        self._said = -interval
        self._display: Any = None
        self._bar: Any = None
        self._task: Any = None
        self._evaluation: dict[str, float] = {}

    def __enter__(self) -> Progress:
        if self.live:
            from rich.live import Live
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                expand=True,
            )
            self._task = self._bar.add_task(self.title, total=None)
            self._display = Live(self._bar, refresh_per_second=4)
            self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.__exit__(kind, error, trace)

    def __call__(self, report: Report) -> None:
        """Show one step."""
        evaluation = {name: value for name, value in report.metrics.items() if name.startswith("eval/")}
        self._evaluation = evaluation or self._evaluation
        if self._first is None:
            self._first = report.step
        if self._display is not None:
            self._bar.update(self._task, completed=report.step, total=report.total_steps)
            self._display.update(self._group(report))
            return
        now = time.monotonic()
        if evaluation or report.step == report.total_steps or now - self._said >= self.interval:
            self._said = now
            print(self._line(report), flush=True)

    def _rows(self, report: Report) -> list[tuple[str, float]]:
        rows = [(name, report.metrics[name]) for name in _SHOWN if name in report.metrics]
        rows += [(name, value) for name, value in report.metrics.items() if name.startswith("reward/")]
        return rows + list(self._evaluation.items())

    def _group(self, report: Report) -> Any:
        from rich.console import Group
        from rich.table import Table

        table = Table.grid(padding=(0, 3), expand=False)
        cells = [f"[dim]{name}[/dim] {value:.4g}" for name, value in self._rows(report)]
        for start in range(0, len(cells), 3):
            table.add_row(*cells[start : start + 3])
        seconds = "  ".join(f"{name} {value:.2f}s" for name, value in report.timing.items())
        return Group(self._bar, table, f"[dim]{seconds}[/dim]")

    def _line(self, report: Report) -> str:
        done = report.step - (self._first or 0)
        elapsed = time.monotonic() - self._started
        left = elapsed / done * (report.total_steps - report.step) if done > 0 else float("nan")
        ending = f"  left {left:.0f}s" if done > 0 and report.step < report.total_steps else ""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in self._rows(report))
        return f"{self.title}  step {report.step}/{report.total_steps}  {shown}{ending}"
