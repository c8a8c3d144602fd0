"""Measured error rates and power of the rule of `vantage.study.comparison`.

`python -m vantage.study.calibration` prints the tables of the docstrings (a minute). As in a study of one method, the scores
of two arms are disjoint samples of the same 200 recorded scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from vantage.study.comparison import shown
from vantage.study.significance import correct, paired_t, permutation, sign_flip, welch
from vantage.study.statistics import Array, Statistic, bootstrap, iqm, mean

Source = Callable[[np.random.Generator, int], Array]

RECORDED = 200

SOURCES: Mapping[str, Source] = {
    "normal": lambda rng, count: rng.normal(0.7, 0.03, count),
    "skewed (log-normal)": lambda rng, count: rng.lognormal(0.0, 1.0, count),
    "a tenth of runs fail": lambda rng, count: np.where(rng.random(count) < 0.1, 0.1, 0.7) + rng.normal(0, 0.03, count),
    "two clusters": lambda rng, count: np.where(rng.random(count) < 0.5, 0.2, 0.8) + rng.normal(0, 0.01, count),
    "k of 64 right": lambda rng, count: rng.binomial(64, 0.6, count) / 64,
    "k of 8 right": lambda rng, count: rng.binomial(8, 0.6, count) / 8,
    "solved or not": lambda rng, count: rng.integers(2, size=count).astype(np.float64),
}
"""Name -> distribution of the 200 recorded scores."""


def decide(arms: Array, pairs: list[tuple[int, int]], *, paired: bool = False) -> Array:
    """Return for a batch of studies which of the pairs are "difference shown", bool [B, P].

    Args:
        arms: scores [B, A, R] of B studies with A arms of R seeds.
        pairs: P pairs of arms, one family for Holm's correction.
        paired: compare seed by seed.
    """
    seeds = arms.shape[-1]
    tests = [(paired_t if paired else welch)(arms[:, i], arms[:, j]) for i, j in pairs]
    corrected = correct(np.stack([test.p for test in tests], axis=-1))
    result = np.zeros(corrected.shape, dtype=bool)
    for column, ((i, j), test) in enumerate(zip(pairs, tests, strict=True)):
        p, agrees = corrected[:, column], np.zeros(len(arms))
        candidate = shown(test, p, agrees, seeds, seeds, paired)
        # The permutation test is by far the most expensive, and has an effect only where the other two conditions hold.
        agrees[candidate] = (sign_flip if paired else permutation)(arms[candidate, i], arms[candidate, j])
        result[:, column] = shown(test, p, agrees, seeds, seeds, paired)
    return result


def false_rate(
    source: Source,
    seeds: int,
    *,
    arms: int = 2,
    pairs: list[tuple[int, int]] | None = None,
    paired: bool = False,
    records: int = 20,
    studies: int = 1000,
    seed: int = 0,
) -> float:
    """Return the share of studies of one method in which any of the pairs is "difference shown".

    Args:
        source: samples recorded scores.
        seeds: seeds per arm.
        arms: arms per study, all of the same method.
        pairs: the family of comparisons; by default the one of two arms.
        paired: compare seed by seed.
        records: number of sets of 200 recorded scores.
        studies: studies sampled from each set; no score is used twice in a study.
        seed: random seed.
    """
    rng = np.random.default_rng(seed)
    wrong = 0
    for _ in range(records):
        recorded = source(rng, RECORDED)
        chosen = np.argsort(rng.random((studies, RECORDED)), axis=-1)[:, : arms * seeds]
        drawn = recorded[chosen].reshape(studies, arms, seeds)
        wrong += int(decide(drawn, pairs or [(0, 1)], paired=paired).any(axis=-1).sum())
    return wrong / (records * studies)


def found_rate(
    source: Source,
    seeds: int,
    gap: float,
    *,
    arms: int = 2,
    paired: bool = False,
    studies: int = 4000,
    seed: int = 0,
) -> float:
    """Return the share of studies in which an arm that is better by `gap` standard deviations is shown to be so.

    The better arm is compared with arm 0, beside arms - 2 further comparisons of arms that do not differ from it.
    """
    rng = np.random.default_rng(seed)
    spread = source(rng, 100_000).std()
    drawn = source(rng, studies * arms * seeds).reshape(studies, arms, seeds)
    drawn[:, 1] += gap * spread
    pairs = [(arm, 0) for arm in range(1, arms)]
    return float(decide(drawn, pairs, paired=paired)[:, 0].mean())


def coverage(
    source: Source,
    seeds: int,
    statistic: Statistic,
    *,
    expand: bool,
    studies: int = 2000,
    resamples: int = 2000,
    seed: int = 0,
) -> float:
    """Return the share of studies in which the 95 % bootstrap interval of a statistic contains its true value."""
    rng = np.random.default_rng(seed)
    truth = float(statistic(source(rng, 4_000_000)[:, None]))
    held = 0
    for _ in range(studies):
        found = bootstrap(
            source(rng, seeds), statistic, resamples=resamples, expand=expand, seed=int(rng.integers(1 << 31))
        )
        held += found.low is not None and found.high is not None and found.low <= truth <= found.high
    return held / studies


def every_to_first(arms: int) -> list[tuple[int, int]]:
    """Return the pairs of each arm with the first."""
    return [(arm, 0) for arm in range(1, arms)]


def table() -> str:
    """Return the tables of error rates, power and coverage, in per cent."""
    lines = [
        "                      same method, 2 arms    6 arms, any pair   one arm better, 5 seeds",
        "                          3     5    10 seeds   5 pairs  15 pairs    2 sd   3 sd   3 sd of 5 pairs",
    ]
    every = [(i, j) for i in range(6) for j in range(i)]
    for name, source in SOURCES.items():
        alone = "".join(f"{100 * false_rate(source, seeds):6.1f}" for seeds in (3, 5, 10))
        first, all_pairs = (100 * false_rate(source, 5, arms=6, pairs=pairs) for pairs in (every_to_first(6), every))
        seen = "".join(f"{100 * found_rate(source, 5, gap, arms=arms):7.1f}" for gap, arms in ((2, 2), (3, 2), (3, 6)))
        lines.append(f"{name:21s}{alone}{first:16.1f}{all_pairs:10.1f} {seen}")
    lines += ["", "coverage of the 95 % bootstrap interval, normal scores      3     5    10    20 seeds"]
    for statistic in (mean, iqm):
        for expand in (False, True):
            held = [coverage(SOURCES["normal"], seeds, statistic, expand=expand) for seeds in (3, 5, 10, 20)]
            label = f"{statistic.__name__}, {'expanded' if expand else 'percentile'}"
            lines.append(f"{label:57s}{''.join(f'{100 * value:6.1f}' for value in held)}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
