"""A study as one HTML file that opens offline: nothing is fetched, nothing in the data can run.

    write_report(study, "report.html")            python -m vantage.study.report STUDY.json OUT.html

The page is a template, a style sheet and four scripts (`report_assets/`), with the figures inlined as JSON. Every string of
the study reaches the page as text (`textContent`), never as markup; a Content-Security-Policy of hashes forbids
anything else to run, to be styled or to be loaded, and Trusted Types forbid the page's own script to make markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from vantage.core.errors import UserError
from vantage.study.curves import common_grid, on_grid
from vantage.study.results import Arm, Run, Sample, Study
from vantage.study.schema import encode, write_atomically
from vantage.study.statistics import Array, Band, bootstrap_curve, performance_profile
from vantage.study.summary import Summary, summarise

SCRIPTS = ("base.js", "chart.js", "tables.js", "samples.js", "main.js")
CURVE_POINTS = 160
DIAGNOSTIC_POINTS = 100
SAMPLE_CHARACTERS = 2_000_000
"""Largest number of characters of samples in the page, which states how many samples are left out."""

DIAGNOSTICS = {
    "entropy": "Entropy",
    "kl": "KL to the reference",
    "clip_fraction": "Clip fraction",
    "length": "Completion length",
    "zero_advantage_groups": "Groups with zero advantage",
    "gradient_norm": "Gradient norm",
}
"""Diagnostics in the order of the report -> their titles; others follow under their own names."""


def write_report(study: Study, path: str | Path, *, refresh: float | None = None) -> Path:
    """Write the report of a study to one file, atomically.

    Args:
        study: finished or running study.
        path: file to write.
        refresh: seconds after which the page reloads, for a report that is served during the runs. The reader's choices
            (hidden arms, axes, sorting) are kept.

    Returns:
        The path.
    """
    path = Path(path)
    write_atomically(path, render(study, refresh=refresh))
    return path


def render(study: Study, *, refresh: float | None = None) -> str:
    """Return the report as HTML text; arguments as for `write_report`."""
    data = payload(study) | {"refresh": refresh}
    # One function around all scripts: their names stay out of the page's own (`top`, `status`, ...).
    style, script = _asset("style.css"), "(() => {{\n{}}})();".format("\n".join(_asset(name) for name in SCRIPTS))
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    parts = {
        "title": _escape(f"{study.name}: {study.metric}"),
        "policy": policy,
        "style": style,
        "script": script,
        "data": inline_json(data),
        "headline": _escape(data["summary"]["headline"]),
    }
    # One pass, so that a placeholder inside the data stays text.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("template.html"))


def inline_json(data: object) -> str:
    """Return JSON for a script element: no `<`, `>` or `&`, ASCII only, so that no text can end the element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def payload(study: Study) -> dict[str, Any]:
    """Return the page's contents as JSON values."""
    summary = summarise(study)
    return {
        "study": {
            "name": study.name,
            "arena": study.arena,
            "description": study.description,
            "command": study.command,
            "created": study.created,
            "commit": study.commit,
            "versions": dict(study.versions),
            "metric": study.metric,
            "direction": study.direction,
            "budget": encode(study.budget),
            "seeds": list(study.seeds),
            "tasks": list(study.tasks),
            "baseline": study.reference,
            "optimum": study.optimum,
            "paired": study.paired,
            "settings": _flat(study.settings),
        },
        "summary": encode(summary),
        "arms": [_arm(study, arm) for arm in study.arms],
        "profile": _profile(study, summary),
        "diagnostics": _diagnostics(study),
        "parts": _contrast([dict(arm.parts) for arm in study.arms]),
        "settings": _contrast([_flat(arm.settings) for arm in study.arms]),
        "samples": _samples(study),
    }


def _arm(study: Study, arm: Arm) -> dict[str, Any]:
    runs = study.runs_of(arm.name)
    ok = [run for run in runs if run.status == "ok"]
    return {
        "name": arm.name,
        "method": arm.method,
        "parent": arm.parent,
        "runs": [_run(run) for run in runs],
        "curve": {axis: _band_of_curves(ok, axis) for axis in ("samples", "seconds")},
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "status": run.status,
        "error": run.error,
        "duration": run.duration,
        "score": run.score,
        "samples": _short([point.samples for point in run.curve]),
        "seconds": _short([point.seconds for point in run.curve]),
        "scores": _short([point.score for point in run.curve]),
    }


def _band_of_curves(runs: Sequence[Run], axis: str) -> dict[str, Any] | None:
    curves = [run.curve for run in runs if run.curve]
    xs = [np.array([getattr(point, axis) for point in curve]) for curve in curves]
    ys = [np.array([point.score for point in curve]) for curve in curves]
    # Without measured times all positions are equal, and there is no curve over seconds.
    if axis == "seconds" and any(len(x) > 1 and not (np.diff(x) > 0).all() for x in xs):
        return None
    return _band(xs, ys, CURVE_POINTS)


