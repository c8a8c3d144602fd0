"""Changes of a page that `tools/mutate.py` makes: which ones, where they are written, and the tests that are to see them."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

from tools import mutate

from vantage.methods import registry

PAGE = mutate.ROOT / "src/vantage/methods/objectives/rloo.py"


def changes(name: str, source: str) -> list[mutate.Mutation]:
    return mutate.mutations(registry.page(name), source)


def test_known_changes_are_made() -> None:
    source = PAGE.read_text(encoding="utf-8")
    made = {(one.kind, one.before, one.after): one.source for one in changes("rloo", source)}
    assert len(made) == len(changes("rloo", source))
    doubled = made["default", "beta=0.03", "beta=0.06"]
    assert doubled == source.replace("at_least(0)] = 0.03", "at_least(0)] = 0.06")
    more = made["default", "group_size=4", "group_size=5"]
    assert more == source.replace("at_least(2)] = 4", "at_least(2)] = 5")
    dropped = made["composition", "DivergencePenalty(beta)", "DivergencePenalty()"]
    assert dropped == source.replace("DivergencePenalty(beta)", "DivergencePenalty()")
    averaging = "averaging='seq-mean-token-mean' if stale else 'seq-mean-token-sum'"
    without = made["composition", f"base.replace(..., {averaging})", "base.replace(...)"]
    assert "averaging=" not in without
    assert "advantage=LeaveOneOut()" in without
    for changed in made.values():
        ast.parse(changed)


def test_a_wrapped_component_is_left_alone() -> None:
    source = (PAGE.parents[1] / "generative/branchgrpo.py").read_text(encoding="utf-8")
    shown = {(one.before, one.after) for one in changes("branchgrpo", source) if one.kind == "composition"}
    inner = "DepthStandardized(weighted)"
    assert (f"Clamped({inner}, limit)", inner) in shown


def test_an_argument_that_holds_anyway_is_not_dropped() -> None:
    page = registry.page("rloo")
    assert mutate._is_default(page, "base.replace", "averaging", ast.Constant(page.base.make().averaging))
    assert not mutate._is_default(page, "base.replace", "averaging", ast.Constant("seq-mean-token-sum"))


def test_a_change_is_written_into_the_copy_alone(tmp_path: Path) -> None:
    source = PAGE.read_text(encoding="utf-8")
    change = next(one for one in changes("rloo", source) if one.before == "beta=0.03")
    sources = mutate.Copy(tmp_path)
    sources.write(registry.page("rloo"), change.source)
    assert (tmp_path / "src/vantage/methods/objectives/rloo.py").read_text(encoding="utf-8") == change.source
    assert PAGE.read_text(encoding="utf-8") == source


def test_own_tests_are_the_page_s_file_and_all_tests_the_tables_too() -> None:
    page = registry.page("rloo")
    assert mutate.tests_of(page, own=True) == ["tests/methods/objectives/test_rloo.py"]
    assert mutate.tests_of(page, own=False)[-1] == "tests/methods/objectives/test_rloo.py"
    assert "tests/methods/test_compositions.py::test_a_page_composes_what_was_meant[rloo]" in mutate.tests_of(
        page, own=False
    )


class Outcomes:
    """Sources in which each test has the outcome that is written down."""

    def __init__(self, **outcomes: str) -> None:
        self.outcomes = outcomes

    def failing(self, tests: list[str]) -> str:
        (test,) = tests
        return self.outcomes[test]


def test_a_change_survives_only_tests_that_ran(tmp_path: Path) -> None:
    outcomes: Any = Outcomes(a=mutate.NONE_RAN, b=mutate.SURVIVED, c="tests/test_c.py::test_it")
    assert mutate.seen_by(outcomes, []) == mutate.NONE_RAN
    assert mutate.seen_by(outcomes, ["a", "a"]) == mutate.NONE_RAN
    assert mutate.seen_by(outcomes, ["b", "a"]) == mutate.seen_by(outcomes, ["a", "b"]) == mutate.SURVIVED
    assert mutate.seen_by(outcomes, ["a", "c", "b"]) == "tests/test_c.py::test_it"
    sources = mutate.Copy(tmp_path / "copy")
    assert sources.failing([]) == mutate.NONE_RAN
    for name, body, outcome in (
        ("test_none.py", "x = 1\n", mutate.NONE_RAN),
        ("test_good.py", "def test_it():\n    assert 1\n", mutate.SURVIVED),
    ):
        (tmp_path / name).write_text(body)
        assert sources.failing([str(tmp_path / name)]) == outcome
    (tmp_path / "test_bad.py").write_text("def test_it():\n    assert 0\n")
    assert sources.failing([str(tmp_path / "test_bad.py")]).endswith("test_bad.py::test_it")


def test_a_page_without_a_test_file_says_so() -> None:
    page = dataclasses.replace(registry.page("rloo"), module="vantage.methods.objectives.nowhere")
    assert mutate.tests_of(page, own=True) == []
    assert mutate.missing(page, own=True) == "there is no tests/**/test_nowhere.py"
    assert mutate.missing(registry.page("rloo"), own=True) == "tests/methods/objectives/test_rloo.py holds none"
