"""What a method asks of the engine: the discount by which rewards are scaled, and whether they are scaled at all."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("gymnasium")

import vantage
from tests.core.toy import toy_method
from vantage.advantages.estimators import GAE
from vantage.core import Schedule, Trainer, UserError
from vantage.methods import registry
from vantage.rollouts.environments import EnvironmentEngine

DISCOUNTED = [page.name for page in registry.pages() if "gamma" in page.settings() and page.family == "control"]


def engine_of(method: vantage.Method, spec: str = "pendulum", **options: Any) -> EnvironmentEngine:
    task = vantage.task(spec, options=options)
    return method.engine_for(task, method.policy_for(task), seed=0)


@pytest.mark.parametrize("name", [*DISCOUNTED, "brrl"])
def test_rewards_are_scaled_by_the_methods_own_discount(name: str) -> None:
    method = vantage.method(name, gamma=0.9)
    assert engine_of(method).gamma == 0.9
    # What the user says of the engine comes first.
    assert engine_of(method, gamma=0.5).gamma == 0.5


def test_a_method_without_a_discount_leaves_the_engines() -> None:
    assert engine_of(vantage.method("grpo")).gamma == 0.99


def test_rewards_of_fpo_are_not_scaled_unless_the_user_asks_for_it() -> None:
    """An untrained policy is paid -16.3 to -0.0 a step of the pendulum; scaled, the method saw -3.7 to -0.03."""
    method = vantage.method("fpo", rows=4, length=50)
    task = vantage.task("pendulum")
    policy = method.policy_for(task)
    run = Trainer(method, task, policy, method.engine_for(task, policy), Schedule(1))
    batch = run.context.method.rollout(run.context)
    assert float(batch.reward.min()) < -10
    assert float(batch.reward.min()) >= -16.28
    scaled = engine_of(method, normalize_rewards=True)
    assert scaled.normalize_rewards
    assert scaled.gamma == 0.995


def test_components_that_ask_for_different_things_are_named() -> None:
    method = toy_method(advantage=GAE(0.9), values=GAE(0.8))
    with pytest.raises(UserError, match=r"engine_options: advantage asks for gamma=0.9, another component for 0.8"):
        engine_of(method)


def test_a_task_whose_engine_has_no_such_option_is_left_alone() -> None:
    class Plain:
        def make_engine(self, policy: Any, seed: int = 0) -> tuple[Any, int]:
            return policy, seed

    assert toy_method(advantage=GAE(0.9)).engine_for(Plain(), "policy", seed=3) == ("policy", 3)
