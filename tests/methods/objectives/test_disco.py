"""DisCO: the numbers of its card."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vantage
from tests.core.toy import ToyPolicy, toy_batch
from tests.harness import context, loss_of, random_batch
from tests.methods.toys import gain, trainer
from tests.reference import Case, cases
from vantage.core import Evaluation, Trajectories, UserError
from vantage.core.loss import backward
from vantage.methods.objectives.disco import Discriminative, SquaredHinge

POS, NEG = [-1.0, -2.0], [-1.5, -0.5]


def question(scores: list[float], right: list[int], old: list[float] | None = None) -> Trajectories:
    """Rows of one token, whose log-probability is their score."""
    count = len(scores)
    return Trajectories(
        {
            "mask": torch.ones(count, 1, dtype=torch.bool),
            "logp_old": torch.tensor(old or scores, dtype=torch.float64).unsqueeze(1),
            "score": torch.tensor(right, dtype=torch.float64),
            "group": torch.zeros(count, dtype=torch.int64),
        }
    )


def objective(part: Discriminative, batch: Trajectories, logp: Tensor) -> Tensor:
    return -part(Evaluation(logp=logp), batch, context())


@cases("disco", "loss")
def test_the_loss_is_the_authors(case: Case) -> None:
    method = vantage.method("disco", **case.settings)
    columns = {name: case.tensor(name) for name in ("mask", "score", "logp_old")}
    batch = random_batch(*case.tensor("mask").shape).replace(**columns, group=case.tensor("group").long())
    logp = case.tensor("logp").requires_grad_()
    loss = loss_of(method, batch, logp=logp)
    loss.backward()
    case.check("grad", logp.grad)
    if case.settings["basic"]:
        # The soft maximum's value is a constant there.
        case.check("loss", loss)


@pytest.mark.parametrize(
    ("tau", "basic", "value"), [(1.0, False, -0.620115), (1.0, True, -0.5), (10.0, False, -0.512495)]
)
def test_worked_question(tau: float, basic: bool, value: float) -> None:
    batch = question(POS + NEG, [1, 1, 0, 0])
    logp = batch.logp_old.clone().requires_grad_()
    found = objective(Discriminative(tau=tau, basic=basic), batch, logp)
    assert float(found.detach()) == pytest.approx(value, abs=1e-6)
    found.sum().backward()
    gradient = logp.grad[:, 0]
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-12)
    assert gradient[:2].tolist() == pytest.approx([0.5, 0.5])
    if tau == 1.0 and not basic:
        assert gradient[2:].tolist() == pytest.approx([-0.268941, -0.731059], abs=1e-6)


def test_limits_of_the_temperature_and_a_shift() -> None:
    batch = question(POS + NEG, [1, 1, 0, 0])
    hot = objective(Discriminative(tau=1e6), batch, batch.logp_old)
    assert float(hot) == pytest.approx(-0.5, abs=1e-5)
    cold = objective(Discriminative(tau=1e-3), batch, batch.logp_old)
    assert float(cold) == pytest.approx(-1.5 - -0.5, abs=1e-2)
    shifted = objective(Discriminative(tau=1.0), batch, batch.logp_old + 40)
    assert float(shifted) == pytest.approx(-0.620115, abs=1e-6)


def test_questions_of_one_kind_count_and_teach_nothing() -> None:
    batch = question(POS + NEG + POS + NEG, [1, 1, 0, 0, 1, 1, 1, 1]).replace(group=torch.arange(8) // 4)
    method = vantage.method("disco", tau=1.0, beta=0.0)
    logp = batch.logp_old.clone().requires_grad_()
    loss = loss_of(method, batch, logp=logp)
    assert float(loss.detach()) == pytest.approx(0.620115 / 2, abs=1e-6)
    loss.backward()
    assert logp.grad[4:].abs().max() == 0
    none = question(NEG, [0, 0])
    logp = none.logp_old.clone().requires_grad_()
    loss_of(vantage.method("disco"), none, logp=logp).backward()
    assert logp.grad.abs().max() == 0


@pytest.mark.parametrize("right", [1, 4])
def test_grpo_is_the_basic_form_times_the_root_of_p_and_1_minus_p(right: int) -> None:
    generator = torch.Generator().manual_seed(right)
    labels = torch.tensor([1.0] * right + [0.0] * (8 - right), dtype=torch.float64)
    old = -torch.rand(8, generator=generator, dtype=torch.float64) - 0.1
    logp = old + 0.05 * torch.randn(8, generator=generator, dtype=torch.float64)
    batch = question(old.tolist(), labels.int().tolist())
    ratio = (logp - old).exp()
    standard = (labels - labels.mean()) / labels.std(correction=0)
    surrogate = (standard * ratio).mean()
    p = right / 8
    basic = objective(Discriminative("ratio", basic=True), batch, logp.unsqueeze(1))
    assert float(surrogate) == pytest.approx((p * (1 - p)) ** 0.5 * float(basic), rel=1e-6)
    assert (p * (1 - p)) ** 0.5 == pytest.approx({1: 0.330719, 4: 0.5}[right], abs=1e-6)


def test_both_scores_have_the_same_gradient_at_the_old_policy_for_the_basic_form_only() -> None:
    batch = question(POS + NEG, [1, 1, 0, 0])

    def gradient(kind: str, basic: bool) -> list[float]:
        logp = batch.logp_old.clone().requires_grad_()
        objective(Discriminative(kind, 1.0, basic), batch, logp).sum().backward()
        return logp.grad[:, 0].tolist()

    assert gradient("logp", True) == pytest.approx(gradient("ratio", True))
    assert gradient("ratio", False)[2:] == pytest.approx([-0.5, -0.5])
    assert gradient("logp", False)[2:] == pytest.approx([-0.268941, -0.731059], abs=1e-6)


def test_sequence_scores_are_means_over_tokens() -> None:
    batch = toy_batch(4, 1)
    logp = torch.where(batch.mask, batch.logp_old + 0.1, float("nan"))
    part = Discriminative(basic=True)
    batch = batch.replace(score=torch.tensor([1.0, 0.0, 0.0, 1.0]))
    means = torch.where(batch.mask, logp, 0.0).sum(1) / batch.length
    expected = means[[0, 3]].mean() - means[[1, 2]].mean()
    assert float(objective(part, batch, logp)) == pytest.approx(float(expected))


def test_constraint_is_free_below_delta_and_quadratic_above() -> None:
    part = SquaredHinge(1e-4, 1e3)

    def term(kl: float) -> tuple[float, float]:
        batch = question([0.0] * 4, [1] * 4)
        logp = torch.full((4, 1), -kl, dtype=torch.float64, requires_grad=True)
        value = part(Evaluation(logp=logp), batch, context())
        value.backward()
        return float(value.detach()), float(logp.grad.sum())

    assert term(5e-5) == (0.0, 0.0)
    value, gradient = term(2e-4)
    assert value == pytest.approx(0.1 * 2e-4)
    # d/d logp of (beta / 2)(kl - delta)^2, the kl falling by one as logp rises by one: the coefficient 0.1.
    assert gradient == pytest.approx(-0.1)


def flat(method: vantage.Method, micro: int | None) -> Tensor:
    policy = ToyPolicy(dtype=torch.float64)
    where: Any = context(method=method, policy=policy)
    backward(toy_batch(12, 3).replace(score=(torch.arange(12) % 2).double()), where, micro)
    return torch.cat([p.grad.reshape(-1) for p in policy.parameters() if p.grad is not None])


def test_gradient_does_not_depend_on_micro_batches() -> None:
    method = vantage.method("disco", tau=0.5, beta=3.0, delta=0.01)
    whole = flat(method, None)
    assert whole.abs().max() > 1e-3
    for micro in (1, 5):
        torch.testing.assert_close(flat(method, micro), whole)
    # Without the constraint, groups are differentiated one by one.
    alone = method.replace(regularizers=())
    torch.testing.assert_close(flat(alone, 4), flat(alone, None))


def test_minibatches_keep_questions_whole_although_the_constraint_joins_the_batch() -> None:
    trained = trainer(vantage.method("disco", prompts=6, group_size=4, temperature=1.0), 1)
    seen: list[Trajectories] = []
    part = trained.context.method.objective

    class Watch:
        wants, unit = frozenset({"logp"}), "group"

        def __call__(self, evaluation: Any, batch: Trajectories, where: Any) -> Tensor:
            seen.append(batch)
            return part(evaluation, batch, where)

    trained.context.method = trained.context.method.replace(objective=Watch())
    trained.step()
    assert len(seen) == 4
    for batch in seen:
        assert (torch.unique(batch.group, return_counts=True)[1] == 4).all()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="kind='prob'"):
        vantage.method("disco", kind="prob")
    with pytest.raises(UserError, match="tau=0"):
        vantage.method("disco", tau=0.0)
    with pytest.raises(UserError, match=r"beta=-1\.0"):
        vantage.method("disco", beta=-1.0)
    with pytest.raises(UserError, match=r"delta=-0\.1"):
        vantage.method("disco", delta=-0.1)
    assert vantage.method("disco", kind="ratio").objective.tau == 1.0


def toy(kind: str, **settings: Any) -> vantage.Method:
    given = {"prompts": 6, "group_size": 16, "temperature": 1.0, "right_at": 0.5, "delta": 1e-2, "beta": 1e2}
    return vantage.method("disco", kind=kind, **{**given, **settings})


@pytest.mark.parametrize("kind", ["logp", "ratio"])
def test_it_learns(kind: str) -> None:
    assert gain(toy(kind, lr=4e-2), 30) > 0.2


@pytest.mark.parametrize("kind", ["logp", "ratio"])
def test_the_divergence_stays_near_delta_where_nothing_else_holds_it(kind: str) -> None:
    def largest(beta: float) -> float:
        # At a high rate and over several passes; one pass hardly leaves the old policy, and the constraint is idle.
        history = trainer(toy(kind, lr=5e-2, beta=beta).adapt("update", epochs=4), 8).run().history
        return max(line["constraint/kl"] for line in history[1:])

    assert largest(1e2) < 4e-2
    assert largest(0.0) > 7e-2
