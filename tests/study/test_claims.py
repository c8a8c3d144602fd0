"""A claim's verdict follows from its numbers; its record is stored whole, dated, and says which changes came after it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vantage.cli import main
from vantage.core.errors import UserError
from vantage.methods import registry
from vantage.methods.claim import Claim, claims_of
from vantage.study import claims
from vantage.study.cache import Cache
from vantage.study.claims import Stated, decide, measure, of_page, stated
from vantage.study.records import Change, Result, Results, mark
from vantage.study.results import Point, Run
from vantage.study.systems import NO_CLAIM, NO_PAGE, NOT_RUN, index, rows, systems, table, write_tables

from .synthetic import build

pytest.importorskip("scipy.stats", reason="the study extra is not installed")

ARENA = """
name = "toy"
field = "toy"
function = "tests.study.hooks:{function}"
[budget]
unit = "pulls"
size = 100
[scoring]
metric = "gain"
"""
PAGE = '''"""Toy: a page that claims.

As it says.
"""
from vantage.methods.claim import Claim
from vantage.methods.control.ppo import ppo
from vantage.methods.registry import Paper, method


@method(family="toys", papers=Paper("A toy", "A. Author", 2026), name="{name}")
def toy(end: float = 1.0):
    """Compose."""
    return ppo()


claim = (
    Claim(arena="{arena}", against="plain", against_settings={{"end": 0.5}}, name="better", seeds=3),
    Claim(arena="{arena}", against="plain", against_settings={{"end": 1.5}}, name="worse", seeds=3),
    Claim(arena="{arena}", against="plain", against_settings={{"end": 1.0}}, name="same", seeds=3),
)
'''


@pytest.fixture
def page(tmp_path: Path) -> str:
    """The path of a page in a file of its own, with its arena beside it."""
    name = "toy-" + "".join(c for c in tmp_path.name.lower() if c.isalnum())
    (tmp_path / "toy.toml").write_text(ARENA.format(function="learn"))
    file = tmp_path / f"{name}.py"
    file.write_text(PAGE.format(name=name, arena=tmp_path / "toy.toml"))
    return str(file)


# what is claimed -------------------------------------------------------------------------------------------------------


def test_a_claim_that_cannot_be_tested_is_refused() -> None:
    with pytest.raises(UserError, match="needs a margin above 0"):
        Claim("cartpole", "ppo", direction="no worse")
    with pytest.raises(UserError, match="unknown direction 'better'"):
        Claim("cartpole", "ppo", direction="better")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least 2"):
        Claim("cartpole", "ppo", seeds=1)
    with pytest.raises(UserError, match="at least 0"):
        Claim("cartpole", "ppo", margin=-0.1)
    twice = type(sys)("page")
    twice.claim = (Claim("cartpole", "ppo"), Claim("cartpole", "a2c"))
    with pytest.raises(UserError, match="two claims are called 'cartpole'"):
        claims_of(twice)


def test_every_page_claims_something_that_can_be_run() -> None:
    for page in registry.pages():
        for one in of_page(page):
            ours, theirs = one.sides
            assert ours.arm.method == page.name
            assert ours.arm.name != theirs.arm.name
            assert one.words


# what comes out --------------------------------------------------------------------------------------------------------

HIGH, LOW, WIDE = [0.70, 0.71, 0.72, 0.70, 0.71], [0.60, 0.61, 0.60, 0.62, 0.61], [0.3, 0.9, 0.5, 0.8, 0.6]


@pytest.mark.parametrize(
    ("direction", "margin", "ours", "theirs", "verdict"),
    [
        ("higher", None, HIGH, LOW, "holds"),
        ("higher", None, LOW, HIGH, "contradicted"),
        ("higher", None, HIGH, WIDE, "not shown"),
        ("higher", 0.05, HIGH, LOW, "holds"),
        ("higher", 0.10, HIGH, LOW, "not shown"),
        ("higher", 0.20, HIGH, LOW, "contradicted"),
        ("lower", None, LOW, HIGH, "holds"),
        ("lower", None, HIGH, LOW, "contradicted"),
        ("lower", 0.05, LOW, HIGH, "holds"),
        ("lower", 0.20, LOW, HIGH, "contradicted"),
        ("no worse", 0.05, HIGH, LOW, "holds"),
        ("no worse", 0.20, LOW, HIGH, "holds"),
        ("no worse", 0.05, LOW, HIGH, "contradicted"),
        ("no worse", 0.05, LOW, WIDE, "not shown"),
        ("no worse", 0.05, [0.5] * 5, [0.5] * 5, "holds"),
    ],
)
def test_the_verdict_follows_from_the_values(
    direction: str, margin: float | None, ours: list[float], theirs: list[float], verdict: str
) -> None:
    claim = Claim("toy", "x", direction=direction, margin=margin)  # type: ignore[arg-type]
    found, reason, figures = decide(claim, ours, theirs)
    assert (found, reason) == (verdict, "")
    # The effect is plain: ours minus theirs, whatever the direction and the margin.
    assert figures["effect"] == pytest.approx(sum(ours) / 5 - sum(theirs) / 5)
    low, high = figures["interval"]
    assert low <= figures["effect"] <= high


def test_a_crashed_run_shows_nothing() -> None:
    found, reason, figures = decide(Claim("toy", "x"), [*HIGH[:4], None], LOW)
    assert (found, reason, figures) == ("not shown", "crashed: 1 runs of the method", {})


def test_what_is_measured_of_a_run() -> None:
    study = build(seeds=1)
    run = study.runs_of("grpo")[0]
    assert measure(run, "", study) == measure(run, "accuracy", study) == run.score
    assert measure(run, "pass@8", study) == run.diagnostics["pass@8"][-1][1]
    points = [value for _, value in run.diagnostics["entropy"]]
    assert measure(run, "mean:entropy", study) == pytest.approx(sum(points) / len(points))
    assert run.curve[0].score < measure(run, "area", study) < run.curve[-1].score
    assert 0 < measure(run, "reach:0.5", study) < study.budget.size
    assert measure(run, "reach:0.999", study) == study.budget.size
    with pytest.raises(UserError, match="did you mean entropy"):
        measure(run, "entropi", study)


def test_a_claim_is_run_judged_and_stored_beside_the_others(page: str, tmp_path: Path) -> None:
    cache, folder = Cache(tmp_path / "cache"), tmp_path / "claims"
    found = {}
    for one in stated(page):
        contest = claims.contest_of(one)
        found[one.claim.label] = claims.run(one, contest, folder, cache=cache, jobs=2)
    assert {name: result.verdict for name, result in found.items()} == {
        "better": "holds",
        "worse": "contradicted",
        "same": "not shown",
    }
    better = found["better"]
    assert better.effect == pytest.approx(0.5)
    assert better.ours.values == pytest.approx((1.0, 1.01, 1.02))
    assert better.theirs.settings == {"end": 0.5}
    assert better.seeds == (0, 1, 2)
    assert better.versions["torch"]
    assert better.measured == f"{better.date[:10]}, {better.commit[:7]}{'+' * better.commit.endswith('+')}"
    # The method's three runs served all three claims.
    assert len(list((tmp_path / "cache/runs").glob("*/*.json"))) == 12
    path = Results.path(folder, registry.page(page))
    assert path.parent.name == "toys"
    held = Results.load(path)
    assert held.claims == found
    # One run again replaces its own result alone; the file is plain JSON.
    again = stated(f"{page}/worse")
    assert [one.claim.label for one in again] == ["worse"]
    claims.run(again[0], claims.contest_of(again[0], 2), folder, cache=cache, jobs=1)
    after = Results.load(path)
    assert after.claims["better"] == better
    assert after.claims["worse"].seeds == (0, 1)
    assert json.loads(path.read_text())["claims"]["same"]["verdict"] == "not shown"
    with pytest.raises(UserError, match="did you mean worse"):
        stated(f"{page}/wors")


def test_runs_are_shown_seed_by_seed(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VANTAGE_CACHE", str(tmp_path / "cache"))
    one = stated(f"{page}/better")[0]
    assert main(["claims", "show", f"{page}/better"]) == 0
    assert "none of its 6 runs is kept here: vantage claims run" in capsys.readouterr().out
    claims.run(one, claims.contest_of(one, 2), tmp_path / "claims", cache=Cache(tmp_path / "cache"), jobs=2)
    assert main(["claims", "show", f"{page}/better", "--figures", "entropy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["side", "seed", "after", "pulls", "0"]
    scores = {tuple(line.split()[:3]): line.split()[3:] for line in lines[2:]}
    assert len(scores) == 10  # two runs a side with a score and a figure each, and the third, which was not run
    assert sum(line.split()[-3:] == ["not", "kept", "here"] for line in lines[2:]) == 2
    for name, seed, figure in scores:
        if figure == "gain" and seed != "2":
            run = next(
                r
                for side, s, r in claims.kept(one, Cache(tmp_path / "cache"))
                if (side.arm.name, str(s)) == (name, seed)
            )
            assert run is not None
            assert [float(cell) for cell in scores[name, seed, figure]] == pytest.approx(
                [point.score for point in run.curve], rel=5e-3
            )
    assert main(["claims", "show", f"{page}/better", "--figures", "entrop"]) == 2
    assert "did you mean entropy" in capsys.readouterr().err
    assert main(["claims", "check", "--figures", "entropy"]) == 2
    assert main(["claims", "show"]) == 2


def test_the_course_of_a_figure_is_its_mean_between_columns() -> None:
    run = Run(
        "a",
        0,
        "ok",
        (Point(0, 1.0), Point(10, 2.0), Point(20, 4.0)),
        {"score": 4.0},
        {"x": ((4, 1.0), (8, 3.0), (30, 9.0))},
    )
    assert claims.course(run, "", [0, 10, 20]) == [1.0, 2.0, 4.0]
    assert claims.course(run, "", [10, 20]) == [1.5, 4.0]
    assert claims.course(run, "x", [0, 10, 20]) == [None, 2.0, None]
    assert claims.course(run, "y", [0, 10]) == [None, None]


def stored(one: Stated, folder: Path, **changes: Any) -> Result:
    """A result of no run, with these figures, in the page's file."""
    result = replace(claims.result_of(one, claims.contest_of(one).study()), **changes)
    claims.store(folder, one.page, result)
    return result


