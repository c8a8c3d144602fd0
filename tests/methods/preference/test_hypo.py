"""HyPO: the estimator of the divergence is unbiased, and nothing is sampled where it has no weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import ToyPolicy, toy_batch
from tests.harness import context, loss_of
from tests.reference import Case, cases
from vantage.core import Evaluation, Trajectories, UserError
from vantage.core.loss import backward
from vantage.core.trajectories import FRESH, STORED
from vantage.methods import registry
from vantage.regularizers.penalties import OnlineKL
from vantage.rollouts.pairs import PairsAndFresh, StoredPairs


def rows(arms: list[int], logits: torch.Tensor, ref: torch.Tensor) -> tuple[Trajectories, torch.Tensor]:
    """Rows of one prompt, whose log-probabilities depend on the logits."""
    action = torch.tensor(arms)
    logp = logits.log_softmax(-1)[action].unsqueeze(1)
    columns = {
        "mask": torch.ones(len(arms), 1, dtype=torch.bool),
        "logp_ref": ref.log()[action].unsqueeze(1),
        "group": torch.zeros(len(arms), dtype=torch.int64),
        "source": torch.full((len(arms),), FRESH),
    }
    return Trajectories(columns), logp


def gradient(part: OnlineKL, arms: list[int], logits: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    batch, logp = rows(arms, logits, ref)
    return torch.autograd.grad(part(Evaluation(logp=logp), batch, context()).mean(), logits)[0]


@pytest.mark.parametrize("samples", [1, 2])
def test_enumerated_over_both_arms_it_is_the_gradient_of_the_divergence(samples: int) -> None:
    pi, ref = torch.tensor([0.6, 0.4], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    logits = pi.log().requires_grad_()
    exact = (logits.softmax(-1) * (logits.log_softmax(-1) - ref.log())).sum()
    assert float(exact.detach()) == pytest.approx(0.02014, abs=1e-5)
    (wanted,) = torch.autograd.grad(exact, logits)
    assert float(wanted[0]) == pytest.approx(0.0973, abs=1e-4)
    part = OnlineKL(1.0)
    found = torch.zeros(2, dtype=torch.float64)
    for arms in torch.cartesian_prod(*[torch.arange(2)] * samples).reshape(-1, samples).tolist():
        found += float(pi[arms].prod()) * gradient(part, arms, logits, ref)
    torch.testing.assert_close(found, wanted)


def test_at_the_reference_the_term_has_no_gradient_at_all() -> None:
    ref = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    found = gradient(OnlineKL(1.0), [0, 2, 1], ref.log().requires_grad_(), ref)
    torch.testing.assert_close(found, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_constant_in_the_reference_changes_nothing_and_weights_sum_to_zero() -> None:
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    part = OnlineKL(1.0)
    one, other = (gradient(part, [0, 1, 1, 2], logits, ref * scale) for scale in (1.0, 7.0))
    torch.testing.assert_close(one, other)
    batch, _ = rows([0, 1], logits, ref)
    # d = (0.3, 0.1) gives weights +0.2 and -0.2.
    logp = torch.tensor([[0.3], [0.1]], dtype=torch.float64, requires_grad=True)
    batch = batch.replace(logp_ref=torch.zeros(2, 1, dtype=torch.float64))
    part(Evaluation(logp=logp), batch, context()).sum().backward()
    assert logp.grad[:, 0].tolist() == pytest.approx([0.2, -0.2])


def test_clip_bounds_the_ratio() -> None:
    logp = torch.tensor([[3.0], [0.1]], dtype=torch.float64, requires_grad=True)
    batch, _ = rows([0, 1], torch.zeros(2), torch.ones(2))
    batch = batch.replace(logp_ref=torch.zeros(2, 1, dtype=torch.float64))
    OnlineKL(1.0, clip=0.5)(Evaluation(logp=logp), batch, context()).sum().backward()
    assert logp.grad[:, 0].tolist() == pytest.approx([0.4, -0.4])


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"clip": 0.0}, {"clip": -1.0}, {"lam": -0.1}):
        with pytest.raises(UserError, match=str(next(iter(settings.values())))):
            vantage.method("hypo", **settings)


def test_without_weight_it_is_dpo_and_samples_nothing() -> None:
    method = vantage.method("hypo", lam=0.0)
    assert isinstance(method.rollout, StoredPairs)
    assert not method.regularizers
    dpo = vantage.method("dpo")
    assert method.objective == dpo.objective
    assert method.update == dpo.update


def mixed(rows_: int = 16) -> Trajectories:
    """Four pairs and fresh groups of 2, shuffled by groups, weighed as the rollout does."""
    batch = toy_batch(rows_, 8)
    batch = batch.replace(group=torch.arange(rows_) // 2)
    source = (batch.group >= 3).long()
    weight = torch.where(source == STORED, rows_ / 6, rows_ / 10).double()
    return batch.replace(source=source, weight=weight)


def test_loss_is_the_mean_over_pairs_plus_the_mean_over_samples_and_no_cut_changes_it() -> None:
    method = vantage.method("hypo", lam=0.5, beta=0.3)
    batch = mixed()

    def judged(micro: int | None) -> tuple[torch.Tensor, dict[str, float]]:
        policy = ToyPolicy(dtype=torch.float64)
        where: Any = context(method=method, policy=policy)
        backward(batch, where, micro)
        return torch.cat(
            [p.grad.reshape(-1) for p in policy.parameters() if p.grad is not None]
        ), where.metrics.collect()

    whole, told = judged(None)
    for micro in (2, 5, 8):
        torch.testing.assert_close(judged(micro)[0], whole)
    dpo = vantage.method("dpo", beta=0.3)
    where: Any = context(method=dpo, policy=ToyPolicy(dtype=torch.float64))
    backward(batch.select(batch.source == STORED).replace(weight=None), where, None)
    assert told["loss/policy"] == pytest.approx(where.metrics.collect()["loss/policy"])


def test_the_rollout_reads_and_samples_in_one_batch() -> None:
    task = vantage.task("preference:arms=6,contexts=3,pairs=40,covered=3")
    method = vantage.method("hypo", pairs=5, fresh=4, samples=3)
    policy = task.make_policy()
    trainer = vantage.core.Trainer(method, task, policy, task.make_engine(policy), vantage.core.Schedule(1))
    assert isinstance(method.rollout, PairsAndFresh)
    batch = trainer.context.method.rollout(trainer.context)
    assert batch.source.tolist() == [STORED] * 10 + [FRESH] * 12
    assert batch.group.tolist() == [i // 2 for i in range(10)] + [5 + i // 3 for i in range(12)]
    assert batch.weight[:10].tolist() == pytest.approx([22 / 10] * 10)
    assert batch.weight[10:].tolist() == pytest.approx([22 / 12] * 12)
    assert int(batch.action[:10].max()) < 3


def test_it_keeps_an_unseen_arm_near_the_reference() -> None:
    spec = "preference:arms=20,contexts=10,features=8,pairs=1000,covered=5,trap=2.0,scale=2.0"
    settings = {"lr": 2e-2, "beta": 0.1}
    dpo = vantage.train("dpo", spec, steps=200, settings=settings).outcome.history[-1]
    hypo = vantage.train("hypo", spec, steps=200, settings={**settings, "lam": 0.1}).outcome.history[-1]
    assert hypo["eval/kl"] < 0.5 * dpo["eval/kl"]
    assert hypo["eval/reward"] > dpo["eval/reward"]


def rows_of(case: Case, source: int) -> Trajectories:
    mask = case.tensor("mask")
    columns = {"mask": mask, "length": mask.sum(1), "logp_ref": case.tensor("logp_ref")}
    return Trajectories({**columns, "group": torch.arange(4) // 2, "source": torch.full((4,), source)})


@cases("hypo", "pairs")
def test_loss_of_the_pairs_is_that_of_dpos_authors(case: Case) -> None:
    logp = case.tensor("logp").requires_grad_()
    loss = loss_of(registry.page("hypo").make(case.settings), rows_of(case, STORED), logp=logp)
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, logp)[0])


@cases("hypo", "fresh")
def test_weights_of_fresh_answers_are_verls_leave_one_out(case: Case) -> None:
    logp = case.tensor("logp").requires_grad_()
    lam = registry.page("hypo").make().regularizers[0].coefficient
    loss = loss_of(registry.page("hypo").make(), rows_of(case, FRESH), logp=logp)
    case.check("weights", torch.autograd.grad(loss, logp)[0] * 4 / lam)
