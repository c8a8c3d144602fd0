"""OBLR-PO: the numbers of its card."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import ToyPolicy, toy_batch
from tests.harness import context, random_batch
from tests.methods.toys import assert_resumes, gain, trainer
from tests.reference import Case, cases
from vantage.core import Evaluation, UserError
from vantage.core.loss import backward
from vantage.methods.objectives.oblr_po import NormWeighted, SignalToNoise, weighted_baseline
from vantage.objectives.surrogates import PolicyGradient
from vantage.updates.optimizers import SGD

GROUP = torch.zeros(3, dtype=torch.int64)


def test_worked_group() -> None:
    score, weight = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 4.0])
    whole = weighted_baseline(score, weight, GROUP, leave_one_out=False)
    assert whole.tolist() == pytest.approx([1 / 6] * 3)
    others = weighted_baseline(score, weight, GROUP)
    assert others.tolist() == pytest.approx([0.0, 1 / 5, 1 / 2])


@cases("oblr-po", "advantage")
def test_the_advantages_are_verls_at_the_last_token(case: Case) -> None:
    logits, action = case.tensor("logits"), case.tensor("action").long()
    batch = random_batch(*action.shape).replace(
        mask=torch.ones_like(action, dtype=torch.bool),
        logp_old=logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1),
        score=case.tensor("score"),
        group=case.tensor("group").long(),
    )

    def evaluate(rows: Any, want: str, read: Any) -> torch.Tensor:
        return read(Evaluation(distribution=logits), rows)

    made = vantage.method("oblr-po", **case.settings).advantage
    case.check("advantage", made(batch, context(evaluate=evaluate))[:, -1])


def test_equal_norms_give_the_usual_baselines_and_equal_rewards_nothing() -> None:
    score = torch.tensor([1.0, 0.0, 0.5])
    assert weighted_baseline(score, torch.full((3,), 7.0), GROUP, False).tolist() == pytest.approx([0.5] * 3)
    assert weighted_baseline(score, torch.full((3,), 7.0), GROUP).tolist() == pytest.approx([0.25, 0.75, 0.5])
    assert weighted_baseline(torch.ones(3), torch.tensor([0.1, 5.0, 2.0]), GROUP).tolist() == pytest.approx([1.0] * 3)
    # Weights of the others all 0: their plain mean. Alone: 0.
    assert float(weighted_baseline(score, torch.tensor([3.0, 0.0, 0.0]), GROUP)[0]) == pytest.approx(0.25)
    assert float(weighted_baseline(score[:1], torch.ones(1), GROUP[:1])[0]) == 0


def test_best_baseline_minimises_the_variance_exactly() -> None:
    pi = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    reward = torch.tensor([1.0, 0.3, -2.0], dtype=torch.float64)
    score = torch.eye(3, dtype=torch.float64) - pi
    norm = score.square().sum(1)

    def variance(b: float) -> float:
        samples = (reward - b).unsqueeze(1) * score
        mean = (pi.unsqueeze(1) * samples).sum(0)
        return float((pi * (samples - mean).square().sum(1)).sum())

    best = float((pi * norm * reward).sum() / (pi * norm).sum())
    mean = float((pi * reward).sum())
    assert variance(best) < variance(mean)
    for step in (-0.1, 0.1):
        # A parabola: E|S|^2 (b - b*)^2 above its least value.
        assert variance(best + step) - variance(best) == pytest.approx(0.01 * float((pi * norm).sum()))


def test_leave_one_out_keeps_the_expectation_of_the_gradient() -> None:
    pi = torch.tensor([0.3, 0.7], dtype=torch.float64)
    reward = torch.tensor([1.0, -0.5], dtype=torch.float64)
    score = torch.eye(2, dtype=torch.float64) - pi
    norm = score.square().sum(1)
    found = torch.zeros(2, dtype=torch.float64)
    for arms in itertools.product(range(2), repeat=3):
        index = torch.tensor(arms)
        baseline = weighted_baseline(reward[index], norm[index], GROUP)
        gradient = ((reward[index] - baseline).unsqueeze(1) * score[index]).mean(0)
        found += pi[index].prod() * gradient
    torch.testing.assert_close(found, ((pi * reward).unsqueeze(1) * score).sum(0), rtol=1e-6, atol=1e-7)


def test_norms_are_those_of_the_gradient_in_the_logits() -> None:
    policy = ToyPolicy(dtype=torch.float64)
    batch = toy_batch(4, 1)
    logits, _ = policy.logits(batch.prompt, batch.steps)
    leaf = logits.detach().requires_grad_()
    logp = leaf.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    batch = batch.replace(logp_old=logp.detach())
    trained = trainer(vantage.method("oblr-po"), 1)
    trained.context.policy = policy
    found = NormWeighted().squared_norms(batch, trained.context)
    for row in range(4):
        (gradient,) = torch.autograd.grad((logp[row] * batch.mask[row]).sum(), leaf, retain_graph=True)
        assert float(found[row]) == pytest.approx(float(gradient.square().sum()), rel=1e-5)


def test_norms_are_taken_of_as_many_rows_as_the_update_differentiates() -> None:
    sizes: list[int] = []

    class Watched(ToyPolicy):
        def evaluate(self, batch: Any, want: frozenset[str]) -> Any:
            sizes.append(len(batch))
            return super().evaluate(batch, want)

    def norms(micro: int | None) -> torch.Tensor:
        trained = trainer(vantage.method("oblr-po", micro_batch=micro), 1)
        trained.context.policy = Watched()
        sizes.clear()
        return NormWeighted().squared_norms(toy_batch(12, 3, dtype=torch.float32), trained.context)

    whole = norms(None)
    assert sizes == [12]
    torch.testing.assert_close(norms(5), whole)
    assert sizes == [5, 5, 2]


def prepared(update: SignalToNoise, **fields: Any) -> tuple[Any, ToyPolicy]:
    policy = ToyPolicy(dtype=torch.float64)
    method = vantage.method("oblr-po").replace(update=update)
    where = context(method=method, policy=policy, step=0, total_steps=10, **fields)
    update.prepare(where)
    return where, policy


def gradients(policy: ToyPolicy) -> torch.Tensor:
    return torch.cat(
        [p.grad.reshape(-1) if p.grad is not None else torch.zeros(p.numel()) for p in policy.parameters()]
    )


def test_parts_add_up_to_the_gradient_and_their_spread_is_the_noise() -> None:
    batch = toy_batch(12, 4).replace(group=torch.arange(12) // 3)
    update = SignalToNoise(optimizer=SGD(0.1), pieces=4, floor=0.0)
    where, policy = prepared(update)
    update.differentiate(batch, where)
    mine = gradients(policy)
    parts = []
    for group in range(4):
        for p in policy.parameters():
            p.grad = None
        backward(batch.select(batch.group == group), where, None)
        parts.append(gradients(policy))
    for p in policy.parameters():
        p.grad = None
    backward(batch, where, None)
    torch.testing.assert_close(mine, gradients(policy), rtol=1e-6, atol=1e-9)
    each = torch.stack(parts)
    noise = float((each - each.mean(0)).square().sum()) / (4 * 3)
    signal = max(float(each.mean(0).square().sum()) - noise, 0.0)
    metrics = where.metrics.collect()
    assert metrics["gradient/noise"] == pytest.approx(noise, rel=1e-4)
    assert metrics["gradient/signal"] == pytest.approx(signal, rel=1e-3, abs=1e-9)
    assert metrics["lr/signal_to_noise"] == pytest.approx(signal / (signal + noise), rel=1e-3, abs=1e-6)


def test_rate_at_no_noise_at_pure_noise_and_the_running_means() -> None:
    update = SignalToNoise(optimizer=SGD(0.1), pieces=2, floor=0.05, decay=0.9)
    where, _ = prepared(update)
    rates = []
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    for square, squares in ((one, one), (zero, one), (zero, one)):
        update._scale(square, squares, 2, where)
        rates.append(update._memory["optimizer"].param_groups[0]["lr"])
    # s = 1, 0.9, 0.81 and v = 0, 0.1, 0.19
    assert rates == pytest.approx([0.1, 0.1 * 0.9, 0.1 * 0.81])
    only_noise = SignalToNoise(optimizer=SGD(0.1), pieces=2)
    where, _ = prepared(only_noise)
    only_noise._scale(zero, one, 2, where)
    assert only_noise._memory["optimizer"].param_groups[0]["lr"] == pytest.approx(0.1 * 0.05)
    still = SignalToNoise(optimizer=SGD(0.1), pieces=2)
    where, _ = prepared(still)
    still._scale(zero, zero, 2, where)
    assert still._memory["optimizer"].param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_part_of_one_group_measures_nothing_and_has_the_rate_of_the_means() -> None:
    update = SignalToNoise(optimizer=SGD(0.1), pieces=4)
    where, _ = prepared(update)
    alone = toy_batch(6, 1)
    optimizer = update._memory["optimizer"]

    def rate() -> float:
        optimizer.param_groups[0]["lr"] = 0.1  # as an update leaves it at its beginning
        update.differentiate(alone, where)
        return float(optimizer.param_groups[0]["lr"])

    assert rate() == 0.1
    update._scale(torch.tensor(0.6), torch.tensor(1.0), 2, where)
    # noise 0.4, signal 0.2
    assert rate() == pytest.approx(0.1 / 3)
    assert where.metrics.collect()["gradient/unmeasured"] == 1


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="pieces=1"):
        vantage.method("oblr-po", pieces=1)
    with pytest.raises(UserError, match=r"decay=1\.0"):
        vantage.method("oblr-po", decay=1.0)
    for floor in (-0.1, 1.5):
        with pytest.raises(UserError, match=f"floor={floor}"):
            vantage.method("oblr-po", floor=floor)


def test_it_learns_and_resumes_with_its_averages(tmp_path) -> None:
    method = vantage.method("oblr-po", prompts=6, group_size=16, lr=0.4)
    assert isinstance(method.objective, PolicyGradient)
    assert gain(method, 60) > 0.3
    assert_resumes(tmp_path, method)
