"""Summary of a study: one row per arm, one line per comparison, and a headline, for the report and for terminals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vantage.study.comparison import Difference, Pair, compare_all
from vantage.study.curves import (
    Reached,
    TimeToThreshold,
    area_under_curve,
    samples_to_threshold,
    time_to_threshold,
)
from vantage.study.results import Run, Study
from vantage.study.statistics import (
    Interval,
    bootstrap,
    bootstrap_improvement,
    iqm,
    mean,
    median,
    optimality_gap,
)

GAIN = 0.9
"""Share of the baseline's gain that is the threshold of "samples to threshold" when the study has none."""

FEW = 4
"""Largest number of methods that the headline names individually."""


@dataclass(frozen=True)
class ArmSummary:
    """Row of the leaderboard. Statistics are of the ok runs alone, and None where there are none.

    Attributes:
        name: name of the arm.
        ok, crashed, running, waiting: number of seeds in each state.
        scores: final score of each ok run (mean over tasks), in the order of the seeds.
        mean, iqm: with 95 % bootstrap intervals.
        median: median of the final scores.
        better: probability that a run of this arm has a better score than one of the baseline; None for the baseline.
        area: mean height of the learning curve over the range that all arms share.
        reach: samples to the summary's threshold.
        gap: mean shortfall from the study's optimum, where it is known.
        duration: mean seconds per run.
    """

    name: str
    ok: int
    crashed: int
    running: int
    waiting: int
    scores: tuple[float, ...]
    mean: Interval | None = None
    iqm: Interval | None = None
    median: float | None = None
    better: Interval | None = None
    area: Interval | None = None
    reach: TimeToThreshold | None = None
    gap: float | None = None
    duration: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Comparison of x with y: the difference x minus y, and the arm that it favours if a difference is shown."""

    x: str
    y: str
    difference: Difference
    favours: str | None


@dataclass(frozen=True)
class Summary:
    """All statistics of a study.

    Attributes:
        arms: in the study's order.
        against_baseline: every other arm against the baseline, corrected for their number; the family of the verdicts.
        every_pair: all pairs, corrected for the larger number.
        threshold: the score of "samples to threshold", or None where the baseline gains nothing.
        area_range: the samples between which areas are taken, or None.
        decimals: number of decimals of displayed scores.
        finished: whether no seed is running or waiting.
        headline: what was shown, in a sentence or two.
    """

    arms: tuple[ArmSummary, ...]
    against_baseline: tuple[Comparison, ...]
    every_pair: tuple[Comparison, ...]
    threshold: float | None
    area_range: tuple[float, float] | None
    decimals: int
    finished: bool
    headline: str


def summarise(study: Study, *, resamples: int = 10_000, seed: int = 0) -> Summary:
    """Compute all statistics of a study from its present runs.

    Args:
        study: finished or not.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.
    """
    ok = {arm.name: study.runs_of(arm.name, "ok") for arm in study.arms}
    threshold, span = threshold_of(study), _shared_span([run for runs in ok.values() for run in runs])
    arms = tuple(_arm(study, arm.name, threshold, span, resamples, seed) for arm in study.arms)
    names = [arm.name for arm in arms if arm.ok]
    reference = study.reference
    to_baseline = [(name, reference) for name in names if name != reference and reference in names]
    every = [(x, y) for index, y in enumerate(names) for x in names[index + 1 :]]
    against_baseline, every_pair = _compared(study, to_baseline), _compared(study, every)
    decimals = _decimals([score for arm in arms for score in arm.scores])
    finished = not any(arm.running or arm.waiting for arm in arms)
    headline = _headline(study, arms, against_baseline, decimals, finished)
    return Summary(arms, against_baseline, every_pair, threshold, span, decimals, finished, headline)


def threshold_of(study: Study) -> float | None:
    """Return the threshold of "samples to threshold": the study's own, or 90 % of the baseline's gain.

    The gain is from the baseline's first evaluation to its final score, both averaged over its ok runs. None where there
    is no such run or no gain.
    """
    if study.threshold is not None:
        return study.threshold
    runs = [run for run in study.runs_of(study.reference, "ok") if run.curve]
    if not runs:
        return None
    start = float(np.mean([run.curve[0].score for run in runs]))
    end = float(np.mean([run.score for run in runs if run.score is not None]))
    better = end > start if study.direction == "higher" else end < start
    return start + GAIN * (end - start) if better else None


def _arm(
    study: Study,
    name: str,
    threshold: float | None,
    span: tuple[float, float] | None,
    resamples: int,
    seed: int,
) -> ArmSummary:
    runs = study.runs_of(name)
    row = ArmSummary(
        name=name,
        ok=sum(run.status == "ok" for run in runs),
        crashed=sum(run.status == "crashed" for run in runs),
        running=sum(run.status == "running" for run in runs),
        waiting=len(study.seeds) - len(runs),
        scores=tuple(float(np.mean(values)) for values in study.scores(name)),
    )
    ok = [run for run in runs if run.status == "ok"]
    if not ok:
        return row
    # One policy is scored on all tasks, so that a run's scores are drawn together (joint).
    scores = study.scores(name)
    durations = [run.duration for run in ok if run.duration is not None]
    return replace(
        row,
        mean=bootstrap(scores, mean, resamples=resamples, joint=True, seed=seed),
        iqm=bootstrap(scores, iqm, resamples=resamples, joint=True, seed=seed),
        median=float(median(row.scores)),
        better=_better(study, name, resamples, seed),
        area=_area(ok, span, resamples, seed),
        reach=None if threshold is None else _reach(ok, threshold, study.direction),
        gap=None if study.optimum is None else float(optimality_gap(scores, study.optimum, study.direction)),
        duration=float(np.mean(durations)) if durations else None,
    )


def _better(study: Study, name: str, resamples: int, seed: int) -> Interval | None:
    other = study.scores(study.reference)
    if name == study.reference or not other:
        return None
    sign = 1.0 if study.direction == "higher" else -1.0
    x, y = sign * np.asarray(study.scores(name)), sign * np.asarray(other)
    return bootstrap_improvement(x, y, resamples=resamples, seed=seed, joint=True)


def _area(runs: Sequence[Run], span: tuple[float, float] | None, resamples: int, seed: int) -> Interval | None:
    if span is None:
        return None
    areas = [area_under_curve(*_curve(run), *span) for run in runs if len(run.curve) > 1]
    return bootstrap(areas, mean, resamples=resamples, seed=seed) if areas else None


def _reach(runs: Sequence[Run], threshold: float, direction: str) -> TimeToThreshold | None:
    reached: list[Reached] = [samples_to_threshold(*_curve(run), threshold, direction) for run in runs if run.curve]
    return time_to_threshold(reached) if reached else None


def _shared_span(runs: Sequence[Run]) -> tuple[float, float] | None:
    curves = [run.curve for run in runs if len(run.curve) > 1]
    if not curves:
        return None
    start, end = max(curve[0].samples for curve in curves), min(curve[-1].samples for curve in curves)
    return (start, end) if start < end else None


def _curve(run: Run) -> tuple[list[float], list[float]]:
    return [point.samples for point in run.curve], [point.score for point in run.curve]


def _compared(study: Study, pairs: Sequence[Pair]) -> tuple[Comparison, ...]:
    if not study.paired:
        scores = {name: study.scores(name) for pair in pairs for name in pair}
        found = compare_all(scores, pairs)
    else:
        found = _compared_by_seed(study, pairs)
    sign = 1.0 if study.direction == "higher" else -1.0
    return tuple(
        Comparison(x, y, one, None if not one.shown else x if sign * one.effect > 0 else y)
        for (x, y), one in found.items()
    )


def _compared_by_seed(study: Study, pairs: Sequence[Pair]) -> dict[Pair, Difference]:
    """Compare on the seeds that all arms finished: one set of seeds, so that one correction serves all pairs."""
    names = {name for pair in pairs for name in pair}
    finished = [{run.seed: run for run in study.runs_of(name, "ok")} for name in names]
    seeds = [seed for seed in study.seeds if all(seed in runs for runs in finished)]
    if not seeds:
        return {}
    scores = {
        name: [[runs[seed].final[task] for task in study.tasks] for seed in seeds]
        for name, runs in zip(names, finished, strict=True)
    }
    return compare_all(scores, pairs, paired=True)


def _decimals(scores: Sequence[float]) -> int:
    """Return the number of decimals that gives the standard deviation of the scores three digits."""
    spread = max(scores) - min(scores) if scores else 0.0
    if spread <= 0:
        return 3
    return min(6, max(0, 2 - math.floor(math.log10(spread))))


def _headline(
    study: Study, arms: Sequence[ArmSummary], compared: Sequence[Comparison], decimals: int, finished: bool
) -> str:
    done = [arm for arm in arms if arm.mean is not None]
    if not done:
        return "No run has finished yet." if not finished else "No run finished: there is nothing to compare."
    reference, start = study.reference, "" if finished else "So far: "
    if not compared:
        if len(done) > 1 and reference not in [arm.name for arm in done]:
            return f"{start}{reference}, the baseline, has no finished run to compare the others with."
        only = max(done, key=lambda arm: arm.name == reference)
        return f"{start}{only.name} scores {_with_interval(only.mean, decimals)} over {_seeds(only.ok)}."

    def named(group: Sequence[Comparison]) -> str:
        """Return a few methods by name with their effects; of many their number and the one with the largest effect."""
        by_size = sorted(group, key=lambda one: -abs(one.difference.effect))
        texts = [f"{one.x} ({_number(one.difference.effect, decimals, '+')})" for one in by_size]
        return _join(texts) if len(texts) <= FEW else f"{len(texts)} methods, most of all {texts[0]},"

    up = [one for one in compared if one.favours == one.x]
    down = [one for one in compared if one.favours == reference]
    unseen = [one.x for one in compared if one.favours is None]
    said = [
        f"{named(group)} {'does' if len(group) == 1 else 'do'} {word} than {reference}"
        for group, word in ((up, "better"), (down, "worse"))
        if group
    ]
    sentences = [f"{'; '.join(said)}."] if said else []
    if unseen:
        if said or len(unseen) < 3:
            which = _join(unseen) if len(unseen) <= FEW else f"the {len(unseen)} others"
        else:
            which = f"any of the {len(unseen)} other methods"
        sentences.append(f"No difference from {reference} is shown for {which}.")
    return start + " ".join(sentences)


def _with_interval(figure: Interval | None, decimals: int) -> str:
    if figure is None:
        return "nothing"
    value, low, high = (None if end is None else _number(end, decimals) for end in figure)
    return f"{value}" if low is None else f"{value} (95\N{NO-BREAK SPACE}% interval {low} to {high})"


def _number(value: float, decimals: int, sign: str = "-") -> str:
    return f"{value:{sign}.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _join(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
