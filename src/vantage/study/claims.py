"""Claims: each page's statement, run, scored and stored as a dated record.

A result says "holds", "not shown" or "contradicted". With e the difference between the means of the method and of the baseline,
in the direction claimed, and m the margin (0 where there is none; for "no worse" minus the margin):

    holds           e > m is shown        contradicted    e < m is shown        not shown       neither

by the rule of `vantage.study.comparison` (a 95 % interval, its p-value, and a permutation test that does not object) on
the scores shifted by m. A claim with a crashed run is "not shown": seeds that finished are no fair sample.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vantage.config import commit, versions
from vantage.core.errors import UserError, nearest
from vantage.methods import registry
from vantage.methods.claim import Claim, claims_of
from vantage.study import fingerprint
from vantage.study.arenas import Arena, arena
from vantage.study.cache import Cache, code_of_job, default_folder, key_of_job
from vantage.study.comparison import compare
from vantage.study.contest import Contest, Entrant, entrant, seeds_of
from vantage.study.curves import area_under_curve, samples_to_threshold
from vantage.study.records import FORMAT, Result, Results, Side, Verdict, files
from vantage.study.results import Run, Study
from vantage.study.runner import Watcher


@dataclass(frozen=True)
class Stated:
    """Claim of a page, with its arena; `file` is the page's, where it is a user's own."""

    page: registry.Page
    claim: Claim
    file: str = ""

    @property
    def arena(self) -> Arena:
        """Return the arena."""
        return arena(self.claim.arena)

    @property
    def sides(self) -> tuple[Entrant, Entrant]:
        """Return the method and the baseline."""
        where, claim = self.arena, self.claim
        ours = entrant(where, self.file or self.page.name, claim.settings, name=self.page.name, function=claim.function)
        same = claim.against == self.page.name
        theirs = entrant(
            where,
            claim.against,
            claim.against_settings,
            name=f"{claim.against} (baseline)" if same else "",
            function=claim.function,
        )
        return ours, theirs

    @property
    def words(self) -> str:
        """Return the claim in words."""
        claim, where = self.claim, self.arena
        metric = claim.metric or where.scoring.metric
        margin = f" by {claim.margin:g} or more" if claim.margin else ""
        if claim.direction == "no worse":
            return f"{metric} on {where.name} no worse than {claim.against}'s (margin {claim.margin:g})"
        return f"{metric} on {where.name} {claim.direction} than {claim.against}'s{margin}"


def stated(name: str) -> list[Stated]:
    """Return the claims of a page: all of `ppo`, or the one of `ppo/hopper`.

    Raises:
        UserError: there is no such page, or it has no claim, or none of this name.
    """
    # A file's path may contain slashes.
    start, ending, rest = name.partition(".py")
    method, _, label = (start + ending, "", rest.removeprefix("/")) if ending else name.partition("/")
    page = registry.page(method)
    found = [dataclasses.replace(one, file=method if ending else "") for one in of_page(page)]
    if not found:
        raise UserError(f"{page.name} makes no claim: its page has no `claim = Claim(...)`")
    labels = [each.claim.label for each in found]
    if label and label not in labels:
        raise UserError(f"{page.name} has no claim {label!r}{nearest(label, labels)} (claims: {', '.join(labels)})")
    return [each for each in found if not label or each.claim.label == label]


def of_page(page: registry.Page) -> list[Stated]:
    """Return the claims of a page, [] when it has none."""
    return [Stated(page, claim) for claim in claims_of(importlib.import_module(page.module))]


def all_stated() -> list[Stated]:
    """Return the claims of all pages."""
    return [one for page in registry.pages() for one in of_page(page)]


def contest_of(one: Stated, seeds: int | None = None) -> Contest:
    """Return the comparison that tests a claim: the baseline first, then the method.

    Raises:
        UserError: fewer than 2 seeds.
    """
    chosen = seeds_of(one.claim.seeds if seeds is None else seeds)
    if len(chosen) < 2:
        raise UserError(f"--seeds {len(chosen)} is out of range: a claim needs at least 2")
    return contest_on(one, chosen)


def contest_on(one: Stated, seeds: Sequence[int]) -> Contest:
    """Return the comparison on these seeds."""
    ours, theirs = one.sides
    return Contest(one.arena, [theirs, ours], seeds, name=f"{one.page.name}: {one.claim.label}")


def run(
    one: Stated,
    contest: Contest,
    folder: Path,
    *,
    cache: Cache | None = None,
    jobs: int | None = None,
    fresh: bool = False,
    out: Path | None = None,
    watchers: Sequence[Watcher] = (),
) -> Result:
    """Run a claim's comparison and store its result in `folder/FAMILY/NAME.json`, beside the page's other claims."""
    study = contest.run(cache or Cache(default_folder()), jobs=jobs, fresh=fresh, out=out, watchers=watchers)
    result = result_of(one, study, sum(work.record.cpu_seconds for work in contest.works if work.record))
    store(folder, one.page, result)
    return result


def result_of(one: Stated, study: Study, cpu_seconds: float = 0.0) -> Result:
    """Return the result of a claim from the study of its two arms, the baseline first."""
    claim = one.claim
    theirs, ours = study.arms
    values = {
        arm.name: tuple(
            None if found.status != "ok" else measure(found, claim.metric, study) for found in study.runs_of(arm.name)
        )
        for arm in study.arms
    }
    verdict, reason, found = decide(claim, values[ours.name], values[theirs.name], study.paired)
    return Result(
        name=claim.label,
        claim=one.words,
        verdict=verdict,
        effect=found.get("effect"),
        interval=found.get("interval"),
        p=found.get("p"),
        seeds=study.seeds,
        ours=Side(ours.method, ours.settings, values[ours.name]),
        theirs=Side(theirs.method, theirs.settings, values[theirs.name]),
        metric=claim.metric or study.metric,
        direction=claim.direction,
        margin=claim.margin,
        arena=study.arena,
        budget=budget_of(study),
        note=claim.note,
        seeds_needed=found.get("seeds_needed"),
        reason=reason,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        duration=sum(found_.duration or 0.0 for found_ in study.runs),
        cpu_seconds=cpu_seconds,
        commit=commit(),
        versions=versions() | fingerprint.versions(),
    )


def budget_of(where: Arena | Study) -> str:
    """Return what each run may spend, in words."""
    return f"{where.budget.size:g} {where.budget.unit}"


def decide(
    claim: Claim, ours: Sequence[float | None], theirs: Sequence[float | None], paired: bool = False
) -> tuple[Verdict, str, dict[str, Any]]:
    """Return (verdict, reason, statistics) for the values of both sides, one per seed; None is a crashed run."""
    missing = {"the method": ours.count(None), "the baseline": theirs.count(None)}
    crashed = " and ".join(f"{count} runs of {who}" for who, count in missing.items() if count)
    if crashed:
        return "not shown", f"crashed: {crashed}", {}
    if min(len(ours), len(theirs)) < 2:
        return "not shown", "fewer than 2 runs of a side are there", {}
    sign = -1.0 if claim.direction == "lower" else 1.0
    margin = (claim.margin or 0.0) * (-1.0 if claim.direction == "no worse" else 1.0)
    x = [value for value in ours if value is not None]
    y = [value for value in theirs if value is not None]
    plainly = compare(x, y, paired=paired)
    beyond = compare([sign * value - margin for value in x], [sign * value for value in y], paired=paired)
    verdict: Verdict = "not shown"
    if beyond.shown:
        verdict = "holds" if beyond.effect > 0 else "contradicted"
    needed = beyond.seeds_needed
    figures = {
        "effect": plainly.effect,
        "interval": plainly.interval,
        "p": beyond.p,
        "seeds_needed": needed if needed is not None and math.isfinite(needed) else None,
    }
    return verdict, "", figures


def kept(one: Stated, cache: Cache, seeds: int | None = None) -> list[tuple[Entrant, int, Run | None]]:
    """Return the runs that a claim compares, the baseline's first; None where the cache has none of the present code."""
    found = []
    for side in contest_of(one, seeds).entrants:
        for seed in seeds_of(one.claim.seeds if seeds is None else seeds):
            job = side.job(one.arena, seed)
            record = cache.load(key_of_job(job, code_of_job(job)))
            found.append((side, seed, record.run if record else None))
    return found


