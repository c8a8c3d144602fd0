"""Charts of a run's metrics, from its `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vantage.core.runlog import read_metrics

_ORDER = (
    *("eval/pass@1", "eval/return", "eval/pass@", "eval/maj@", "eval/", "score", "episode/return", "reward/"),
    *("length", "episode/length", "entropy", "kl/", "clip_fraction", "groups/", "rollout/", "loss/", "perplexity"),
    *("grad_norm", "lr"),
)


def write_curves(folder: Path, name: str = "curves.png", limit: int = 12) -> Path | None:
    """Draw the run's metrics into `folder/name`; return its path, or None when there are no metrics."""
    return draw(read_metrics(folder), folder / name, folder.name, limit)


def draw(lines: Sequence[dict[str, Any]], path: Path, title: str, limit: int = 12) -> Path | None:
    """Draw one small chart for each metric with at least two finite values, the most important first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key != "step" and value is not None and math.isfinite(value):
                steps, values = series.setdefault(key, ([], []))
                steps.append(line["step"])
                values.append(value)
    shown = sorted((key for key, (steps, values) in series.items() if _worth_showing(steps, values)), key=_rank)
    shown = [key for key in shown if not _repeats(key, shown, series)][:limit]
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    width, height = 4.2 * columns, 2.6 * rows + 0.5
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    # Fixed margins for labels of this size: measuring the labels takes longer than a short run.
    figure.subplots_adjust(0.7 / width, 0.3 / height, 1 - 0.15 / width, 1 - 0.75 / height, 0.22, 0.35)
    for index, key in enumerate(shown):
        axes = figure.add_subplot(rows, columns, index + 1)
        steps, values = series[key]
        sparse = len(steps) <= 12
        axes.plot(steps, values, color="#0072B2", linewidth=1.6 if sparse else 0.8, alpha=1.0 if sparse else 0.35,
                  marker="o" if sparse else None, markersize=4)  # fmt: skip
        if not sparse:
            axes.plot(steps, _smooth(values, max(3, len(values) // 25)), color="#0072B2", linewidth=1.8)
        axes.set_title(key, fontsize=10, loc="left")
        axes.tick_params(labelsize=8)
        axes.locator_params(nbins=5)
        axes.grid(alpha=0.25, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    temporary = path.with_name(f".{path.name}.tmp.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)
    return path


def _worth_showing(steps: list[int], values: list[float]) -> bool:
    """Return whether a curve has two points and is not constant up to rounding."""
    return len(steps) >= 2 and max(values) - min(values) > 1e-9


def _repeats(key: str, shown: list[str], series: dict[str, tuple[list[int], list[float]]]) -> bool:
    """Return whether an earlier curve is the same."""
    return any(series[other] == series[key] for other in shown[: shown.index(key)])


def _rank(key: str) -> tuple[int, str]:
    return next((i for i, prefix in enumerate(_ORDER) if key.startswith(prefix)), len(_ORDER)), key


def _smooth(values: list[float], window: int) -> list[float]:
    """Return the running mean over a centred window that is shorter at the ends."""
    half = window // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    smoothed = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        smoothed.append((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
    return smoothed
