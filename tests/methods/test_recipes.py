"""Recipes that start from another recipe: settings, defaults, calls, and what is refused when the page is imported."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest

from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.methods import registry
from vantage.methods.recipes import explained
from vantage.methods.registry import Paper, method
from vantage.study.systems import systems

PAPER = Paper("A Title", "A. Author", 2020)


@dataclass(frozen=True)
class Solver:
    """What a field without a rollout loop runs."""

    steps: int
    rate: float
    rule: str = "plain"


@method(papers=PAPER, name="parent")
def parent(steps: int = 3, rate: float = 0.5, rule: str = "plain") -> Solver:
    """Compose it.

    steps: how many; rate: size of a
    step, in units; see below; rule: what is done."""
    return Solver(steps, rate, rule)


@method(papers=PAPER, name="child", base=parent, without=("rate",), rate=0.25, steps=7)
def child(base: Solver, rate: Annotated[float, "unit"] = 9.0, twice: bool = False) -> Solver:
    """rate: another rate than the parent's; twice: whether steps count double."""
    return replace(base, steps=base.steps * (2 if twice else 1), rule=f"{base.rule} {base.rate} {rate}")


@method(papers=PAPER, name="grandchild", base=child, without=["twice"], twice=True, rate=8.0)
def grandchild(base: Solver, rule: str = "own") -> Solver:
    return base


def test_settings_of_the_base_stay_with_changed_defaults_and_hidden_ones_are_fixed() -> None:
    assert list(inspect.signature(child).parameters) == ["steps", "rule", "rate", "twice"]
    assert child.page.settings() == {"steps": 7, "rule": "plain", "rate": 9.0, "twice": False}
    assert child() == Solver(7, 0.25, "plain 0.25 9.0")
    assert child(2, "other", twice=True) == Solver(4, 0.25, "other 0.25 9.0")
    assert child.page.make({"steps": 2, "rate": 1}) == Solver(2, 0.25, "plain 0.25 1.0")


def test_a_base_may_have_a_base_and_a_setting_of_both_reaches_both() -> None:
    # `rule` stands in the grandchild's signature and is not hidden: its default is the grandchild's, its value the base's too.
    assert grandchild.page.settings() == {"steps": 7, "rule": "own", "rate": 8.0}
    assert grandchild() == Solver(14, 0.25, "own 0.25 8.0")
    assert grandchild(1, "x", 2.0) == Solver(2, 0.25, "x 0.25 2.0")
    with pytest.raises(UserError, match=r"grandchild has no setting 'twice'"):
        grandchild.page.make({"twice": False})
    with pytest.raises(TypeError, match=r"grandchild\(\): got an unexpected keyword argument 'twice'"):
        grandchild(twice=False)


def test_signature_and_hints_are_those_of_the_whole_recipe() -> None:
    assert inspect.signature(child).parameters["steps"].default == 7
    assert get_type_hints(child) == {"steps": int, "rule": str, "rate": float, "twice": bool, "return": Solver}
    assert get_type_hints(child, include_extras=True)["rate"] == Annotated[float, "unit"]

    @functools.wraps(child)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return child(*args, **kwargs)

    assert inspect.signature(wrapped) == inspect.signature(child)
    assert wrapped(1).steps == 1
    assert child.__name__ == "child"


def test_wrong_names_are_refused_at_import_with_the_known_ones() -> None:
    def recipe(base: Solver, rate: float = 1.0) -> Solver:
        return base

    with pytest.raises(
        UserError, match=r"without names 'rat', which parent has not; did you mean rate\? \(its settings: st"
    ):
        method(papers=PAPER, base=parent, without=("rat",))(recipe)
    with pytest.raises(UserError, match=r"a changed default names 'size', which parent has not.*steps, rate, rule"):
        method(papers=PAPER, base=parent, size=3)(recipe)
    with pytest.raises(UserError, match=r"the default of 'rate' stands in the signature and in @method"):
        method(papers=PAPER, base=parent, rate=3.0)(recipe)
    with pytest.raises(UserError, match=r"first argument, `base`"):
        method(papers=PAPER, base=parent)(lambda steps=1: Solver(steps, 1.0))
    with pytest.raises(UserError, match=r"steps can be given to @method only together with base="):
        method(papers=PAPER, steps=3)(parent)


def test_a_child_of_a_method_knows_its_parent_and_its_settings_reach_the_components() -> None:
    grpo = registry.page("grpo").recipe

    @method(papers=PAPER, name="mild", base=registry.page("grpo").recipe, group_size=4)
    def mild(base: Method) -> Method:
        return base

    assert mild(epochs=3) == grpo(group_size=4, epochs=3)
    assert mild().name == "mild"
    assert mild.page.family == "mine"


def test_explanations_are_read_from_docstrings_and_inherited() -> None:
    assert explained("a, b: of two; c: has a; colon: yes, and\n  a second line.\n\n  More text.", ["a", "b", "c"]) == {
        "a": "of two", "b": "of two", "c": "has a; colon: yes, and a second line",
    }  # fmt: skip
    assert explained("Compose it. a: one.", ["a", "b"]) == {"a": "one"}
    assert explained("Compose it: a thing.", ["a"]) == {}
    assert parent.page.explained["rate"] == "size of a step, in units; see below"
    assert grandchild.page.explanation("steps") == ("how many", parent.page)
    assert grandchild.page.explanation("rate") == ("another rate than the parent's", child.page)
    assert parent.page.explanation("rule") == ("what is done", parent.page)


def test_every_setting_of_every_page_is_explained() -> None:
    """Pages that were not rewritten yet stand in FAMILY/unexplained.txt, which only shrinks."""
    here = Path(__file__).parent
    listed = {name for path in here.glob("*/unexplained.txt") for name in path.read_text().split()}
    missing = {p.name: [name for name in p.settings() if not p.explanation(name)[0]] for p in registry.pages()}
    new = {name: settings for name, settings in missing.items() if settings and name not in listed}
    assert not new, "explain these settings in the docstring of the recipe: `name: text; other: text.`"
    done = {name for name in listed if not missing.get(name)}
    assert not done, "all settings are explained: take these pages out of unexplained.txt"


def test_the_family_is_the_folder_and_that_of_the_list_of_systems() -> None:
    known = {system.name: system for system in systems()}
    listed = 0
    for page in registry.pages():
        assert page.family == Path(page.module.replace(".", "/")).parent.name
        if page.name in known:
            listed += 1
            assert (page.family, page.id) == (known[page.name].family, known[page.name].id)
    assert listed >= 40
    with pytest.raises(UserError, match=r"the family of a page is its folder; leave out family='x'"):
        registry._family("vantage.methods.control.ppo", "x")


def test_two_pages_of_one_name_are_an_error_that_names_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in ("control", "theory"):
        (tmp_path / family).mkdir()
        (tmp_path / family / "same_name.py").write_text("")
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    registry._modules.cache_clear()
    try:
        with pytest.raises(
            UserError, match=r"'same-name': vantage/methods/control/same_name.py and vantage/methods/theory/same"
        ):
            registry.names()
    finally:
        registry._modules.cache_clear()
