"""What a page's recipe may make: a method of the road, or what a field without a rollout loop runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import vantage
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.methods import index, registry
from vantage.study.systems import systems
from vantage.tasks.offers import OFFERS, WORDS
from vantage.tasks.registry import TASKS

SOLVER = '''
"""Halving: guess the middle. (S999)"""

from dataclasses import dataclass

from vantage.methods.registry import Paper, method


@dataclass(frozen=True)
class Halving:
    """Find a number."""

    steps: int

    def __call__(self, target: float) -> float:
        """Return the guess for a number in [0, 1]."""
        low, high = 0.0, 1.0
        for _ in range(self.steps):
            middle = (low + high) / 2
            low, high = (middle, high) if target > middle else (low, middle)
        return (low + high) / 2


@method(family="search", papers=Paper("On Halving", "A. Author", 2001))
def halving(steps: int = 3) -> Halving:
    return Halving(steps)
'''


@pytest.fixture
def solver(tmp_path: Path) -> str:
    path = tmp_path / "halving.py"
    path.write_text(SOLVER)
    return str(path)


def test_a_recipe_may_make_what_a_field_without_a_rollout_loop_runs(solver: str) -> None:
    page = registry.page(solver)
    made = page.make({"steps": 5})
    assert made.steps == 5
    assert abs(made(0.3) - 0.3) <= 2**-5
    assert registry.parts_of(made) == {"steps": "5"}
    assert registry.parent_of(made) is None


def test_settings_of_components_are_set_after_those_of_the_recipe() -> None:
    made = registry.page("dapo").make({"group_size": 4, "rollout.plan.size": 6, "update.optimizer.lr": 1})
    assert (made.rollout.plan.prompts, made.rollout.plan.size, made.update.optimizer.lr) == (512, 6, 1.0)
    assert (made.name, made.parent.name) == ("dapo", "grpo")
    with pytest.raises(UserError, match=r"dapo has no setting 'groupsize'; did you mean group_size"):
        registry.page("dapo").make({"groupsize": 4})


def test_it_cannot_be_trained_and_the_error_says_what_can_be_done(solver: str) -> None:
    with pytest.raises(UserError, match=r"halving has no rollout loop.*vantage compare halving"):
        registry.page(solver).build()
    with pytest.raises(UserError, match=r"no setting 'stepps'.*steps"):
        registry.page(solver).make({"stepps": 5})


def test_a_method_knows_its_name_and_its_parent() -> None:
    made = registry.page("dr-grpo").make()
    assert isinstance(made, Method)
    assert made.name == "dr-grpo"
    parent = registry.parent_of(made)
    assert parent is not None
    assert parent.name == "grpo"
    assert set(registry.parts_of(made)) == set(registry.parts_of(parent))


def test_a_method_that_needs_a_kind_of_policy_says_so_where_the_task_makes_none() -> None:
    made = vantage.method("fpo")
    assert made.policy_options == {**made.policy_options, "policy": "flow"}
    with pytest.raises(UserError, match=r"fpo needs a policy with .*policy=flow.*which the task 'toy' cannot make"):
        made.policy_for(SimpleNamespace(name="toy", make_policy=lambda model="", seed=0: None))
    assert (
        vantage.method("ppo").policy_for(SimpleNamespace(name="toy", make_policy=lambda model="", seed=0: seed), seed=3)
        == 3
    )


def test_every_setting_of_every_page_is_explained() -> None:
    missing = {p.name: [name for name in p.settings() if not p.explanation(name)[0]] for p in registry.pages()}
    assert not {name: settings for name, settings in missing.items() if settings}, (
        "docstring of the recipe: `name: text; ...`"
    )


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
    monkeypatch.setattr(index, "ROOT", tmp_path)
    index.modules.cache_clear()
    try:
        with pytest.raises(
            UserError, match=r"'same-name': vantage/methods/control/same_name.py and vantage/methods/theory/same"
        ):
            registry.names()
    finally:
        index.modules.cache_clear()


def test_pages_and_tasks_speak_the_same_words() -> None:
    assert set(OFFERS) == set(TASKS)
    assert frozenset().union(*OFFERS.values()) == set(WORDS)
    for page in registry.pages():
        made = page.make()
        needed = made.declared("needs") if isinstance(made, vantage.Method) else frozenset()
        assert page.needs == needed, f"{page.name}: @method(needs=...) says what its components declare"
        assert needed <= set(WORDS)
        assert any(needed <= offered for offered in OFFERS.values()), f"{page.name} runs nowhere"