def test_a_result_says_before_which_changes_it_was_measured_until_it_is_run_again(page: str, tmp_path: Path) -> None:
    folder, (one, other) = tmp_path / "claims", stated(page)[:2]
    stored(one, folder, date="2031-01-02T03:04:05+00:00", commit="a" * 40)
    stored(other, folder)
    first, second = Change("2031-02-01", "b" * 40, "the step is halved"), Change("2031-03-01", "c" * 40, "a mask")
    assert mark(folder, one.page, ("better", "same"), first) == ["better"]  # "same" has no result
    assert mark(folder, one.page, ("better",), second) == ["better"]
    assert mark(folder, one.page, ("better",), second) == ["better"]  # said twice, noted once
    held = Results.of(folder, one.page).claims
    assert held["better"].measured == (
        "2031-01-02, aaaaaaa; measured before: the step is halved (2031-02-01, bbbbbbb); a mask (2031-03-01, ccccccc)"
    )
    assert held["worse"].changes == ()
    claims.run(one, claims.contest_of(one, 2), folder, cache=Cache(tmp_path / "cache"), jobs=2)
    assert Results.of(folder, one.page).claims["better"].changes == ()


def test_what_was_seen_stays_with_the_values_that_it_is_about(page: str, tmp_path: Path) -> None:
    one, folder = stated(page)[0], tmp_path / "claims"
    held = stored(one, folder, seen="One seed fell.")
    stored(one, folder)
    assert Results.of(folder, one.page).claims["better"].seen == "One seed fell."
    stored(one, folder, ours=replace(held.ours, values=(0.1, 0.2, 0.3)))
    assert Results.of(folder, one.page).claims["better"].seen == ""


