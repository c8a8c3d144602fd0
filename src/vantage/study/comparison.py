"""Comparison of arms: tests of the difference, corrections for multiple comparisons, and the verdict.

The rule. A `Difference` is "difference shown" when all three agree, and "no difference shown" otherwise:

1. the 95 % interval of the difference of means excludes zero (Welch's t interval);
2. its p-value, corrected for the number of comparisons (Holm), is at most 5 %;
3. the permutation test of the same difference, which assumes nothing of the scores' distribution, does not object: its
   p-value is at most 5 %, or is the smallest that this number of seeds can give.

Why not the bootstrap: with 5 seeds its 95 % interval covers too little (see `vantage.study.statistics`), so that arms
of one and the same method "differ" far too often. Why not the sign-flip permutation test alone: 5 paired seeds cannot
give a p-value below 2/32 = 0.0625, so that nothing could ever be shown; nor can the two-sample permutation test, at 5
against 5 seeds, go below 2/252, which Holm's correction over 15 comparisons turns into 0.12. Why Welch and not pairs of
equal seeds: an arm's seed fixes random numbers, and two methods part ways after the first update; where the scores of a
seed are independent, pairing halves the degrees of freedom and loses power, and where they are positively correlated
Welch stays on the safe side. `paired=True` (paired t interval, sign-flip permutations) is for a design in which a seed
fixes more (the same instances, the same data), and is to be decided before the results are seen. Why the third
condition: where one arm lost runs to crashes and scores fall into two clusters, Welch's test alone errs far too often
(20 % of the time with 10 against 3 runs).

Measured: share of "difference shown", in per cent, between two arms whose seeds are drawn from the same 200 recorded scores
(the requirement is at most 5), and between arms whose means are 2 or 3 standard deviations apart. `python -m
vantage.study.calibration` prints the table again; tests/study/test_comparison.py holds the rule to it.

                          same method, 2 arms    6 arms, any pair   one arm better, 5 seeds
                              3     5    10 seeds   5 pairs  15 pairs    2 sd   3 sd   3 sd of 5 pairs
    normal                  3.4   4.0   4.9             3.3       3.2    74.2   97.5   83.2
    skewed (log-normal)     2.0   1.8   3.0             1.1       0.9    83.6   93.2   84.3
    a tenth of runs fail    1.8   1.5   1.3             1.2       0.9    62.9   91.7   61.9
    two clusters            3.2   2.1   3.6             0.9       2.8    64.2  100.0   93.3
    k of 64 right           3.7   3.2   4.3             3.5       3.0    73.9   97.5   83.7
    k of 8 right            2.9   2.3   3.2             3.7       3.1    73.0   98.2   83.9
    solved or not           0.0   2.2   1.4             0.8       0.0    43.5  100.0   93.0
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vantage.study.significance import (
    ALPHA,
    FEWEST_SEEDS,
    Correction,
    TTest,
    correct,
    paired_t,
    permutation,
    seeds_needed,
    sign_flip,
    smallest_p,
    welch,
)
from vantage.study.statistics import Array, as_scores

Verdict = Literal["difference shown", "no difference shown"]
Pair = tuple[str, str]

SHOWN: Verdict = "difference shown"
NOT_SHOWN: Verdict = "no difference shown"


@dataclass(frozen=True)
class Difference:
    """Difference of two arms, with its test and verdict.

    Attributes:
        effect: mean of x minus mean of y, in the metric's unit.
        interval: 95 % interval of the effect, for this comparison alone; None with fewer than 2 seeds.
        p: p-value corrected for the number of comparisons; 1.0 with fewer than 2 seeds.
        verdict: "difference shown" or "no difference shown" (the rule is in the module's docstring).
        p_alone: p-value before the correction.
        p_permutation: p-value of the permutation test, before the correction.
        seeds: number of runs of x and of y.
        comparisons: how many comparisons p is corrected for.
        seeds_needed: runs an arm with which an effect of this size, at this spread and with this many comparisons, is
            shown four times in five; inf when the effect is 0, None when the spread is not known.
        paired: whether runs were compared seed by seed.
    """

    effect: float
    interval: tuple[float, float] | None
    p: float
    verdict: Verdict
    p_alone: float
    p_permutation: float
    seeds: tuple[int, int]
    comparisons: int
    seeds_needed: float | None
    paired: bool

    @property
    def shown(self) -> bool:
        """Whether the verdict is "difference shown"."""
        return self.verdict == SHOWN


def shown(
    test: TTest, p: Array, p_permutation: Array, runs_x: int, runs_y: int, paired: bool = False
) -> NDArray[np.bool_]:
    """Apply the rule to a batch [...] of tests: True where the verdict is "difference shown".

    Args:
        test: of `welch` or `paired_t`.
        p: its p-values after correction.
        p_permutation: p-values of `permutation` or `sign_flip`, uncorrected.
        runs_x, runs_y: seeds of the two arms.
        paired: which of the two it was.
    """
    if min(runs_x, runs_y) < FEWEST_SEEDS:
        return np.zeros(np.shape(p), dtype=bool)
    attainable = max(ALPHA, smallest_p(runs_x, runs_y, paired))
    return ((test.low > 0) | (test.high < 0)) & (p <= ALPHA) & (p_permutation <= attainable * (1 + 1e-9))


def compare(x: ArrayLike, y: ArrayLike, *, paired: bool = False) -> Difference:
    """Return the difference of two arms, x minus y, as a single comparison.

    Args:
        x: scores [R_x] or [R_x, K] of the runs; several tasks are averaged within a run.
        y: scores [R_y] or [R_y, K].
        paired: compare seed by seed: row i of x and of y are of one seed, R_x = R_y.
    """
    return compare_all({"x": x, "y": y}, [("x", "y")], paired=paired)["x", "y"]


def compare_all(
    scores: Mapping[str, ArrayLike],
    pairs: Sequence[Pair],
    *,
    paired: bool = False,
    correction: Correction = "holm",
) -> dict[Pair, Difference]:
    """Return the differences of several pairs of arms, corrected for their number.

    Args:
        scores: arm -> [R] or [R, K]; R may differ between arms unless paired.
        pairs: (x, y) names; the effect is x minus y.
        paired: compare seed by seed.
        correction: over all the pairs given.
    """
    count = 1 if correction == "none" else len(pairs)
    alone = {pair: _alone(scores[pair[0]], scores[pair[1]], count, paired) for pair in pairs}
    corrected = correct([found.p_alone for found, _ in alone.values()], correction)
    result = {}
    for (pair, (found, test)), p in zip(alone.items(), corrected, strict=True):
        is_shown = test is not None and bool(
            shown(test, np.asarray(p), np.asarray(found.p_permutation), *found.seeds, paired)
        )
        result[pair] = replace(found, p=float(p), verdict=SHOWN if is_shown else NOT_SHOWN)
    return result


def _alone(x: ArrayLike, y: ArrayLike, comparisons: int, paired: bool) -> tuple[Difference, TTest | None]:
    """Return one comparison before the correction, without final p-value and verdict."""
    a, b = as_scores(x, "scores of x").mean(axis=-1), as_scores(y, "scores of y").mean(axis=-1)
    seeds = (len(a), len(b))
    if min(seeds) < 2:
        effect = float(a.mean() - b.mean())
        return Difference(effect, None, 1.0, NOT_SHOWN, 1.0, 1.0, seeds, comparisons, None, paired), None
    test = paired_t(a, b) if paired else welch(a, b)
    spread = float((a - b).std(ddof=1)) if paired else math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    effect = float(test.effect)
    spread = spread if test.error > 0 else 0.0
    found = Difference(
        effect=effect,
        interval=(float(test.low), float(test.high)),
        p=1.0,
        verdict=NOT_SHOWN,
        p_alone=float(test.p),
        p_permutation=float(sign_flip(a, b) if paired else permutation(a, b)),
        seeds=seeds,
        comparisons=comparisons,
        seeds_needed=seeds_needed(effect, spread, paired=paired, alpha=ALPHA / comparisons),
        paired=paired,
    )
    return found, test
