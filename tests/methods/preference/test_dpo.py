"""DPO: its loss is TRL's, its optimum is the closed form, and a resumed run is the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vantage
from tests.harness import context, loss_of, new_logp, random_batch
from tests.methods.preference.peers import trl_dpo_loss
from tests.reference import Case, cases
from vantage.core import Evaluation, Trajectories, UserError
from vantage.core.checkpoint import load_tensors
from vantage.methods import registry

SPEC = "preference:arms=6,contexts=3,pairs=300"


@pytest.mark.peers
@pytest.mark.parametrize(("beta", "kind"), [(0.1, "sigmoid"), (2.0, "sigmoid")])
def test_loss_and_gradient_are_trls(beta: float, kind: str) -> None:
    for seed in range(3):
        batch = random_batch(10, 7, seed, size=2)
        logp = new_logp(batch, seed)
        ours = loss_of(vantage.method("dpo", beta=beta), batch, logp=logp)
        (gradient,) = torch.autograd.grad(ours, logp)
        peer = trl_dpo_loss(logp, batch.logp_ref, batch.mask, beta=beta, kind=kind)
        torch.testing.assert_close(ours, peer, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, torch.autograd.grad(peer, logp)[0], atol=1e-5, rtol=1e-5)


def test_gradient_is_the_closed_form() -> None:
    batch = random_batch(2, 4, size=2)
    logp = new_logp(batch)
    loss_of(vantage.method("dpo", beta=0.7), batch, logp=logp).backward()
    sums = torch.where(batch.mask, logp.detach() - batch.logp_ref, 0.0).sum(-1)
    slope = 0.7 * torch.sigmoid(-0.7 * (sums[0] - sums[1]))
    torch.testing.assert_close(logp.grad, torch.stack([-slope * batch.mask[0], slope * batch.mask[1]]))


def test_probabilities_of_labels_are_recovered_when_labels_are_soft() -> None:
    # Two arms, labels smoothed by s: the optimum of the loss is sigmoid(beta * z) = 1 - s.
    task = vantage.task("preference:arms=2,contexts=1,pairs=64,scale=100")
    policy = task.make_policy()
    vantage.train(
        "dpo", task, steps=200, settings={"lr": 0.3, "beta": 0.5, "smoothing": 0.2, "prompts": 64}, policy=policy
    )
    logits = policy.logits()[0].detach()
    best, worst = task.pairs[0].tolist()
    assert float(logits[best] - logits[worst]) * 0.5 == pytest.approx(torch.logit(torch.tensor(0.8)).item(), abs=1e-3)


def test_it_learns_what_the_pairs_say() -> None:
    run = vantage.train("dpo", SPEC, steps=60, settings={"lr": 5e-2, "beta": 0.1})
    first, last = run.outcome.history[0], run.outcome.history[-1]
    assert last["eval/reward"] > first["eval/reward"] + 0.5
    assert last["pairs/accuracy"] > 0.6


def runner(folder: Path, steps: int = 6) -> vantage.core.Trainer:
    task = vantage.task(SPEC)
    policy = task.make_policy()
    schedule = vantage.core.Schedule(steps, save_every=2, evaluate_samples=1)
    return vantage.core.Trainer(
        vantage.method("dpo", lr=1e-2), task, policy, task.make_engine(policy), schedule, seed=3, folder=folder
    )


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    runner(whole).run()
    first = runner(part)
    first.listeners.append(lambda report: setattr(first, "_interrupted", report.step == 4))
    assert first.run().status == "interrupted"
    again = runner(part)
    assert again.restore() == 4
    again.run()
    assert (part / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    left, right = (load_tensors(each / "checkpoints/step-00000006/policy.safetensors") for each in (whole, part))
    assert all(torch.equal(left[key], right[key]) for key in right)


def test_a_task_without_pairs_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"cartpole.*--data FILE"):
        vantage.train("dpo", "cartpole", steps=1, evaluate_samples=0)


def pairs_of(case: Case) -> Trajectories:
    mask = case.tensor("mask")
    columns = {name: case.tensor(name) for name in ("logp_ref",) if name in case.inputs}
    return Trajectories({"mask": mask, "length": mask.sum(1), "group": torch.arange(len(mask)) // 2, **columns})


@cases("dpo", "loss")
def test_loss_and_gradient_are_the_authors(case: Case) -> None:
    batch, logp = pairs_of(case), case.tensor("logp").requires_grad_()
    made = registry.page("dpo").make({"beta": case.settings["beta"], "smoothing": case.settings["label_smoothing"]})
    loss = loss_of(made, batch, logp=logp)
    case.check("gradient", torch.autograd.grad(loss, logp)[0])
    each = made.objective(Evaluation(logp=logp), batch, context())
    case.check("losses", each[::2])
    case.check("losses", each[1::2])
    torch.testing.assert_close(loss, each[::2].mean())


@cases("dpo", "schedule")
def test_the_warm_up_is_the_authors(case: Case) -> None:
    update = registry.page("dpo").make().update
    case.check("factor", torch.tensor([update.schedule(step, 2500) for step in case.inputs["steps"]]))
    built = update.optimizer.build([torch.nn.Parameter(torch.ones(1))])
    theirs = torch.optim.RMSprop([torch.nn.Parameter(torch.ones(1))], lr=5e-7)
    assert type(built) is type(theirs)
    assert {name: built.defaults[name] for name in theirs.defaults} == theirs.defaults
