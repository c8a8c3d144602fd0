"""The figures of a study: each is the statistic of the runs that it claims to be, and the headline says what was shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vantage.study.comparison import compare_all
from vantage.study.curves import area_under_curve
from vantage.study.results import Study
from vantage.study.statistics import iqm, probability_of_improvement
from vantage.study.summary import summarise, threshold_of

from .synthetic import build

pytest.importorskip("scipy.stats", reason="the study extra is not installed")


def flipped(study: Study) -> Study:
    """The same study in a score for which lower is better."""
    runs = tuple(
        replace(
            run,
            curve=tuple(replace(point, score=-point.score) for point in run.curve),
            final={task: -score for task, score in run.final.items()},
        )
        for run in study.runs
    )
    return replace(study, runs=runs, direction="lower", optimum=None if study.optimum is None else -study.optimum)


@pytest.fixture(scope="module")
def study() -> Study:
    return build(crashed=[("reinforce", 3)])


def test_rows_are_the_statistics_of_the_finished_runs(study: Study) -> None:
    found = summarise(study, resamples=2000)
    rows = {row.name: row for row in found.arms}
    assert [row.name for row in found.arms] == [arm.name for arm in study.arms]
    row, scores = rows["reinforce"], np.ravel(study.scores("reinforce"))
    assert (row.ok, row.crashed, row.running, row.waiting) == (4, 1, 0, 0)
    assert row.scores == tuple(scores)
    assert row.mean.value == pytest.approx(scores.mean())
    assert row.iqm.value == pytest.approx(iqm(scores))
    assert row.gap == pytest.approx(1 - scores.mean())
    assert row.better.value == probability_of_improvement(scores, np.ravel(study.scores("grpo")))
    assert rows["grpo"].better is None
    areas = [
        area_under_curve([p.samples for p in run.curve], [p.score for p in run.curve])
        for run in study.runs_of("reinforce", "ok")
    ]
    assert row.area.value == pytest.approx(np.mean(areas))
    assert found.area_range == (0, 51_200)
    assert row.reach.median is None
    assert (row.reach.reached, row.reach.runs) == (0, 4)
    assert rows["dapo"].reach.median < rows["grpo"].reach.median


def test_comparisons_are_two_families(study: Study) -> None:
    found = summarise(study, resamples=500)
    assert len(found.against_baseline) == 5
    assert len(found.every_pair) == 15
    scores = {arm.name: study.scores(arm.name) for arm in study.arms}
    expected = compare_all(scores, [(one.x, "grpo") for one in found.against_baseline])
    assert {(one.x, one.y): one.difference for one in found.against_baseline} == expected
    favours = {one.x: one.favours for one in found.against_baseline}
    assert favours == {"dapo": "dapo", "rloo": None, "dr-grpo": None, "gspo": None, "reinforce": "grpo"}


def test_lower_is_better_mirrors_everything(study: Study) -> None:
    up, down = summarise(study, resamples=2000), summarise(flipped(study), resamples=2000)
    for a, b in zip(up.arms, down.arms, strict=True):
        assert b.mean.value == pytest.approx(-a.mean.value)
        assert b.reach == pytest.approx(a.reach) if a.reach.median else b.reach == a.reach
        assert b.gap == pytest.approx(a.gap)
        if a.better:
            assert b.better == pytest.approx(a.better)
    assert [one.favours for one in up.every_pair] == [one.favours for one in down.every_pair]
    assert down.threshold == pytest.approx(-up.threshold)


def test_the_threshold_is_nine_tenths_of_the_baselines_way(study: Study) -> None:
    runs = study.runs_of("grpo")
    start, end = (np.mean(values) for values in ([r.curve[0].score for r in runs], [r.score for r in runs]))
    assert threshold_of(study) == pytest.approx(start + 0.9 * (end - start))
    assert threshold_of(replace(study, threshold=0.5)) == 0.5
    stuck = tuple(replace(run, final={"score": 0.2}) if run.arm == "grpo" else run for run in study.runs)
    assert threshold_of(replace(study, runs=stuck)) is None
    assert threshold_of(replace(study, runs=())) is None
    assert all(row.reach is None for row in summarise(replace(study, runs=stuck), resamples=100).arms)


def test_headline_names_what_is_shown_and_what_is_not(study: Study) -> None:
    found = summarise(study, resamples=100)
    assert found.finished
    assert found.headline == (
        "dapo (+0.080) does better than grpo; reinforce (−0.124) does worse than grpo. "
        "No difference from grpo is shown for rloo, dr-grpo and gspo."
    )


@pytest.mark.parametrize(
    ("study", "headline"),
    [
        (build(arms=("grpo", "rloo", "gspo")), "No difference from grpo is shown for rloo and gspo."),
        (build(arms=("grpo", "rloo", "gspo", "dr-grpo")), "No difference from grpo is shown for any of the 3 other methods."),
        (build(arms=("grpo",), seeds=2), "grpo scores 0.7080 over 2 seeds."),
        (replace(build(), runs=()), "No run has finished yet."),
        (build(arms=("grpo",), seeds=1, crashed=[("grpo", 0)]), "No run finished: there is nothing to compare."),
        (
            build(arms=("grpo", "dapo"), waiting=[("dapo", 4)]),
            "So far: dapo (+0.079) does better than grpo.",
        ),
        (
            build(arms=("grpo", "dapo", "rloo"), running=[("grpo", seed) for seed in range(5)]),
            "So far: grpo, the baseline, has no finished run to compare the others with.",
        ),
    ],
    ids=["none shown", "none of many", "one method", "no run", "all crashed", "so far", "no baseline"],
)  # fmt: skip
def test_headline_in_other_states(study: Study, headline: str) -> None:
    assert summarise(study, resamples=100).headline == headline


def test_a_paired_study_compares_the_seeds_that_all_finished() -> None:
    study = replace(build(arms=("grpo", "dapo"), crashed=[("dapo", 1)]), paired=True)
    (one,) = summarise(study, resamples=100).against_baseline
    assert one.difference.paired
    assert one.difference.seeds == (4, 4)
    kept = [0, 2, 3, 4]
    x, y = (np.ravel([study.runs_of(name)[seed].score for seed in kept]) for name in ("dapo", "grpo"))
    assert one.difference.effect == pytest.approx((x - y).mean())


def test_several_tasks_are_strata_of_one_run() -> None:
    rng = np.random.default_rng(0)
    study = build(arms=("grpo", "dapo"))
    runs = tuple(
        replace(run, final={"easy": run.score + 0.1, "hard": run.score - rng.random() / 5}) for run in study.runs
    )
    found = summarise(replace(study, tasks=("easy", "hard"), runs=runs), resamples=500)
    assert found.arms[0].mean.value == pytest.approx(np.mean([run.score for run in runs if run.arm == "grpo"]))
    assert len(found.arms[0].scores) == 5
    assert found.arms[0].mean.low < found.arms[0].mean.value < found.arms[0].mean.high
