"""Recipes that start from another recipe: settings, defaults, calls, and what is refused when the page is imported."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_type_hints

import pytest

from vantage.annotations import at_least
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.methods import registry
from vantage.methods.recipes import explained
from vantage.methods.registry import Paper, method

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


@method(papers=PAPER, name="ranged")
def ranged(
    count: Annotated[int, at_least(2)] = 2, share: float | None = None, sizes: tuple[tuple[int, ...], ...] = ()
) -> tuple[Any, ...]:
    return count, share, sizes


@method(papers=PAPER, name="narrower", base=ranged)
def narrower(base: tuple[Any, ...], count: Annotated[int, at_least(5)] = 5) -> tuple[Any, ...]:
    return base


def test_settings_are_checked_as_those_of_components_are() -> None:
    assert ranged(3.0, share=1, sizes=[[1, 2], [3]]) == (3, 1.0, ((1, 2), (3,)))
    assert type(ranged(share=1)[1]) is float
    assert ranged(share=None)[1] is None
    for wrong in (lambda: ranged(1), lambda: ranged.page.make({"count": 1})):
        with pytest.raises(UserError, match=r"ranged\.count=1 is out of range: at least 2"):
            wrong()
    with pytest.raises(UserError, match=r"ranged\.share='x' is not a number or none"):
        ranged(share="x")
    with pytest.raises(UserError, match=r"ranged\.count=True is not a whole number"):
        ranged(count=True)
    assert narrower() == (5, None, ())
    with pytest.raises(UserError, match=r"narrower\.count=4 is out of range: at least 5"):
        narrower(4)


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
        UserError, match=r"without names 'rat', which parent does not have; did you mean rate\? \(its settings: st"
    ):
        method(papers=PAPER, base=parent, without=("rat",))(recipe)
    with pytest.raises(
        UserError, match=r"a changed default names 'size', which parent does not have.*steps, rate, rule"
    ):
        method(papers=PAPER, base=parent, size=3)(recipe)
    with pytest.raises(UserError, match=r"the default of 'rate' is in the signature and in @method"):
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
