"""The denoising engine: whole samples, samples in part, and samples that go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vantage
from tests.harness import context
from vantage.core import UserError
from vantage.core.protocols import Prompts
from vantage.policies.flow import FlowPolicy
from vantage.rollouts.denoising import Denoise, DenoisingEngine, Sampler, denoising_engine

STEPS = 6


def world(seed: int = 0, name: str = "grpo-guard", classes: int = 0) -> tuple[DenoisingEngine, Any, Prompts]:
    policy = FlowPolicy.new((2,), classes, hidden=(16,), seed=1)
    where = context(method=vantage.method(name), policy=policy, device=torch.device("cpu"))
    where.generator.manual_seed(seed)
    ids = torch.arange(3)
    return DenoisingEngine(policy, Sampler(STEPS)), where, Prompts(ids, ids.tolist() if classes else [None] * 3)


def test_times_and_noise_of_the_samplers() -> None:
    assert Sampler(4).times().tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert Sampler(2, shift=3.0).times().tolist() == pytest.approx([1, 0.75, 0])
    # 0.7 sqrt(t / (1 - t)), the first with 0.75 inside 1 - t.
    expected = [0.7 * 4**0.5, 0.7 * 3**0.5, 0.7, 0.7 * (1 / 3) ** 0.5]
    assert Sampler(4).sigmas().tolist() == pytest.approx(expected)
    assert Sampler(4, 0.3, "constant").sigmas().tolist() == pytest.approx([0.3] * 4)
    assert (Sampler(4, stochastic=(1, 9)).sigmas() > 0).tolist() == [False, True, False, False]
    assert Sampler(1).sigmas().isfinite().all()
    for wrong, told in (
        ({"steps": 0}, "steps=0"),
        ({"kind": "cosine"}, "kind='cosine' is not known"),
        ({"shift": 0.0}, "shift=0"),
    ):
        with pytest.raises(UserError, match=told):
            Sampler(**wrong)


@pytest.mark.parametrize("classes", [0, 4])
def test_whole_samples_hold_together(classes: int) -> None:
    engine, where, prompts = world(classes=classes)
    batch = engine.sample(prompts, 4, where)
    assert batch.action.shape == (12, STEPS, 2)
    assert batch.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert bool(batch.mask.all())
    assert batch.terminated.sum(1).tolist() == [1] * 12
    assert not bool(batch.truncated.any())
    torch.testing.assert_close(batch.observation["x"][:, 1:], batch.action[:, :-1])
    torch.testing.assert_close(batch["outcome"][:, 0], batch.action[:, -1])
    # The state before a step is the one after the step before: one memory.
    assert batch.observation["x"].data_ptr() + 8 == batch.action.data_ptr()
    found = where.policy.evaluate(batch, frozenset({"logp", "mean"}))
    torch.testing.assert_close(found.logp, batch.logp_old)
    torch.testing.assert_close(found.extras["mean"], batch["mean_old"])
    again = engine.sample(prompts, 4, world()[1])
    if not classes:
        assert torch.equal(again.action, batch.action)


def test_means_are_kept_where_a_part_reads_them() -> None:
    engine, where, prompts = world(name="flow-grpo")
    assert "mean_old" not in engine.sample(prompts, 1, where)


def test_greedy_is_the_ode() -> None:
    engine, where, prompts = world()
    batch = engine.sample(prompts, 2, where, greedy=True)
    assert batch.logp_old.abs().max() == 0
    torch.testing.assert_close(
        batch["outcome"][:, 0], where.policy.generate(batch.observation["x"][:, 0], None, STEPS), rtol=1e-5, atol=1e-5
    )


def test_samples_of_a_prompt_can_share_their_noise() -> None:
    engine, where, prompts = world()
    start = engine.sample(prompts, 2, where, same_noise=True).observation["x"][:, 0]
    assert torch.equal(start[0], start[1])
    assert not torch.equal(start[0], start[2])


def test_the_prediction_of_the_last_step_is_its_ode_step() -> None:
    engine, where, prompts = world()
    batch = engine.sample(prompts, 2, where, sampler=Sampler(STEPS, outcome="prediction"))
    x, time = batch.observation["x"][:, -1], batch.observation["time"][:, -1]
    torch.testing.assert_close(batch["outcome"][:, 0], x - time.unsqueeze(1) * where.policy.velocity(x, time))
    assert not torch.allclose(batch["outcome"][:, 0], batch.action[:, -1])


def test_a_sample_goes_on_from_any_step() -> None:
    engine, where, prompts = world()
    part = engine.sample(prompts, 1, where, limit=2)
    assert part.length.tolist() == [2] * 3
    assert part.truncated.nonzero()[:, 1].tolist() == [1] * 3
    on = engine.resume(part, torch.tensor([0, 2]), torch.tensor([2, 1]), 2, where)
    assert on["parent"].tolist() == [0, 0, 2, 2]
    assert on.group.tolist() == [0, 0, 1, 1]
    assert on.mask.sum(1).tolist() == [STEPS - 2, STEPS - 2, STEPS - 1, STEPS - 1]
    torch.testing.assert_close(on.action[:2, :2], part.action[[0, 0], :2])
    torch.testing.assert_close(on.action[2:, :1], part.action[[2, 2], :1])
    torch.testing.assert_close(where.policy.evaluate(on, frozenset({"logp"})).logp, on.logp_old)
    assert not torch.allclose(on.action[0, 2], on.action[1, 2])
    nothing = engine.sample(prompts, 1, where, limit=0)
    assert not bool(nothing.mask.any())
    assert engine.resume(nothing, torch.arange(3), torch.zeros(3, dtype=torch.int64), 1, where).mask.all()


def test_the_noise_of_the_first_new_step_can_be_scaled() -> None:
    engine, where, prompts = world()
    part = engine.sample(prompts, 1, where, limit=2)
    rows, at = torch.arange(3), torch.full((3,), 2)
    moved = []
    for scale in (1.0, 4.0):
        where.generator.manual_seed(7)
        on = engine.resume(part, rows, at, 1, where, noise_scale=scale)
        moved.append(on.action[:, 2] - on["mean_old"][:, 2])
    torch.testing.assert_close(moved[1], 4 * moved[0])


def test_what_it_cannot_do_is_said() -> None:
    engine, where, _ = world()
    with pytest.raises(UserError, match="no streams"):
        engine.advance(1, 1, where)
    with pytest.raises(UserError, match="Denoise samples a flow model"):
        Denoise(1, 1)(context(engine=object(), next_prompts=None))
    where.engine = engine
    assert denoising_engine(where, "it") is engine
