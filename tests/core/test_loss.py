"""The gradient of a minibatch does not depend on how it is cut, for every averaging and every kind of loss."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.core.toy import ToyPolicy, toy_batch, toy_method
from tests.harness import recording
from vantage.advantages.critic import Critic
from vantage.core import UserError, reads
from vantage.core.averaging import AVERAGINGS, averaging
from vantage.core.loss import WEIGHTS, backward, micro_batches, weighted
from vantage.metrics import Metrics
from vantage.objectives.likelihood import NegativeLogLikelihood
from vantage.objectives.surrogates import Clip
from vantage.regularizers.penalties import EntropyBonus, ReferenceKL


def gradient(method: Any, micro: int | None, batch: Any = None) -> tuple[torch.Tensor, dict[str, float]]:
    policy = ToyPolicy(dtype=torch.float64)
    metrics = Metrics()
    context: Any = SimpleNamespace(method=method, policy=policy, **recording(metrics))
    backward(toy_batch() if batch is None else batch, context, micro)
    flat = torch.cat(
        [p.grad.reshape(-1) if p.grad is not None else torch.zeros(p.numel()) for p in policy.parameters()]
    )
    return flat, metrics.collect()


@reads("logp")
def constraint(evaluation: Any, batch: Any, context: Any) -> torch.Tensor:
    """A loss of the whole batch: its coefficient depends on the batch's mean."""
    kl = torch.where(batch.mask, batch.logp_old - evaluation.logp, 0.0).sum() / batch.mask.sum()
    return kl.square() + (evaluation.logp * batch.advantage * batch.mask).sum().tanh()


constraint.unit = "batch"  # type: ignore[attr-defined]


@reads("logp")
def contrast(evaluation: Any, batch: Any, context: Any) -> torch.Tensor:
    """A loss per group: log of the summed exponentials of the members' sequence log-probabilities."""
    rows = torch.where(batch.mask, evaluation.logp, 0.0).sum(-1)
    index = torch.unique(batch.group, return_inverse=True)[1]
    count = int(index.max()) + 1
    return torch.zeros(count, dtype=rows.dtype).index_add(0, index, rows.exp()).log()


contrast.unit = contrast.key = "group"  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Holder:
    """A term that holds others."""

    terms: tuple[Any, ...]

    def __call__(self, evaluation: Any, batch: Any, context: Any) -> torch.Tensor:
        return torch.stack([term(evaluation, batch, context).sum() for term in self.terms]).sum()


@pytest.mark.parametrize("name", sorted(AVERAGINGS))
@pytest.mark.parametrize("micro", [1, 5, 7, 12])
def test_micro_batches_give_the_gradient_of_the_whole(name: str, micro: int) -> None:
    method = toy_method(
        averaging=name,
        regularizers=(EntropyBonus(0.1), ReferenceKL(0.2)),
        values=Critic(0.5, clip=0.2),
        objective=Clip(0.2, 0.3),
    )
    whole, metrics = gradient(method, None)
    cut, cut_metrics = gradient(method, micro)
    # The averaging weights are float32, whatever the loss.
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-9)
    assert whole.abs().max() > 1e-3
    for key in ("loss/policy", "loss/value", "loss/entropy", "loss/kl"):
        assert cut_metrics[key] == pytest.approx(metrics[key], rel=1e-5)


@pytest.mark.parametrize(("objective", "micro"), [(constraint, 1), (constraint, 5), (contrast, 3), (contrast, 6)])
def test_losses_that_join_rows_are_exact_too(objective: Any, micro: int) -> None:
    method = toy_method(objective=objective, regularizers=(EntropyBonus(0.1),))
    whole, _ = gradient(method, None)
    cut, _ = gradient(method, micro)
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-9)
    assert whole.abs().max() > 1e-3


@pytest.mark.parametrize("micro", [1, 3, 5])
def test_a_loss_per_group_is_exact_where_groups_are_unequal(micro: int) -> None:
    """The mean is over groups: a part with one group of seven rows counts as much as one with a group of one."""
    batch = toy_batch().replace(group=torch.tensor([0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 0]))
    method = toy_method(objective=contrast)
    whole, metrics = gradient(method, None, batch)
    cut, cut_metrics = gradient(method, micro, batch)
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-9)
    assert cut_metrics["loss/policy"] == pytest.approx(metrics["loss/policy"], rel=1e-6)


@pytest.mark.parametrize("micro", [None, 1, 5])
def test_perplexity_is_exp_of_the_mean(micro: int | None) -> None:
    batch, policy = toy_batch(), ToyPolicy(dtype=torch.float64)
    logp = policy.evaluate(batch, frozenset({"logp"})).logp[batch.mask].detach()
    _, metrics = gradient(toy_method(objective=NegativeLogLikelihood()), micro, batch)
    assert metrics["perplexity"] == pytest.approx(float((-logp.mean()).exp()), rel=1e-9)
    assert metrics["cross_entropy"] == pytest.approx(float(-logp.mean()), rel=1e-9)


