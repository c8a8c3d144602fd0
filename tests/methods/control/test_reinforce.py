"""REINFORCE: returns to go, the three baselines, and a gradient that a baseline leaves unbiased."""

from __future__ import annotations

import pytest
import torch

import vantage
from tests.harness import context, loss_of, step_of
from tests.reference import Case, cases
from vantage.core import Trajectories
from vantage.core.errors import UserError
from vantage.methods import registry


def episodes() -> Trajectories:
    """Rewards 1, 2, 4 and 3, and one step of padding."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    last = torch.tensor([[False, False, True], [True, False, False]])
    return Trajectories(
        {
            "reward": torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]]),
            "mask": mask,
            "terminated": last,
            "truncated": torch.zeros_like(last),
            "value": torch.tensor([[0.5, 1.0, 1.5], [2.0, 0.0, 0.0]]),
            "next_value": torch.tensor([[1.0, 1.5, 0.0], [0.0, 0.0, 0.0]]),
        }
    )


RETURNS = [1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4.0, 3.0]


def test_returns_to_go_with_each_baseline() -> None:
    batch = episodes()

    def credit(baseline: str) -> torch.Tensor:
        method = vantage.method("reinforce", gamma=0.5, baseline=baseline)
        return method.advantage(batch, context(method=method)).advantage[batch.mask]

    returns = torch.tensor(RETURNS)
    torch.testing.assert_close(credit("none"), returns)
    torch.testing.assert_close(credit("critic"), returns - batch.value[batch.mask])
    torch.testing.assert_close(credit("mean"), (returns - returns.mean()) / returns.std(), rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_score_function() -> None:
    batch = episodes().replace(advantage=torch.tensor([[3.0, 4.0, 4.0], [3.0, 9.0, 9.0]]))
    logp = torch.zeros(2, 3, requires_grad=True)
    loss_of(vantage.method("reinforce"), batch, logp=logp).backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == [pytest.approx([-0.75, -1.0, -1.0]), pytest.approx([-0.75, 0.0, 0.0])]


def test_a_constant_baseline_leaves_the_expected_gradient_as_it_is() -> None:
    # One step, three actions, every outcome weighted by its probability.
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    value = (logits.softmax(0) * reward).sum()
    (exact,) = torch.autograd.grad(value, logits)
    for baseline in (0.0, 0.7):
        logp = logits.log_softmax(0)
        weight = logits.softmax(0).detach() * (reward - baseline)
        (found,) = torch.autograd.grad((weight * logp).sum(), logits)
        torch.testing.assert_close(found, exact)


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(UserError, match="baseline='median' is not known"):
        vantage.method("reinforce", baseline="median")


@cases("reinforce")
def test_an_update_is_that_of_the_example(case: Case) -> None:
    """One episode, whitened by itself; the mean over its decisions is the sum over their number."""
    settings = {**case.settings, "episodes": 1}
    reward = case.tensor("reward").unsqueeze(0)
    last = torch.zeros_like(reward, dtype=torch.bool)
    last[0, -1] = True
    columns = {"reward": reward, "terminated": last, "truncated": torch.zeros_like(last), "mask": torch.ones_like(last)}
    plain = registry.page("reinforce").build({**settings, "baseline": "none"})
    case.check("returns", plain.advantage(Trajectories(columns), context()).returns[0])
    method = registry.page("reinforce").build({**settings, "max_grad_norm": 100.0})
    batch = method.advantage(Trajectories(columns), context())
    slopes = step_of(method, batch, logp=case.tensor("logp").unsqueeze(0))
    case.check("logp_grad", slopes["logp"][0] * reward.shape[1])
