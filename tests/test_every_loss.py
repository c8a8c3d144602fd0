"""The losses and advantages of every page at the edges: huge ratios, padding that holds NaN, rewards that are all equal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import vantage
from tests.harness import context, random_batch
from vantage.core import Evaluation, Method, Trajectories
from vantage.core.loss import method_loss, weighted
from vantage.functions.whitening import whiten
from vantage.methods import registry

ROWS, STEPS, WIDTH = 8, 6, 3


def methods() -> dict[str, Method]:
    made = {name: registry.page(name).make() for name in registry.names()}
    return {name: method for name, method in made.items() if isinstance(method, Method)}


METHODS = methods()
OTHERS = {
    "flow-matching": "a matching loss of a flow policy: no ratio; see its own test",
    "hdpo": "a gradient through the simulator: no log-probability",
    "pdppo": "reads distributions: tests/methods/control/test_pdppo.py",
    "dppo": "asks the policy how many steps it tunes: tests/methods/control/test_dppo.py",
    "prdc": "climbs an action value: no ratio",
    "td3-bc": "climbs an action value: no ratio",
    "sft": "imitates: no ratio and no credit",
}
"""Pages that are not walked here, and why."""
LOSSES = sorted(set(METHODS) - set(OTHERS))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(seed))


def batch_of_everything() -> Trajectories:
    """Ragged rows in pairs, with every column that a loss of the library reads."""
    batch = random_batch(ROWS, STEPS, dtype=torch.float32, size=2)
    time = torch.linspace(1, 0.1, STEPS + 1)
    observation = {
        "sigma": torch.full((ROWS, STEPS), 0.5),
        "time": time[:-1].expand(ROWS, -1).clone(),
        "next_time": time[1:].expand(ROWS, -1).clone(),
    }
    names = ("logp_current", "logp_under_previous", "logp_under_target")
    return batch.replace(
        **{name: batch.logp_old + 0.1 * draw(STEPS, seed=seed) for seed, name in enumerate(names)},
        observation=observation,
        action=draw(STEPS, WIDTH),
        mean_old=draw(STEPS, WIDTH, seed=1),
        advantage=draw(STEPS, seed=2),
        returns=draw(STEPS, seed=3),
        value=draw(STEPS, seed=4),
        score=(torch.arange(ROWS) % 2).float(),
        win=torch.rand(ROWS, generator=torch.Generator().manual_seed(5)),
        answer=torch.arange(ROWS),
        turn=torch.zeros(ROWS, STEPS, dtype=torch.int64),
        segment=torch.zeros(ROWS, STEPS, dtype=torch.int64),
        source=torch.zeros(ROWS, dtype=torch.int64),
        target_ratio=torch.ones(ROWS),
    )


def loss_of(method: Method, batch: Trajectories, outputs: dict[str, Tensor]) -> Tensor:
    plain = {name: outputs[name] for name in ("logp", "entropy", "value")}
    extras = {name: outputs[name] for name in outputs if name not in plain}
    where = context(method=method, task=None, policy=None, step=0, device="cpu")
    where.now = lambda setting: setting
    where.named = lambda name: name
    where.evaluate = lambda *given, **named: draw(STEPS, WIDTH, seed=9)  # what a frozen policy would say
    ready = weighted(batch, method.averaging)
    return method_loss(Evaluation(**plain, extras=extras), ready, where, ready)


def outputs_of(batch: Trajectories, logp: Tensor) -> dict[str, Tensor]:
    """Leaves that take gradient: what the policy says."""
    made = {
        "logp": logp,
        "entropy": draw(STEPS, seed=6).abs(),
        "value": draw(STEPS, seed=7),
        "median": draw(STEPS, seed=8),
        "mean": batch["mean_old"] + 0.1,
    }
    return {name: value.clone().requires_grad_() for name, value in made.items()}


def gradients(outputs: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, leaf in outputs.items():
        if leaf.grad is not None:
            yield name, leaf.grad


@pytest.mark.parametrize("shift", [90.0, -90.0])
@pytest.mark.parametrize("name", LOSSES)
def test_a_log_ratio_of_90_has_a_finite_loss_and_a_finite_gradient(name: str, shift: float) -> None:
    batch = batch_of_everything()
    outputs = outputs_of(batch, batch.logp_old + shift)
    # The same distance where the ratio comes from means instead of log-probabilities.
    outputs["mean"] = (batch["mean_old"] + shift * (batch.action - batch["mean_old"])).requires_grad_()
    loss = loss_of(METHODS[name], batch, outputs)
    loss.backward()
    assert math.isfinite(loss.item())
    found = dict(gradients(outputs))
    assert found
    for output, gradient in found.items():
        assert torch.isfinite(gradient).all(), output


@pytest.mark.parametrize("name", LOSSES)
def test_nan_outside_of_the_mask_changes_neither_the_loss_nor_a_gradient(name: str) -> None:
    clean = batch_of_everything()
    results: list[tuple[float, dict[str, Tensor]]] = []
    for junk in (0.0, math.nan):
        batch = clean.replace(
            **{
                column: torch.where(clean.mask, clean[column], junk)
                for column in clean
                if isinstance(clean[column], Tensor)
                and clean[column].is_floating_point()
                and clean[column].shape == clean.mask.shape
            }
        )
        logp = torch.where(batch.mask, batch.logp_old + 0.1 * draw(STEPS, seed=10), junk)
        outputs = outputs_of(clean, logp)
        for output in ("entropy", "value"):
            outputs[output] = torch.where(batch.mask, outputs[output].detach(), junk).requires_grad_()
        loss = loss_of(METHODS[name], batch, outputs)
        loss.backward()
        results.append((loss.item(), dict(gradients(outputs))))
    (loss, expected), (other, found) = results
    assert other == pytest.approx(loss, rel=1e-6)
    for output, gradient in expected.items():
        torch.testing.assert_close(found[output], gradient, msg=output)


ON_SCORES = sorted(
    {"bgpo-boundary", "branchgrpo", "brrl-group", "dapo", "dcpo", "dr-grpo", "elbo-grpo", "flow-grpo", "gdpo", "grpo", "grpo-guard"}
    | {"grpo-lambda", "gspo", "igrpo", "oblr-po", "otc", "pomo", "prefix-grouper", "r2vpo", "reinforce-plus-plus", "remix"}
    | {"repo-replay", "riskpo", "rloo", "scaf-grpo", "spo-single-stream", "treepo", "vineppo"}
)  # fmt: skip
"""Pages whose advantage compares scores with one another: equal scores teach nothing, at their default settings."""


def advantage_of(method: Method, batch: Trajectories) -> Tensor:
    where: Any = context(method=method, task=None, policy=None, step=0)
    where.now = lambda setting: setting
    where.evaluate = lambda *given, **named: torch.full((ROWS, STEPS), 0.5)
    found = method.advantage(batch, where)
    credit = found if isinstance(found, Tensor) else found.advantage
    # As an update that standardises the advantages of a minibatch leaves it.
    return whiten(credit, batch.mask) if getattr(method.update, "normalize_advantage", False) else credit


def scored(score: Tensor) -> Trajectories:
    batch = batch_of_everything()
    last = torch.arange(STEPS) == (batch.length - 1).unsqueeze(1)
    zero = torch.zeros(ROWS, STEPS)
    return batch.replace(
        score=score,
        reward=torch.where(last, score.unsqueeze(-1), 0.0),
        rewards={"correct": score, "other": torch.full((ROWS,), 0.3)},
        value=zero,
        next_value=zero,
        path=torch.stack([torch.arange(ROWS) // 4, torch.arange(ROWS)], 1),
        edge=torch.arange(ROWS * STEPS).view(ROWS, STEPS),
    )


@pytest.mark.parametrize("value", [0.1, 0.7, 0.9444, 1 / 3, 1.0, 100.3])
@pytest.mark.parametrize("name", ON_SCORES)
def test_equal_scores_give_an_advantage_of_exactly_zero(name: str, value: float) -> None:
    method = registry.page(name).make()
    # What is remembered of a prompt is of equal scores too; riskpo's quantiles go on moving by design.
    for _ in range(1 if name == "riskpo" else 3):
        found = advantage_of(method, scored(torch.full((ROWS,), value)))
        assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("name", ON_SCORES)
def test_scores_that_differ_by_rounding_give_a_small_advantage(name: str) -> None:
    noise = 6e-8 * torch.randint(-1, 2, (ROWS,), generator=torch.Generator().manual_seed(0))
    found = advantage_of(registry.page(name).make(), scored(0.7 + noise))
    assert float(found.abs().max()) < 0.01
    # And where they differ in earnest, it is of the ordinary size.
    assert float(advantage_of(vantage.method(name), scored((torch.arange(ROWS) % 2).float())).abs().max()) > 0.2