def test_units_of_a_loss_are_those_of_its_terms_and_of_what_they_hold() -> None:
    assert toy_method().units == ["decision"]
    method = toy_method(objective=constraint, regularizers=(EntropyBonus(0.1), SimpleNamespace(unit="row")))
    assert method.units == ["decision", "batch"]  # what cannot be called is no component
    holder = Holder((constraint, contrast))
    assert toy_method(objective=holder).units == ["decision", "group", "batch"]
    held = toy_method(objective=holder)
    assert held.units is held.units  # read once, since every minibatch asks
    assert held.replace(objective=contrast).units == ["group"]


def test_means_of_totals_of_several_types() -> None:
    metrics = Metrics()
    metrics.record_total("a", torch.tensor(3), torch.tensor(2))
    metrics.record_total("a", torch.tensor([1.5]), 1.0)
    metrics.record_total("a", torch.tensor(0.1, dtype=torch.float64), torch.tensor(True))
    metrics.record_total("b", torch.tensor(0.5, dtype=torch.bfloat16), torch.tensor(0))
    loss = torch.tensor(2.0, requires_grad=True)
    metrics.record_total("c", loss, 4)
    assert not metrics._records["c"][0][0].requires_grad
    assert metrics.collect() == {"a": pytest.approx(4.6 / 4, abs=1e-15), "c": 0.5}


def test_micro_batches_keep_groups_whole() -> None:
    parts = micro_batches(toy_batch(12, 4), 5, whole_groups=True)
    seen = [set(part.group.tolist()) for part in parts]
    assert sum(len(part) for part in parts) == 12
    assert all(not (a & b) for i, a in enumerate(seen) for b in seen[i + 1 :])


def test_weights_of_each_averaging() -> None:
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    group = torch.tensor([0, 1])
    expected = {
        "token-mean": [[1 / 4] * 3 + [0], [1 / 4, 0, 0, 0]],
        "seq-mean-token-mean": [[1 / 6] * 3 + [0], [1 / 2, 0, 0, 0]],
        "seq-sum-token-mean": [[1 / 3] * 3 + [0], [1, 0, 0, 0]],
        "seq-mean-token-sum": [[1 / 2] * 3 + [0], [1 / 2, 0, 0, 0]],
        "seq-mean-token-sum-norm": [[1 / 8] * 3 + [0], [1 / 8, 0, 0, 0]],
        "group": [[1 / 6] * 3 + [0], [1 / 2, 0, 0, 0]],
    }
    for name, weights in expected.items():
        torch.testing.assert_close(averaging(name)(mask, group), torch.tensor(weights))
    with pytest.raises(UserError, match=r"averaging 'tokens' is not known; did you mean token-mean"):
        averaging("tokens")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("token", "token-mean"),
        ("sequence", "seq-mean-token-mean"),
        ("total", "seq-mean-token-sum"),
        ("constant", "seq-mean-token-sum-norm"),
        ("sum", "seq-sum-token-mean"),
    ],
)
def test_an_old_name_is_the_new_one_with_a_warning(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"'{old}' is now called '{new}'"):
        assert averaging(old) is AVERAGINGS[new]
    with pytest.warns(DeprecationWarning, match=new):
        assert toy_method().replace(averaging=old).averaging == new


def test_padding_that_is_not_finite_does_not_reach_the_gradient() -> None:
    batch = toy_batch()
    old = torch.where(batch.mask, batch.logp_old, -float("inf"))
    found, _ = gradient(toy_method(), None, batch.replace(logp_old=old))
    expected, _ = gradient(toy_method(), None)
    torch.testing.assert_close(found, expected)


def test_the_weight_column_scales_rows_and_decisions() -> None:
    batch = toy_batch(4, 2)
    plain = weighted(batch, "token-mean")[WEIGHTS]
    rows = weighted(batch.replace(weight=torch.tensor([1.0, 0.0, 2.0, 1.0])), "token-mean")[WEIGHTS]
    torch.testing.assert_close(rows, plain * torch.tensor([[1.0], [0.0], [2.0], [1.0]]))


def test_reading_what_was_not_wanted_is_an_error() -> None:
    def greedy(evaluation: Any, batch: Any, context: Any) -> torch.Tensor:
        return evaluation.entropy

    with pytest.raises(UserError, match="'entropy' was not evaluated: the component that reads it must declare it"):
        gradient(toy_method(objective=greedy), None)