def test_check_lists_marked_and_missing_results_and_refuses_strays(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both, folder = stated(page)[:2], tmp_path / "claims"
    name = both[0].page.name
    monkeypatch.setattr(claims, "all_stated", lambda: both)
    monkeypatch.setattr(claims, "of_page", lambda page: both)
    monkeypatch.setattr(registry, "pages", lambda: [both[0].page])
    stored(both[0], folder)  # nothing was run: not shown
    found = claims.check(folder)
    assert (found.problems, found.missing, found.marked) == ([], [f"{name}/worse"], [])
    assert found.unseen == [f"{name}/better"]
    stored(both[0], folder, seen="Nothing was run.")
    mark(folder, both[0].page, ("better",), Change.now("another step"))
    found = claims.check(folder)
    assert (found.unseen, found.marked) == ([], [f"{name}/better"])
    assert [one.claim.label for one in claims.marked(folder)] == ["better"]
    assert main(["claims", "check", "--folder", str(folder)]) == 0
    assert (
        f"1 results were measured before a change that altered them (vantage claims run --marked): {name}/better"
        in (capsys.readouterr().out)
    )
    (folder / "toys/ghost.json").write_text("{}")
    stored(both[1], folder, claim="gain on toy lower than plain's")
    problems = claims.check(folder).problems
    assert len(problems) == 2
    assert "no page makes these claims" in problems[0]
    assert f"run `vantage claims run {name}/worse`" in problems[1]
    assert main(["claims", "check", "--folder", str(folder)]) == 1


# the table -------------------------------------------------------------------------------------------------------------


def test_the_table_holds_every_system_and_every_page_with_its_verdict(tmp_path: Path) -> None:
    known = systems()
    assert len(known) == 252
    assert len({one.name for one in known}) == len({one.id for one in known}) == 252
    found = rows(tmp_path)
    assert {one.name for one in known} | {page.name for page in registry.pages()} == {row.name for row in found}
    assert [(row.family, row.name) for row in found] == sorted((row.family, row.name) for row in found)
    assert {row.verdict for row in found} <= {NO_PAGE, NO_CLAIM, NOT_RUN}
    ppo = [row for row in found if row.name == "ppo"]
    assert [row.verdict for row in ppo] == [NOT_RUN, NOT_RUN]
    figures = {"verdict": "holds", "effect": 1.5, "interval": (-2.0, 5.0), "date": "2031-01-02T03:04:05+00:00"}
    stored(stated("ppo/cartpole")[0], tmp_path, **figures, commit="a" * 40, seen="One seed fell.")
    control = [row for row in rows(tmp_path) if row.family == "control"]
    text = table("control", control)
    line = next(line for line in text.splitlines() if "cartpole-100k" in line)
    assert "[ppo](../../src/vantage/methods/control/ppo.py) S043" in line
    assert "| **holds** | +1.5 [-2, +5] | 5 | 2031-01-02, aaaaaaa |" in line
    assert "- ppo, return on cartpole-100k" in text
    assert "(holds): One seed fell.\n" in text
    assert "Remarks on the runs" not in table("theory", [row for row in found if row.family == "theory"])
    assert "1 claims with a result: 1 holds, 0 not shown, 0 contradicted" in index(control)
    number = write_tables(tmp_path / "build/claims", tmp_path)
    assert number == len({(row.family, row.name) for row in found})
    files = {path.name for path in (tmp_path / "build/claims").iterdir()}
    assert files == {"index.md", *(f"{row.family}.md" for row in found)}
    for link in re.findall(r"\]\((\.\./[^)]+)\)", text):
        assert (Path("build/claims") / link).resolve().is_file(), link


def test_names_are_for_running_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "check", "ppo"]) == 2
    assert main(["claims", "run"]) == 2
    assert main(["claims", "show", "ppo", "--marked"]) == 2
    assert main(["claims", "bless", "ppo"]) == 2
    assert main(["claims", "run", "ppo", "--because", "x"]) == 2
    assert main(["claims", "run", "no-such-method"]) == 2
    assert "unknown method" in capsys.readouterr().err


def test_a_stated_claim_knows_its_page() -> None:
    for name in ("ppo", "ppo/hopper"):
        assert all(isinstance(one, Stated) and one.page.name == "ppo" for one in stated(name))
    assert [one.claim.label for one in stated("ppo/hopper")] == ["hopper"]