def _band(xs: Sequence[Array], ys: Sequence[Array], points: int) -> dict[str, Any] | None:
    grid = common_grid(xs, points)
    if not len(grid):
        return None
    return {"x": _short(grid), **_encode_band(bootstrap_curve(on_grid(xs, ys, grid)))}


def _encode_band(band: Band) -> dict[str, list[float]]:
    return {"y": _short(band.value), "low": _short(band.low), "high": _short(band.high)}


def _profile(study: Study, summary: Summary) -> dict[str, Any] | None:
    """Return the exact run-score distributions, which step only at scores of the study's runs."""
    scores = np.unique([value for arm in summary.arms for value in np.ravel(study.scores(arm.name))])
    if len(scores) < 2:
        return None
    if len(scores) > CURVE_POINTS:
        scores = np.linspace(scores[0], scores[-1], CURVE_POINTS)
    margin = 0.04 * (scores[-1] - scores[0])
    scores = np.concatenate([[scores[0] - margin], scores, [scores[-1] + margin]])
    # "Above" leaves a score out from itself on, "below" takes it in just after: the step stands at the score in both.
    thresholds = scores if study.direction == "higher" else np.nextafter(scores, np.inf)
    arms = []
    for arm in study.arms:
        own = study.scores(arm.name)
        band = performance_profile(own, thresholds, direction=study.direction, joint=True) if own else None
        arms.append(None if band is None else _encode_band(band))
    return {"x": _short(scores), "arms": arms}


def _diagnostics(study: Study) -> list[dict[str, Any]]:
    names = {name: None for run in study.runs for name in run.diagnostics}
    order = [name for name in DIAGNOSTICS if name in names]
    order += sorted(name for name in names if name not in DIAGNOSTICS)
    return [
        {
            "name": name,
            "title": DIAGNOSTICS.get(name, name.replace("_", " ")),
            "arms": [_diagnostic(study, arm.name, name) for arm in study.arms],
        }
        for name in order
    ]


def _diagnostic(study: Study, arm: str, name: str) -> dict[str, Any] | None:
    runs = [run for run in study.runs_of(arm) if name in run.diagnostics]
    # Finished runs; before there are any, the running ones.
    runs = [run for run in runs if run.status == "ok"] or runs
    xs, ys = [], []
    for run in runs:
        points = np.array(run.diagnostics[name], dtype=np.float64).reshape(-1, 2)
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            xs.append(points[:, 0])
            ys.append(points[:, 1])
    return _band(xs, ys, DIAGNOSTIC_POINTS) if xs else None


def _contrast(columns: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Return rows of a table with one column per arm, differing ones first, each group in the order of first occurrence."""
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [{"name": name, "values": [column.get(name) for column in columns]} for name in names]
    return sorted(
        (row | {"differs": len(set(row["values"])) > 1} for row in rows),
        key=lambda row: not row["differs"],
    )


def _flat(settings: Any, prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted names and texts."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def _samples(study: Study) -> dict[str, Any]:
    """Return completions by prompt, in the order of first occurrence, up to SAMPLE_CHARACTERS of text."""
    index = {arm.name: position for position, arm in enumerate(study.arms)}
    by_prompt: dict[str, list[Sample]] = {}
    for sample in study.samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    prompts, room = [], SAMPLE_CHARACTERS
    for prompt, samples in by_prompt.items():
        room -= len(prompt) + sum(len(sample.completion) for sample in samples)
        if room < 0:
            break
        samples = sorted(samples, key=lambda s: (index[s.arm], s.seed))
        rows = [[index[s.arm], s.seed, _reward(s), s.completion] for s in samples]
        prompts.append({"prompt": prompt, "rows": rows})
    return {"prompts": prompts, "total": len(by_prompt)}


def _reward(sample: Sample) -> float | None:
    return None if sample.reward is None or not math.isfinite(sample.reward) else _short([sample.reward])[0]


def _short(values: Sequence[float] | Array) -> list[float]:
    """Round numbers to six significant digits, which suffice for a screen and take a third of the bytes."""
    return [float(f"{value:.6g}") for value in values]


def _escape(text: str) -> str:
    """Escape text for markup; characters that UTF-8 or HTML cannot represent (a lone surrogate, NUL) become question marks."""
    return html.escape(text.replace("\0", "?").encode("utf-8", "replace").decode("utf-8"))


def _asset(name: str) -> str:
    return resources.files("vantage.study").joinpath("report_assets", name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def main(arguments: Sequence[str] | None = None, say: Callable[[str], object] = print) -> int:
    """Run `python -m vantage.study.report STUDY.json OUT.html`; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 2 or any(argument in ("-h", "--help") for argument in arguments):
        say("usage: python -m vantage.study.report STUDY.json OUT.html")
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    try:
        path = write_report(Study.load(arguments[0]), arguments[1])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    say(f"wrote {path} ({path.stat().st_size / 1024:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