def course(run_: Run, name: str, columns: Sequence[float]) -> list[float | None]:
    """Return the course of a diagnostic: the mean of its values between consecutive columns; None where there are none.

    Args:
        run_: the run.
        name: a diagnostic; "" is the score.
        columns: increasing numbers of samples.
    """
    points = [(point.samples, point.score) for point in run_.curve] if not name else run_.diagnostics.get(name, ())
    means: list[float | None] = []
    before = -math.inf
    for column in columns:
        inside = [value for samples, value in points if before < samples <= column]
        means.append(sum(inside) / len(inside) if inside else None)
        before = column
    return means


def measure(run_: Run, metric: str, study: Study) -> float:
    """Return the metric of one run that a claim compares.

    Raises:
        UserError: the run has no such metric; the message lists those that it has.
    """
    if metric in ("", study.metric):
        assert run_.score is not None
        return run_.score
    samples, scores = [point.samples for point in run_.curve], [point.score for point in run_.curve]
    kind, _, rest = metric.partition(":")
    if metric == "area":
        return area_under_curve(samples, scores)
    if kind == "reach":
        # A run that never reaches the threshold gets the whole budget, a lower bound.
        reached = samples_to_threshold(samples, scores, float(rest), study.direction)
        return study.budget.size if reached.censored else reached.samples
    name = rest if kind == "mean" else metric
    points = run_.diagnostics.get(name)
    if not points:
        known = [study.metric, "area", "reach:SCORE", *run_.diagnostics]
        raise UserError(f"metric {metric!r} is not known{nearest(name, known)} (metrics: {', '.join(known)})")
    found = [value for _, value in points]
    return sum(found) / len(found) if kind == "mean" else found[-1]


