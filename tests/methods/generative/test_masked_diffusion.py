"""Masked diffusion: the training loss and the likelihood's estimate, as LLaDA's code has them."""

from __future__ import annotations

from types import SimpleNamespace

import torch

import vantage
from tests.harness import loss_of
from tests.reference import Case, cases
from vantage.core import Trajectories
from vantage.methods import registry
from vantage.policies.masked_diffusion import MaskedDiffusionPolicy


def evaluated(case: Case) -> tuple[Trajectories, torch.Tensor, torch.Tensor]:
    """The batch of a case, its logits as a leaf, and the policy's terms of the bound [N, T]."""
    logits = case.tensor("logits").requires_grad_()
    weight = case.tensor("weight")
    batch = Trajectories(
        {
            "action": torch.tensor(case.inputs["answer"]),
            "masked_weight": weight,
            "mask": torch.ones_like(weight, dtype=torch.bool),
            "length": torch.full((len(weight),), weight.shape[1]),
            "observation": {"tokens": torch.zeros(len(weight), 1, dtype=torch.int64)},
        }
    )
    policy = SimpleNamespace(logits=lambda tokens, given: logits)
    logp = MaskedDiffusionPolicy.evaluate(policy, batch, frozenset({"logp"})).logp  # type: ignore[arg-type]
    return batch, logits, logp


@cases("masked-diffusion", "training")
def test_the_loss_is_the_authors_given_the_masks(case: Case) -> None:
    batch, logits, logp = evaluated(case)
    loss = loss_of(registry.page("masked-diffusion").make({"kind": "bernoulli"}), batch, logp=logp)
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, logits)[0])


@cases("masked-diffusion", "likelihood")
def test_the_bound_is_the_authors_given_the_masks(case: Case) -> None:
    _, _, logp = evaluated(case)
    case.check("bound", logp.sum(1).mean())


def test_an_answer_is_masked_in_a_number_of_places_that_is_drawn() -> None:
    masks = vantage.method("masked-diffusion").selection[0]
    assert (masks.samples, masks.kind) == (1, "fixed")
