"""What a page's recipe may make: a method of the road, or what a field without a rollout loop runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import vantage
from vantage import api
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.methods import registry

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
    assert api.make(solver, {"steps": 4}).steps == 4


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
