"""Whether stored claim results were made by the code that is here, and the runs that tell where they were not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from vantage.config import commit
from vantage.core.errors import UserError
from vantage.study import fingerprint
from vantage.study.cache import Cache, code_of_job, key_of_job
from vantage.study.claims import Result, Results, Stated, all_stated, contest_on, measure
from vantage.study.contest import Contest, seeds_of
from vantage.study.results import Run


def stale(one: Stated, result: Result) -> str:
    """Return why a stored result no longer speaks for the code that is here, "" when it does."""
    if one.asked() != result.asked:
        return "the claim or its arena has changed"
    modules = fingerprint.changed(result.code, one.code())
    if modules:
        shown = ", ".join(modules[:5]) + (f" and {len(modules) - 5} more" if len(modules) > 5 else "")
        return f"changed since: {shown}"
    return ""


@dataclass
class Verification:
    """A result of older code, and the runs that tell whether the code that is here gives the same.

    A run from the same seed is the same to the last bit until something that it executes computes something else; from then on it
    goes its own way. So a few runs tell what all of them would: `seeds` of both sides are run again, and where both give exactly
    the values that are stored, and the learning curves of the old runs where the cache still has them, the result is of the code
    that is here too.
    """

    one: Stated
    result: Result
    seeds: tuple[int, ...]
    contest: Contest = field(init=False)

    def __post_init__(self) -> None:
        self.contest = contest_on(self.one, self.seeds)

    def judge(self, cache: Cache) -> tuple[Result | None, str]:
        """Return the result with the digests of the code that is here, or None, and what was found, in words."""
        study = self.contest.study()
        code = self.one.code()
        theirs, ours = study.arms
        for arm, side in ((theirs, self.result.theirs), (ours, self.result.ours)):
            for found in study.runs_of(arm.name):
                which = f"seed {found.seed} of {arm.name}"
                stored = side.values[self.result.seeds.index(found.seed)]
                value = measure(found, self.one.claim.metric, study) if found.status == "ok" else None
                if value is None or value != stored:
                    return None, f"{which} gives {value} where {stored} is stored"
                before = self._before(arm.name, found.seed, cache)
                if before is not None and _path(before) != _path(found):
                    return None, f"{which} takes another course than it took"
        seeds = ", ".join(map(str, self.seeds))
        today = datetime.now(UTC).date().isoformat()
        words = f"seeds {seeds} of both sides gave the same again on {today}, at {commit()}"
        return dataclasses.replace(self.result, code=code, again=words), words

    def _before(self, arm: str, seed: int, cache: Cache) -> Run | None:
        """Return the run of the older code, where the cache has it."""
        for work in self.contest.works:
            if (work.arm, work.seed) == (arm, seed):
                modules = code_of_job(work.job)
                older = {name: self.result.code[name] for name in modules if name in self.result.code}
                record = cache.load(key_of_job(work.job, older)) if len(older) == len(modules) else None
                return record.run if record else None
        return None


def _path(run_: Run) -> list[tuple[float, float]]:
    return [(point.samples, point.score) for point in run_.curve]


def verifications(folder: Path, chosen: Sequence[Stated], seeds: int = 1) -> tuple[list[Verification], list[str]]:
    """Return what there is to verify of stored results that older code made, and of which claims that cannot be done, and why.

    Raises:
        UserError: fewer than 1 seed.
    """
    found, others = [], []
    for one in chosen:
        name, path = f"{one.page.name}/{one.claim.label}", Results.path(folder, one.page)
        result = Results.load(path).claims.get(one.claim.label) if path.is_file() else None
        if result is None:
            others.append(f"{name}: has no result yet")
        elif one.asked() != result.asked:
            others.append(f"{name}: the claim or its arena has changed; run it")
        elif result.reason or None in (*result.ours.values, *result.theirs.values):
            others.append(f"{name}: runs crashed; run it")
        elif stale(one, result):
            found.append(Verification(one, result, result.seeds[: len(seeds_of(seeds))]))
    return found, others


def check(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Compare all stored results with the code that is here.

    Returns:
        Problems, one line each; the names of claims that have no result yet; and those of results that do not hold and of
        which the page does not say why (`Claim.seen`).
    """
    problems, missing, unseen = [], [], []
    by_page: dict[Path, list[Stated]] = {}
    for one in all_stated():
        by_page.setdefault(Results.path(folder, one.page), []).append(one)
    for path in sorted(folder.glob("*/*.json")):
        if path not in by_page:
            problems.append(f"{path}: no page makes these claims")
    for path, several in sorted(by_page.items()):
        try:
            held = Results.load(path).claims if path.is_file() else {}
        except UserError as error:
            problems.append(str(error))
            continue
        labels = [one.claim.label for one in several]
        problems += [f"{path}: the page makes no claim {name!r}" for name in held if name not in labels]
        for one in several:
            name = f"{one.page.name}/{one.claim.label}"
            if one.claim.label not in held:
                missing.append(name)
                continue
            reason = stale(one, held[one.claim.label])
            if reason:
                # Not told from the words: a module that changed may have "claim" in its name.
                again = "run" if one.asked() != held[one.claim.label].asked else "verify"
                problems.append(f"{name}: {reason}; run `vantage claims {again} {name}`")
            if held[one.claim.label].verdict != "holds" and not one.claim.seen:
                unseen.append(name)
    return problems, missing, unseen
