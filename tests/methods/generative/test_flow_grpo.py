"""Flow-GRPO: its parts on a small flow model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import vantage
from tests.methods.generative.flows import (
    assert_resumes,
    check_advantages,
    credited,
    loss_and_gradient,
    loss_of_case,
    moved,
    trainer,
)
from tests.reference import Case, cases
from vantage.cli import main
from vantage.methods import registry
from vantage.regularizers.path import PathKL

SMALL = {"prompts": 3, "group_size": 4, "lr": 1e-3}


def test_the_ratio_is_one_at_the_old_policy_and_its_gradient_the_policy_gradient() -> None:
    where = trainer(vantage.method("flow-grpo", **SMALL, beta=0.0))
    batch = credited(where)
    loss, gradient = loss_and_gradient(where, batch)
    torch.testing.assert_close(loss[batch.mask], -batch.advantage[batch.mask], rtol=1e-4, atol=1e-5)
    policy = where.context.policy
    logp = policy.evaluate(batch, frozenset({"logp"})).logp
    # Per dimension: half of the log-density of a point in the plane.
    plain = -(batch.advantage * logp / 2)[batch.mask].mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(plain, list(policy.parameters()))])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_off_policy_it_is_the_released_formula() -> None:
    where = trainer(vantage.method("flow-grpo", **SMALL, beta=0.0, eps=1e-2))
    batch, policy = credited(where), moved(where)
    loss, _ = loss_and_gradient(where, batch, policy)
    seen = batch.observation
    x, t, dt, sigma = seen["x"], seen["time"], seen["next_time"] - seen["time"], seen["sigma"]
    with torch.no_grad():
        v = policy.velocity(x, t)
    t, dt, sigma = (value.unsqueeze(-1) for value in (t, dt, sigma))
    mean = x * (1 + sigma**2 / (2 * t) * dt) + v * (1 + sigma**2 * (1 - t) / (2 * t)) * dt
    step = sigma * (-dt).sqrt()
    logp = torch.distributions.Normal(mean, step).log_prob(batch.action).mean(-1)
    ratio = (logp - batch.logp_old / 2).exp()
    expected = torch.maximum(-batch.advantage * ratio, -batch.advantage * ratio.clamp(0.99, 1.01))
    torch.testing.assert_close(loss[batch.mask], expected[batch.mask], rtol=1e-3, atol=1e-4)
    assert bool((ratio > 1.01).any())


@cases("flow-grpo", "loss")
def test_the_loss_is_the_authors(case: Case) -> None:
    """One micro-batch: there the mean is taken over the samples of a device, step by step."""
    settings = {"steps": case.settings["T"], "eps": case.settings["eps"], "beta": case.settings["beta"]}
    for name, found in loss_of_case(case, registry.page("flow-grpo").make(settings)).items():
        if name in case.outputs:
            case.check(name, found)


@cases("flow-grpo", "advantages")
def test_the_advantages_are_the_authors_and_zeros_are_dropped(case: Case) -> None:
    check_advantages(case, registry.page("flow-grpo").make())


def test_the_exact_divergence_weighs_as_many_times_more_as_there_are_steps() -> None:
    assert vantage.method("flow-grpo").regularizers == (PathKL(0.04, by_length=True),)
    assert vantage.method("flow-grpo", exact_kl=True).regularizers == (PathKL(0.04),)


def test_advantages_are_centred_by_prompt_scaled_by_the_batch_and_cut() -> None:
    where = trainer(vantage.method("flow-grpo", **SMALL, limit=0.8))
    batch = credited(where)
    score = batch.score.double().numpy()
    centred = score - np.repeat(score.reshape(3, 4).mean(1), 4)
    expected = np.clip(centred / (score.std() + 1e-4), -0.8, 0.8)
    assert batch.advantage[:, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert batch.mask.sum(1).tolist() == [9] * 12


def test_the_divergence_to_the_reference_is_in_the_loss() -> None:
    where = trainer(vantage.method("flow-grpo", **SMALL, beta=0.5, minibatches=1))
    where.step()
    metrics, _ = where.step()
    assert metrics["kl/reference"] > 0
    assert metrics["loss/kl"] == pytest.approx(0.5 * metrics["kl/reference"], rel=0.2)
    assert trainer(vantage.method("flow-grpo", **SMALL, beta=0.0)).context.policies == {}


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    assert_resumes(tmp_path, vantage.method("flow-grpo", **SMALL))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, base, run = "flow2d:ring,modes=4,reward=region", tmp_path / "base", tmp_path / "run"
    small = ["--option", "hidden=[32,32]", "--eval-samples", "50"]
    train = ["train", "flow-matching", "--task", task, "--steps", "20", "--out", str(base), *small]
    assert main([*train, "--set", "batch=128", "lr=5e-3"]) == 0
    tune = [
        "train",
        "flow-grpo",
        "--task",
        task,
        "--model",
        str(base / "model"),
        "--steps",
        "3",
        "--out",
        str(run),
        *small,
    ]
    assert main([*tune, "--set", "prompts=4", "group_size=8"]) == 0
    assert (run / "model" / "model.safetensors").is_file()
    assert (run / "model" / "config.json").is_file()
    capsys.readouterr()
    assert main(["eval", str(run), "--samples", "100", "--json"]) == 0
    assert '"region"' in capsys.readouterr().out
    assert main(["train", "flow-grpo", "--task", "flow2d:rings", "--out", str(tmp_path / "no")]) == 2
    assert "did you mean ring" in capsys.readouterr().err


def test_it_learns() -> None:
    method = vantage.method("flow-grpo", prompts=4, group_size=16, lr=3e-3, beta=0.0, eps=1e-2)
    history = trainer(method, 25, "flow2d:ring,reward=mode").run().history
    assert np.mean([line["score"] for line in history[-3:]]) > np.mean([line["score"] for line in history[1:4]]) + 0.1
