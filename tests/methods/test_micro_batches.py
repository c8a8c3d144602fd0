"""No metric of any page depends on how many rows are differentiated at once: micro-batches change memory alone."""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch

import vantage
from vantage.core import Schedule, Trainer, UserError
from vantage.methods import registry
from vantage.tasks.language.loading import task_from_spec
from vantage.tasks.language.task import LanguageTask
from vantage.updates.optimizers import SGD

pytest.importorskip("transformers")
pytest.importorskip("gymnasium")

SMALL: dict[str, Any] = {
    "prompts": 3, "group_size": 4, "rows": 3, "length": 8, "window": 3, "minibatches": 2, "epochs": 2, "episodes": 3,
    "batch": 5, "rounds": 1, "temperature": 1.0, "count": 2, "pieces": 2, "bundle": 2, "right_at": 0.5,
    "template": "{draft};{prompt}", "until": 1, "warmup": 0, "capacity": 4, "take": 2, "scenarios": 5, "pairs": 3, "fresh": 2,
}  # fmt: skip
"""Settings that a page takes where it has them: ragged minibatches, two passes, so that ratios are not 1."""
OWN = {"spo-single-stream": {"samples": 0}, "repo-replay": {"least": 4}}
RUN_BY_THE_LOOP = [name for name in registry.names() if isinstance(registry.page(name).make(), vantage.Method)]
ON_CONTROL = {"right_at": 20.0}


def small(name: str, **own: Any) -> vantage.Method:
    chosen = {**SMALL, **OWN.get(name, {}), **own}
    return vantage.method(name, **{key: chosen[key] for key in chosen if key in registry.page(name).settings()})


def cut(update: Any, size: int | None) -> Any:
    """The update with micro-batches of `size`, and plain gradient steps: Adam would make rounding errors of full-size steps."""
    if not is_dataclass(update) or isinstance(update, type):
        return update
    new = {f.name: cut(getattr(update, f.name), size) for f in fields(update) if f.init}
    if "micro_batch" in new:
        new |= {"micro_batch": size, "optimizer": SGD(0.05), "max_grad_norm": 1.0}
    return replace(update, **new)


def has_micro_batches(method: vantage.Method) -> bool:
    return cut(method.update, 1) != cut(method.update, 2)


def first_step(method: vantage.Method, task: Any, policy: Any, size: int | None) -> dict[str, float]:
    torch.manual_seed(0)
    policy = copy.deepcopy(policy)
    method = method.replace(update=cut(method.update, size))
    run = Trainer(method, task, policy, task.make_engine(policy, seed=0), Schedule(1), seed=1, micro_batch=size)
    return run.step()[0]


def check(method: vantage.Method, task: Any, policy: Any) -> None:
    if not has_micro_batches(method):
        pytest.skip("its update has no micro-batches")
    try:
        whole = first_step(method, task, policy, None)
    except UserError as error:
        pytest.skip(f"does not run here: {error}")
    assert any(name.startswith("loss/") for name in whole)
    for size in (1, 3):
        assert first_step(method, task, policy, size) == pytest.approx(whole, rel=1e-5, abs=2e-6, nan_ok=True), size


@pytest.fixture(scope="module")
def language() -> tuple[LanguageTask, Any]:
    task = task_from_spec("modular:length=1,modulus=2", options={"max_new_tokens": 6, "evaluated": 4})
    # Answers that begin with an odd token are worth something, so that a model with random weights has outcomes that differ.
    task.score = lambda batch, where: {"correct": (batch.action[:, 0] % 2).float()}  # type: ignore[method-assign]
    return task, task.make_policy(seed=0)


@pytest.mark.parametrize("name", RUN_BY_THE_LOOP)
def test_on_language(name: str, language: tuple[LanguageTask, Any]) -> None:
    check(small(name), *language)


@pytest.mark.parametrize("name", RUN_BY_THE_LOOP)
def test_on_control(name: str) -> None:
    check_on("cartpole", name, right_at=20.0)


def check_on(spec: str, name: str, **own: Any) -> None:
    method, task = small(name, **own), vantage.task(spec)
    try:
        policy = method.policy_for(task)
    except UserError as error:
        pytest.skip(f"does not run here: {error}")
    check(method, task, policy)


ELSEWHERE = {
    "fpo": "pendulum",
    "dppo": "pendulum",
    "pdppo": "inventory",
    "hdpo": "inventory",
    "ppo": "pendulum",
    "pomo": "tsp:nodes=6",
    "poppy": "tsp:nodes=6",
    "dpo": "preference:arms=6,features=3",
    "hypo": "preference:arms=6,features=3",
    "rebel": "preference:arms=6,features=3",
    "nash-mp": "game:arms=6",
    "td3-bc": "offline:world=point",
    "prdc": "offline:world=point",
    "odice": "offline:world=point",
    "bc": "offline:world=point",
    "flow-grpo": "flow2d:ring",
    "grpo-guard": "flow2d:ring",
    "branchgrpo": "flow2d:ring",
    "flow-matching": "flow2d:ring",
    "st-ppo": "calculator:terms=2,digits=1",
    "otc": "calculator:terms=2,digits=1",
    "elbo-grpo": "masked:addition:digits=1",
    "bgpo-boundary": "masked:addition:digits=1",
    "masked-diffusion": "masked:addition:digits=1",
    "simpo": "padded-sorting:length=2",
}


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_in_the_field_that_it_is_made_for(name: str) -> None:
    check_on(ELSEWHERE[name], name)
