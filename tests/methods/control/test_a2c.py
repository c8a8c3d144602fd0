"""A2C: bootstrapped returns and the gradient of the loss, against the sums written out."""

from __future__ import annotations

import pytest
import torch

import vantage
from tests.harness import context, loss_of, step_of
from tests.reference import Case, cases
from vantage.core import Method, Trajectories
from vantage.methods import registry


def segment(terminated: bool) -> Trajectories:
    """Three steps of one stream: rewards 1, 0, 2, values 0.5, 1, 1.5, and 4 after the last."""
    end = torch.tensor([[False, False, terminated]])
    return Trajectories(
        {
            "reward": torch.tensor([[1.0, 0.0, 2.0]]),
            "value": torch.tensor([[0.5, 1.0, 1.5]]),
            "next_value": torch.tensor([[1.0, 1.5, 0.0 if terminated else 4.0]]),
            "mask": torch.ones(1, 3, dtype=torch.bool),
            "terminated": end,
            "truncated": torch.zeros_like(end),
        }
    )


@pytest.mark.parametrize(
    ("terminated", "returns"), [(True, [1 + 0.25 * 2, 0.5 * 2, 2.0]), (False, [1 + 0.25 * 2 + 0.125 * 4, 2.0, 4.0])]
)
def test_returns_are_bootstrapped_from_the_value_after_the_segment(terminated: bool, returns: list[float]) -> None:
    method, batch = vantage.method("a2c", gamma=0.5), segment(terminated)
    found = method.advantage(batch, context(method=method))
    assert found.returns[0].tolist() == pytest.approx(returns)
    assert found.advantage[0].tolist() == pytest.approx([r - v for r, v in zip(returns, [0.5, 1.0, 1.5], strict=True)])


def test_gradients_of_the_three_terms() -> None:
    method = vantage.method("a2c", value_coefficient=0.5, entropy_coefficient=0.01)
    generator = torch.Generator().manual_seed(0)
    advantage, returns = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    batch = Trajectories(
        {"mask": torch.ones(5, 3, dtype=torch.bool), "advantage": advantage, "returns": returns, "value": returns + 1}
    )
    logp, value, entropy = (
        torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)
    )
    loss = loss_of(method, batch, logp=logp, value=value, entropy=entropy)
    written = -(logp * advantage).mean() + 0.5 * (returns - value).square().mean() - 0.01 * entropy.mean()
    assert float(loss.detach()) == pytest.approx(float(written.detach()))
    loss.backward()
    torch.testing.assert_close(logp.grad, -advantage / 15)
    torch.testing.assert_close(value.grad, (value.detach() - returns) / 15)
    torch.testing.assert_close(entropy.grad, torch.full((5, 3), -0.01 / 15, dtype=torch.float64))


def test_one_optimiser_step_a_segment_with_a_rate_that_falls_to_zero() -> None:
    run = vantage.train(vantage.method("a2c", rows=4, length=5), "cartpole", steps=4 * 5 * 10, evaluate_samples=0)
    rates = [line["lr"] for line in run.outcome.history if "lr" in line]
    assert rates == pytest.approx([7e-4 * (1 - step / 10) for step in range(10)])


def built(case: Case) -> Method:
    names = {"ent_coef": "entropy_coefficient", "vf_coef": "value_coefficient"}
    return registry.page("a2c").build({names.get(name, name): value for name, value in case.settings.items()})


@cases("a2c", "returns")
def test_returns_are_those_of_stable_baselines(case: Case) -> None:
    done, value = case.tensor("done"), case.tensor("value")
    after = torch.cat([value[:, 1:], case.tensor("last_value").unsqueeze(1)], 1)
    columns = {"reward": case.tensor("reward"), "value": value, "next_value": after, "terminated": done}
    batch = Trajectories({**columns, "truncated": torch.zeros_like(done), "mask": torch.ones_like(done)})
    found = built(case).advantage(batch, context())
    case.check("returns", found.returns)
    case.check("advantage", found.advantage)


@cases("a2c", "step")
def test_the_step_is_theirs(case: Case) -> None:
    """The value's gradient is that of coefficient * mean squared error; the norm of the three gradients together is clipped."""
    columns = {name: case.tensor(name).unsqueeze(1) for name in ("advantage", "returns")}
    batch = Trajectories({**columns, "mask": torch.ones_like(columns["returns"], dtype=torch.bool)})
    outputs = {name: case.tensor(name).unsqueeze(1) for name in ("logp", "value", "entropy")}
    slopes = step_of(built(case), batch, **outputs)
    for name in outputs:
        case.check(f"{name}_grad", slopes[name].squeeze(1))
    if "loss" in case.outputs:
        case.check("loss", loss_of(built(case), batch, **outputs))
