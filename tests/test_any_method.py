"""Any method trains any policy on any task: every page takes two steps on a language task and on a control task."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import vantage
from vantage.methods import registry
from vantage.policies.tiny import new_model

SMALL = {"prompts": 2, "group_size": 4, "rows": 4, "length": 8, "minibatches": 1, "epochs": 1, "episodes": 4, "batch": 4,
         "rounds": 1, "lr": 1e-3, "temperature": 1.0, "samples": 0}  # fmt: skip
# Built on what only a language model or a verifier has.
LANGUAGE_ONLY = {
    "gdpo": "several named rewards",
    "igrpo": "prompts that hold an earlier answer",
    "oblr-po": "logits of every decision",
    "scaf-grpo": "hints",
    "sft": "worked solutions",
    "t-ppo": "rows that are resumed",
    "vineppo": "rows that are sampled again from their middle",
}


def small(name: str) -> vantage.Method:
    known = registry.page(name).settings()
    return vantage.method(name, **{key: value for key, value in SMALL.items() if key in known})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    new_model(folder, preset="tiny")
    return folder


@pytest.mark.parametrize("name", registry.names())
def test_on_language(name: str, model: Path) -> None:
    if name == "trpo":
        pytest.skip("a trust region needs a distribution with a divergence, which logits alone do not offer")
    method = small(name) if name != "brrl" else vantage.method("brrl", form="gbpo", prompts=2, group_size=4, lr=1e-3)
    run = vantage.train(
        method, "addition:digits=1", model=model, steps=2, options={"max_new_tokens": 4}, evaluate_samples=0
    )
    assert run.outcome.step == 2
    losses = [value for line in run.outcome.history for key, value in line.items() if key.startswith("loss/")]
    assert losses
    assert all(math.isfinite(value) for value in losses)


@pytest.mark.parametrize("name", [name for name in registry.names() if name not in LANGUAGE_ONLY])
def test_on_control(name: str) -> None:
    task = vantage.task("cartpole")
    policy = task.make_policy(seed=0)
    before = [p.detach().clone() for p in policy.parameters()]
    # An episode of the pole scores its length: what counts as right must lie between a short and a long one.
    method = (
        small(name)
        if name != "disco"
        else vantage.method(name, prompts=2, group_size=4, temperature=1.0, right_at=20.0)
    )
    # Groups on control are episodes from the same initial state; two steps of the road are enough to see them learn.
    run = vantage.train(method, task, steps=2 * 32, evaluate_samples=0, policy=policy)
    assert run.outcome.step >= 1
    assert any(not torch.equal(p, b) for p, b in zip(policy.parameters(), before, strict=True))