def sentence(label: str, result: Result) -> str:
    """Return a result in one line."""
    figures = result.reason
    if result.effect is not None:
        figures = f"difference {result.effect:+.4g}"
        if result.interval is not None:
            figures += f" [{result.interval[0]:+.4g}, {result.interval[1]:+.4g}]"
        figures += f", {len(result.seeds)} seeds"
    return f"{label}: {result.verdict} ({figures}): {result.claim}"


def store(folder: Path, page: registry.Page, result: Result) -> Path:
    """Write a result to the page's file, atomically; return the file.

    The remarks (`seen`) of the replaced result are kept where the values are the same.
    """
    held = Results.of(folder, page)
    old = held.claims.get(result.name)
    if old is not None and (old.ours.values, old.theirs.values) == (result.ours.values, result.theirs.values):
        result = dataclasses.replace(result, seen=result.seen or old.seen)
    labels = [claim.label for claim in claims_of(importlib.import_module(page.module))]
    # Results of claims that the page no longer has are dropped.
    results = {**held.claims, result.name: result}
    ordered = {name: results[name] for name in labels if name in results}
    return Results(FORMAT, page.name, page.family, ordered).store(folder)


def marked(folder: Path) -> list[Stated]:
    """Return the claims whose stored result was measured before a change that altered it."""
    found = []
    for page in registry.pages():
        results = Results.of(folder, page).claims
        found += [one for one in of_page(page) if one.claim.label in results and results[one.claim.label].changes]
    return found


@dataclass
class Findings:
    """Findings of `check` on the stored results: names of claims, and sentences in `problems`."""

    problems: list[str] = field(default_factory=list)
    """Files without a page or that cannot be read, and results of another claim than the page's present one."""
    missing: list[str] = field(default_factory=list)
    """Claims that have no result yet."""
    marked: list[str] = field(default_factory=list)
    """Results that were measured before a change that altered them."""
    unseen: list[str] = field(default_factory=list)
    """Results that do not hold and lack remarks on their runs (`seen`)."""


def check(folder: Path) -> Findings:
    """Compare the stored results with the pages' claims."""
    found = Findings()
    pages = {Results.path(folder, one.page): one.page for one in all_stated()}
    found.problems += [f"{path}: no page makes these claims" for path in files(folder) if path not in pages]
    for path, page in sorted(pages.items()):
        try:
            held = Results.of(folder, page).claims
        except UserError as error:
            found.problems.append(str(error))
            continue
        several = {one.claim.label: one for one in of_page(page)}
        found.problems += [f"{path}: the page makes no claim {name!r}" for name in held if name not in several]
        for label, one in several.items():
            name = f"{page.name}/{label}"
            result = held.get(label)
            if result is None:
                found.missing.append(name)
                continue
            budget = budget_of(one.arena)
            if (result.claim, result.budget) != (one.words, budget):
                found.problems.append(
                    f"{name}: the result is of another claim ({result.claim}, {result.budget}) than the page's"
                    f" ({one.words}, {budget}); run `vantage claims run {name}`"
                )
            if result.changes:
                found.marked.append(name)
            if result.verdict != "holds" and not result.seen:
                found.unseen.append(name)
    return found
