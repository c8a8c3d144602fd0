"""BGPO and the joint objective that it bounds: the numbers of its card, gradients, and memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vantage
from tests.harness import context
from vantage.core import Evaluation, Method, Schedule, Trainer, Trajectories, UserError
from vantage.core.checkpoint import load_tensors
from vantage.core.loss import backward
from vantage.functions.divergences import divergence
from vantage.methods.generative.bgpo_boundary import LinearKL, ReferenceGap, tangent
from vantage.objectives.elbo import JointBound, LinearBound
from vantage.tasks.generative.masked import task_from_spec

OPTIONS = {"width": 16, "layers": 1, "heads": 2, "evaluated": 8}
SMALL = {"prompts": 3, "group_size": 4, "lr": 1e-3}


def bounds(difference: list[float], advantage: float) -> tuple[float, float]:
    """(joint objective J, its bound B) of one answer."""
    d = torch.tensor(difference, dtype=torch.float64).unsqueeze(1)
    batch = Trajectories(
        {
            "mask": torch.ones_like(d, dtype=torch.bool),
            "advantage": torch.full_like(d, advantage),
            "logp_old": torch.zeros_like(d),
            "answer": torch.zeros(len(d), dtype=torch.int64),
        }
    )
    found = [part(Evaluation(logp=d), batch, context()) for part in (JointBound(), LinearBound())]
    return -float(found[0].mean()), -float(found[1].mean())


@pytest.mark.parametrize(("advantage", "joint", "bound"), [(1.0, 1.05127, 1.05), (-1.0, -1.05127, -1.06312)])
def test_worked_bounds(advantage: float, joint: float, bound: float) -> None:
    assert bounds([0.2, -0.1], advantage) == pytest.approx((joint, bound), abs=1e-5)


def test_it_is_a_lower_bound_and_where_it_is_tight() -> None:
    generator = torch.Generator().manual_seed(0)
    for row in torch.randn(50, 5, generator=generator).tolist():
        for advantage in (1.7, -0.6):
            joint, bound = bounds(row, advantage)
            assert bound <= joint + 1e-12
    joint, bound = bounds([0.3], -2.0)
    assert bound == pytest.approx(joint)
    joint, bound = bounds([0.4] * 3, -1.0)
    assert bound == pytest.approx(joint)
    joint, bound = bounds([0.4] * 3, 2.0)
    gap = 2.0 * (torch.tensor(0.4, dtype=torch.float64).exp() - 1.4)
    assert joint - bound == pytest.approx(float(gap))


def test_options_of_the_bound() -> None:
    d = torch.tensor([[0.3, 0.5], [-0.2, -1.0]], dtype=torch.float64)
    batch = Trajectories(
        {
            "mask": torch.ones(2, 2, dtype=torch.bool),
            "advantage": torch.full((2, 2), -1.0),
            "logp_old": torch.zeros(2, 2),
        }
    )
    found = LinearBound(by_length=True)(Evaluation(logp=d), batch, context())
    assert found.tolist() == pytest.approx(torch.tensor([0.4, -0.6]).exp().tolist())
    found = LinearBound(limit=0.5)(Evaluation(logp=d), batch, context())
    assert found.tolist() == pytest.approx(torch.tensor([0.5, -0.5]).exp().tolist())
    with pytest.raises(UserError, match="limit=0"):
        LinearBound(limit=0.0)


def trainer(method: Method, steps: int = 4, folder: Path | None = None) -> Trainer:
    torch.manual_seed(0)
    task = task_from_spec("masked:addition:digits=1", OPTIONS)
    policy = task.make_policy(seed=1).double()
    schedule = Schedule(steps, save_every=1, evaluate_samples=1, keep=10)
    return Trainer(method, task, policy, task.make_engine(policy), schedule, seed=3, folder=folder)


def prepared(name: str, samples: int, **settings: Any) -> tuple[Trainer, Trajectories]:
    """A batch of sampled answers, some called right, expanded by its masks."""
    where = trainer(vantage.method(name, **SMALL, samples=samples, **settings))
    run, method = where.context, where.context.method
    batch = method.rollout(run)
    generator = torch.Generator().manual_seed(5)
    batch = batch.replace(score=torch.rand(len(batch), generator=generator))
    batch = batch.replace(advantage=method.advantage(batch, run))
    return where, method.selection[0](batch, run)


def gradient(where: Trainer, batch: Trajectories, micro: int | None, objective: Any = None) -> Tensor:
    context = where.context
    if objective is not None:
        context.method = context.method.replace(objective=objective)
    for parameter in context.policy.parameters():
        parameter.grad = None
    backward(batch, context, micro)
    return torch.cat([p.grad.flatten() for p in context.policy.parameters() if p.grad is not None])


def test_samples_one_by_one_give_the_gradient_of_all_held_in_memory() -> None:
    where, batch = prepared("bgpo-boundary", 6, minibatches=2)
    # The policy has moved since the batch was drawn, so that both sides of the bound differ from the joint objective.
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in where.context.policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    whole = gradient(where, batch, None)
    assert whole.abs().max() > 1e-3
    for micro in (1, 12, 17):
        torch.testing.assert_close(gradient(where, batch, micro), whole)
    joint = gradient(where, batch, None, JointBound())
    assert not torch.allclose(joint, whole, rtol=1e-3)
    # The joint objective keeps the samples of a prompt's answers together, whatever is asked.
    torch.testing.assert_close(gradient(where, batch, 1, JointBound()), joint)


def test_on_policy_value_and_gradient_are_those_of_the_joint_objective() -> None:
    where, batch = prepared("bgpo-boundary", 5)
    assert "logp_old" not in batch
    bound, joint = gradient(where, batch, None), gradient(where, batch, None, JointBound())
    torch.testing.assert_close(bound, joint)
    policy = where.context.policy
    credit = batch.advantage[:, 0].double()
    plain = -(credit * policy.evaluate(batch, frozenset({"logp"})).logp.sum(-1)).mean()
    found = torch.autograd.grad(plain, list(policy.parameters()))
    torch.testing.assert_close(bound, torch.cat([g.flatten() for g in found]))


def saved(where: Trainer, batch: Trajectories, micro: int | None) -> int:
    """Most bytes of tensors that the graph held at one time."""
    now, most = 0, 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            now += self.size
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            now -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        gradient(where, batch, micro)
    return most


def test_memory_of_the_graph_does_not_grow_with_the_number_of_samples() -> None:
    peaks: dict[str, list[int]] = {"bgpo-boundary": [], "elbo-grpo": []}
    for name, found in peaks.items():
        for samples in (2, 4, 16):
            where, batch = prepared(name, samples)
            found.append(saved(where, batch, where.context.method.update.micro_batch))
    flat, grown = peaks["bgpo-boundary"], peaks["elbo-grpo"]
    assert max(flat) <= 1.05 * min(flat)
    assert grown[2] > 6 * grown[0]


def test_the_variance_of_the_gradient_falls_like_one_over_n() -> None:
    variances = []
    for samples in (1, 4, 16):
        where, _ = prepared("bgpo-boundary", 1)
        run = where.context
        rows = run.method.rollout(run)
        generator = torch.Generator().manual_seed(5)
        rows = rows.replace(score=torch.rand(len(rows), generator=generator))
        rows = rows.replace(advantage=run.method.advantage(rows, run))
        select = vantage.method("bgpo-boundary", samples=samples).selection[0]
        found = torch.stack([gradient(where, select(rows, run), None) for _ in range(40)])
        variances.append(float(found.var(0).sum()))
    assert variances[0] / variances[1] == pytest.approx(4, rel=0.35)
    assert variances[1] / variances[2] == pytest.approx(4, rel=0.35)


def test_off_policy_the_same_masks_serve_both_policies() -> None:
    where, batch = prepared("bgpo-boundary", 3, minibatches=2)
    found = where.context.policy.evaluate(batch, frozenset({"logp"})).logp
    torch.testing.assert_close(found.detach(), batch.logp_old)
    assert batch["answer"].tolist() == [i // 3 for i in range(36)]


@pytest.mark.parametrize("name", ["bgpo-boundary", "elbo-grpo"])
def test_whether_the_old_policy_is_kept_follows_the_update_however_it_was_set(name: str) -> None:
    def kept(**changes: Any) -> bool:
        where = trainer(vantage.method(name, **SMALL, samples=2).adapt("update", **changes))
        batch = where.context.method.rollout(where.context)
        return "logp_old" in where.context.method.selection[0](batch, where.context)

    assert not kept()
    assert kept(minibatches=2)
    assert kept(epochs=2)
    assert kept(epochs=lambda context: 2)
    where = trainer(vantage.method(name, **SMALL, samples=2, minibatches=2).adapt("update", minibatches=1))
    batch = where.context.method.rollout(where.context)
    assert "logp_old" not in where.context.method.selection[0](batch, where.context)


def test_a_divergence_and_its_tangent() -> None:
    gap = torch.tensor([0.05, -0.5], dtype=torch.float64)
    for estimator, value, slope in (
        ("k1", [0.05, -0.5], [1.0, 1.0]),
        ("k2", [0.00125, 0.125], [0.05, -0.5]),
        ("k3", [0.0012294, 0.1487213], [0.0487706, -0.6487213]),
    ):
        found = tangent(gap, estimator)
        assert found[0].tolist() == pytest.approx(value, abs=1e-7)
        assert found[1].tolist() == pytest.approx(slope, abs=1e-7)
        assert not any(part.requires_grad for part in found)


def test_the_kl_of_an_answer_by_hand() -> None:
    # One answer, two samples with e_j - e_ref of 0.3 and -0.2 at the old policy: u = 0.05. The policy has moved by d = (0.1, -0.3).
    d = torch.tensor([[0.1], [-0.3]], dtype=torch.float64, requires_grad=True)
    batch = Trajectories(
        {
            "mask": torch.ones(2, 1, dtype=torch.bool),
            "logp_old": torch.zeros(2, 1, dtype=torch.float64),
            "reference_gap": torch.full((2,), 0.05, dtype=torch.float64),
        }
    )
    where = context()
    loss = LinearKL(2.0)(Evaluation(logp=d), batch, where)
    assert loss.tolist() == pytest.approx([2 * (0.00125 + 0.05 * 0.1), 2 * (0.00125 - 0.05 * 0.3)])
    # Below K of the gap that the policy has now, 0.05 - 0.1.
    assert float(loss.detach().mean()) <= 2 * 0.05**2 / 2
    (slope,) = torch.autograd.grad(loss.mean(), d)
    assert slope.flatten().tolist() == pytest.approx([0.05, 0.05])
    assert where.metrics.collect()["kl/reference"] == pytest.approx(0.00125)
    twice = batch.replace(mask=torch.ones(2, 2, dtype=torch.bool), logp_old=torch.zeros(2, 2, dtype=torch.float64))
    loss = LinearKL(2.0, by_length=True)(Evaluation(logp=d.expand(2, 2)), twice, where)
    assert loss.tolist() == pytest.approx([2 * (0.025**2 / 2 + 0.025 * 0.1), 2 * (0.025**2 / 2 - 0.025 * 0.3)])


def moved(where: Trainer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in where.context.policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def away(samples: int, **settings: Any) -> tuple[Trainer, Trajectories]:
    """As `prepared`, by a policy that has left its reference."""
    where = trainer(vantage.method("bgpo-boundary", **SMALL, samples=samples, beta=0.5, **settings))
    where.context.freeze("reference")
    moved(where, 2)
    run, method = where.context, where.context.method
    batch = method.rollout(run)
    batch = batch.replace(advantage=torch.zeros(len(batch), batch.steps))
    for part in method.selection:
        batch = part(batch, run)
    return where, batch


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_on_policy_the_kl_is_the_joint_estimate_in_value_and_gradient(estimator: str) -> None:
    where, batch = away(3, estimator=estimator)
    run = where.context
    found = gradient(where, batch, None)  # of the KL alone: no answer has an advantage
    value = run.metrics.collect()["loss/kl"]
    want = frozenset({"logp"})
    gap = run.policy.evaluate(batch, want).logp - run.named("reference").evaluate(batch, want).logp
    # The samples of an answer stand side by side.
    joint = gap.sum(-1).view(-1, 3).mean(-1)
    torch.testing.assert_close(batch["reference_gap"].view(-1, 3)[:, 0], joint.detach(), rtol=1e-5, atol=1e-6)
    loss = 0.5 * divergence(joint, torch.zeros_like(joint), estimator).mean()
    assert joint.detach().abs().min() > 1e-3
    assert value == pytest.approx(float(loss.detach()), rel=1e-4)
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(run.policy.parameters()))])
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_off_policy_the_kl_is_linear_in_each_sample_and_below_the_joint_one() -> None:
    where, batch = away(4, minibatches=2)
    run = where.context
    assert torch.equal(batch["reference_gap"].view(-1, 4), batch["reference_gap"].view(-1, 4)[:, :1].expand(-1, 4))
    moved(where, 7)
    whole = gradient(where, batch, None)
    for micro in (1, 5):
        torch.testing.assert_close(gradient(where, batch, micro), whole)
    run.metrics.collect()
    gradient(where, batch, None)
    gap = run.evaluate(batch) - run.evaluate(batch, "logp", run.named("reference"))
    joint = gap.sum(-1).view(-1, 4).mean(-1)
    assert run.metrics.collect()["loss/kl"] < 0.5 * float(joint.square().mean()) / 2


@pytest.mark.parametrize("samples", [1, 2])
def test_what_the_estimators_give_in_expectation_for_independent_tokens(samples: int) -> None:
    # Two tokens of two symbols that ignore the masks; all answers and all sets of masks, of exact probability.
    logits = torch.tensor([0.4, -1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-0.3, 0.2], dtype=torch.float64)
    sets = [(0.25, (2.0, 0.0)), (0.25, (0.0, 2.0)), (0.5, (1.0, 1.0))]

    def logs(of: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros(2, dtype=torch.float64), of], -1).log_softmax(-1)  # [token, symbol]

    kl = (logs(logits).exp() * (logs(logits) - logs(reference))).sum()
    exact = torch.autograd.grad(kl, logits)[0]
    mean, slopes = 0.0, {"k1": torch.zeros(2, dtype=torch.float64), "k2": torch.zeros(2, dtype=torch.float64)}
    for answer in itertools.product((0, 1), repeat=2):
        place = torch.tensor([0, 1]), torch.tensor(answer)
        chance = float(logs(logits)[place].sum().exp().detach())
        for drawn in itertools.product(sets, repeat=samples):
            weight = torch.tensor([which for _, which in drawn], dtype=torch.float64)
            share = chance * float(torch.tensor([p for p, _ in drawn]).prod())
            e = (weight * logs(logits)[place]).sum(-1, keepdim=True)
            gap = (e.detach() - (weight * logs(reference)[place]).sum(-1, keepdim=True)).mean().expand(samples)
            rows = Trajectories({"mask": torch.ones(samples, 1, dtype=torch.bool), "reference_gap": gap})
            mean += share * float(LinearKL(1.0, "k1")(Evaluation(logp=e), rows, context()).mean().detach())
            for name, total in slopes.items():
                loss = LinearKL(1.0, name)(Evaluation(logp=e), rows, context()).mean()
                total += share * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert mean == pytest.approx(float(kl.detach()))
    assert slopes["k1"].abs().max() < 1e-12
    # H_2 = 1.5: what the covariance of K' and d over the same sets adds falls like 1 / n.
    torch.testing.assert_close(slopes["k2"], exact * (1 + 0.5 / samples))


def test_the_memory_of_the_kl_does_not_grow_either_and_bad_settings_are_refused() -> None:
    peaks = []
    for samples in (2, 16):
        where, batch = away(samples)
        peaks.append(saved(where, batch, where.context.method.update.micro_batch))
    assert peaks[1] <= 1.05 * peaks[0]
    for settings in ({"estimator": "k4"}, {"beta": -0.1}):
        with pytest.raises(UserError, match=str(next(iter(settings.values())))):
            vantage.method("bgpo-boundary", **settings)


def test_without_kl_there_is_no_reference() -> None:
    made = vantage.method("bgpo-boundary")
    assert not made.declared("policies")
    assert made.regularizers == ()
    held = vantage.method("bgpo-boundary", beta=0.01)
    assert held.declared("policies") == {"reference"}
    assert held.selection[1:] == (ReferenceGap(),)


@pytest.mark.parametrize("name", ["bgpo-boundary", "bgpo-boundary with KL", "elbo-grpo", "masked-diffusion"])
def test_a_resumed_run_is_the_run_that_never_stopped(name: str, tmp_path: Path) -> None:
    settings = {"batch": 8} if name == "masked-diffusion" else {**SMALL, "samples": 2, "minibatches": 2}
    name, _, kl = name.partition(" with ")
    method = vantage.method(name, **settings, **({"beta": 0.1} if kl else {}))
    for part in ("whole", "broken"):
        (tmp_path / part).mkdir()
    history = trainer(method, 3, tmp_path / "whole").run().history
    first = trainer(method, 3, tmp_path / "broken")
    first.listeners.append(lambda report: setattr(first, "_interrupted", report.step == 1))
    assert first.run().status == "interrupted"
    again = trainer(method, 3, tmp_path / "broken")
    assert again.restore() == 1
    assert again.run().history == history[2:]
    file = "checkpoints/step-00000003/policy.safetensors"
    one, other = load_tensors(tmp_path / "whole" / file), load_tensors(tmp_path / "broken" / file)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_model_learns_by_imitation_then_by_reward(tmp_path: Path) -> None:
    task, options = "masked:addition:digits=1", {"width": 32, "layers": 2, "heads": 2, "evaluated": 16}
    run = vantage.train(
        "masked-diffusion", task, steps=40, settings={"batch": 32, "lr": 1e-2}, options=options, out=tmp_path / "run"
    )
    assert run.metrics[-1]["loss/policy"] < 0.7 * run.metrics[1]["loss/policy"]
    tuned = vantage.train(
        "bgpo-boundary", task, model=tmp_path / "run" / "model", steps=3, options=options,
        settings={"prompts": 4, "group_size": 4, "samples": 2, "lr": 1e-3},
    )  # fmt: skip
    assert tuned.outcome.step == 3
    # The policy has a one-pass estimate, so that any method of groups trains it.
    other = vantage.train(
        "grpo", task, steps=2, options=options, evaluate_samples=0,
        settings={"prompts": 2, "group_size": 4, "lr": 1e-3, "beta": 0.01},
    )  # fmt: skip
    assert other.outcome.step == 2


def test_a_specification_is_read_and_mistakes_are_named() -> None:
    task = task_from_spec("masked:addition:digits=2", {"per_step": 2})
    policy = task.make_policy()
    assert (policy.prompt_length, policy.length) == (6, 4)
    assert task.make_engine(policy).per_step == 2
    with pytest.raises(UserError, match="name the problem set"):
        task_from_spec("masked")
    with pytest.raises(UserError, match="did you mean addition"):
        task_from_spec("masked:adition")
    with pytest.raises(UserError, match="did you mean width"):
        task_from_spec("masked:addition", {"widht": 3})
