"""ELBO-GRPO: one ratio for an answer from all of its samples, and gradients in closed form."""

from __future__ import annotations

import pytest
import torch

import vantage
from tests.harness import context
from vantage.core import Evaluation, Trajectories
from vantage.objectives.elbo import JointBound


def rows(old: bool = True) -> Trajectories:
    """Two answers of two samples each, interleaved; one decision a row."""
    columns = {
        "mask": torch.ones(4, 1, dtype=torch.bool),
        "advantage": torch.tensor([[2.0], [-1.0], [2.0], [-1.0]], dtype=torch.float64),
        "answer": torch.tensor([7, 3, 7, 3]),
    }
    return Trajectories({**columns, **({"logp_old": torch.zeros(4, 1, dtype=torch.float64)} if old else {})})


def test_loss_and_gradient_of_an_answer() -> None:
    d = torch.tensor([[0.3], [0.1], [-0.1], [0.5]], dtype=torch.float64, requires_grad=True)
    loss = JointBound()(Evaluation(logp=d), rows(), context())
    # Answers in the order of their numbers: 3 has mean (0.1 + 0.5) / 2, 7 has (0.3 - 0.1) / 2.
    ratio = torch.tensor([0.3, 0.1], dtype=torch.float64).exp()
    torch.testing.assert_close(loss.detach(), torch.tensor([1.0, -2.0], dtype=torch.float64) * ratio)
    loss.sum().backward()
    assert d.grad is not None
    expected = [-2.0 * float(ratio[1]) / 2, 1.0 * float(ratio[0]) / 2]
    assert d.grad.flatten().tolist() == pytest.approx([expected[0], expected[1], expected[0], expected[1]])


def test_at_the_old_policy_it_is_the_policy_gradient_of_the_bound() -> None:
    d = torch.tensor([[-1.0], [-2.0], [-0.5], [-3.0]], dtype=torch.float64, requires_grad=True)
    loss = JointBound()(Evaluation(logp=d), rows(old=False), context())
    assert loss.tolist() == [1.0, -2.0]
    loss.sum().backward()
    assert d.grad is not None
    assert d.grad.flatten().tolist() == [-1.0, 0.5, -1.0, 0.5]


def test_the_recipe_keeps_the_samples_of_a_prompt_together() -> None:
    made = vantage.method("elbo-grpo", samples=2, minibatches=2)
    assert made.update.unit == "group"
    assert made.selection[0].old is None  # whether the old bound is stored is the update's to say
