"""Nash-MP on the road: its gradient is the proximal step's, its slow copy is kept, and it finds a known equilibrium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vantage
from tests.harness import context, loss_of
from tests.methods.toys import assert_resumes, gain, trainer
from tests.reference import Case, cases
from vantage.core import Evaluation, Trajectories, UserError
from vantage.methods import registry
from vantage.methods.preference.nash_mp import ProximalDuel
from vantage.tasks.preference import game
from vantage.tasks.preference.bandit import ArmTask

ROCK_PAPER_SCISSORS = torch.tensor([[[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]])


def gradient(
    part: ProximalDuel, logits: torch.Tensor, ref: torch.Tensor, copy: torch.Tensor, win: torch.Tensor
) -> torch.Tensor:
    """Exact expectation of the loss's gradient over the policy's arms, each of which is a prompt's only answer."""
    arms = len(logits)
    batch = Trajectories(
        {
            "mask": torch.ones(arms, 1, dtype=torch.bool),
            "group": torch.arange(arms),
            "win": win,
            "logp_ref": ref.unsqueeze(1),
            "logp_under_target": copy.unsqueeze(1),
        }
    )
    loss = part(Evaluation(logp=logits.log_softmax(-1).unsqueeze(1)), batch, context())
    return torch.autograd.grad((logits.detach().softmax(-1) * loss).sum(), logits)[0]


def test_gradient_vanishes_at_the_proximal_step_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    win, ref, copy = (torch.rand(5, generator=generator, dtype=torch.float64) for _ in range(3))
    ref, copy = ref.log_softmax(-1), copy.log_softmax(-1)
    part = ProximalDuel(beta=0.3, c=0.5)
    step = game.respond(win, ref, copy, 0.3, 0.5)
    found = gradient(part, step.clone().requires_grad_(), ref, copy, win)
    torch.testing.assert_close(found, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    assert gradient(part, copy.clone().requires_grad_(), ref, copy, win).abs().max() > 1e-3


def test_gradient_is_that_of_the_regularised_win_rate() -> None:
    generator = torch.Generator().manual_seed(1)
    win, ref, copy, logits = (torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(4))
    ref, copy = ref.log_softmax(-1), copy.log_softmax(-1)
    logits.requires_grad_()
    found = gradient(ProximalDuel(0.2, 0.7), logits, ref, copy, win)
    logp = logits.log_softmax(-1)
    aim = -(logp.exp() * win).sum() + 0.2 * game.divergence(logp, ref) + 0.7 * game.divergence(logp, copy)
    torch.testing.assert_close(found, torch.autograd.grad(aim, logits)[0])


def rock(seed: int = 0) -> ArmTask:
    return ArmTask("rock", ROCK_PAPER_SCISSORS, None, None, pairs=10, covered=3, beta=0.1, seed=seed)


def test_it_finds_the_equilibrium_of_rock_paper_scissors_from_a_corner() -> None:
    task = rock()
    policy = task.make_policy()
    with torch.no_grad():
        policy.weight.copy_(torch.tensor([[2.0, 0.0, 0.0]]))
    reference = policy.logits().detach().double().log_softmax(-1)
    run = vantage.train(
        "nash-mp", task, steps=300, policy=policy, settings={"lr": 2e-2, "beta": 0.1, "prompts": 256, "kappa": 0.1}
    )
    assert run.outcome.step == 300
    target = game.equilibrium(ROCK_PAPER_SCISSORS, reference, 0.1)
    found = policy.logits().detach().double().log_softmax(-1)
    assert float(game.exploitability(ROCK_PAPER_SCISSORS.double(), reference, reference, 0.1)) > 0.1
    assert float(game.exploitability(ROCK_PAPER_SCISSORS.double(), found, reference, 0.1)) < 0.01
    assert float(game.divergence(target, found)) < 0.02


def test_scores_stand_in_for_a_judge_and_it_learns() -> None:
    # The toy task has no pair judge: sigmoid of the difference of scores.
    assert gain(vantage.method("nash-mp", prompts=24, lr=3e-2, beta=0.01, c=0.1, kappa=0.3), 80) > 0.1


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    assert_resumes(tmp_path, vantage.method("nash-mp", prompts=4, lr=1e-2))


def runner(folder: Path) -> vantage.core.Trainer:
    task = vantage.task("game:arms=4,games=2")
    policy = task.make_policy()
    method = vantage.method("nash-mp", lr=1e-1, kappa=0.25, prompts=8)
    return vantage.core.Trainer(
        method, task, policy, task.make_engine(policy), vantage.core.Schedule(3, save_every=1), folder=folder
    )


def test_the_slow_copy_lags_and_survives_a_stop(tmp_path: Path) -> None:
    first = runner(tmp_path)
    weights: list[torch.Tensor] = []
    copies: list[torch.Tensor] = []
    copy: Any = first.context.named("target")

    def watch(report: Any) -> None:
        weights.append(first.context.policy.weight.detach().clone())
        copies.append(copy.weight.detach().clone())

    first.listeners.append(watch)
    first.run()
    for before, after, live in zip(copies, copies[1:], weights[1:], strict=False):
        torch.testing.assert_close(after, 0.75 * before + 0.25 * live)
    again = runner(tmp_path)
    again.restore(lambda line: None)
    kept: Any = again.context.named("target")
    torch.testing.assert_close(kept.weight.detach(), copies[-1], rtol=0, atol=0)


def test_the_opponent_is_the_copy_and_the_policy_is_put_back() -> None:
    task = rock()
    policy = task.make_policy()
    method = vantage.method("nash-mp", prompts=300, group_size=1)
    trainer = vantage.core.Trainer(method, task, policy, task.make_engine(policy), vantage.core.Schedule(1))
    copy: Any = trainer.context.named("target")
    with torch.no_grad():
        copy.weight.copy_(torch.tensor([[50.0, 0.0, 0.0]]))
        policy.weight.copy_(torch.tensor([[0.0, 50.0, 0.0]]))
    batch = trainer.context.method.rollout(trainer.context)
    # Paper, always, against rock, always.
    assert (batch.action == 1).all()
    assert (batch.win == 1).all()
    assert policy.weight[0].tolist() == [0.0, 50.0, 0.0]


def test_metrics_are_those_of_the_policys_own_answers() -> None:
    # Without a pair judge the task scores both sides; the slow copy is made to be right nearly always.
    run = trainer(vantage.method("nash-mp", prompts=24), 1)
    copy: Any = run.context.named("target")
    with torch.no_grad():
        run.context.policy.head.zero_()
        for prompt in range(6):
            copy.embed[prompt] = 0.0
            copy.embed[prompt, :, prompt % 5] = 9.0
        copy.head.zero_()
        copy.head[:5, :5] = 9.0 * torch.eye(5)
    metrics, _ = run.step()
    assert metrics["opponent/score"] == metrics["opponent/reward/right"] > 0.7
    assert metrics["score"] == metrics["reward/right"] < 0.4


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"beta": -1.0}, {"c": -1.0}, {"kappa": 0.0}, {"prompts": 0}, {"temperature": 0.0}):
        with pytest.raises(UserError, match=str(next(iter(settings.values())))):
            vantage.method("nash-mp", **settings)


@cases("nash-mp", "loss")
def test_without_the_slow_copys_weight_it_is_trls_nash_md_on_answers_of_one_token(case: Case) -> None:
    """The weight carries no gradient in either; theirs has no mean of a prompt's other answers, so each is alone here."""
    logp = case.tensor("logp").requires_grad_()
    columns = {"mask": torch.ones(4, 1, dtype=torch.bool), "length": torch.ones(4, dtype=torch.int64)}
    batch = Trajectories(
        {
            **columns,
            "logp_ref": case.tensor("logp_ref"),
            "logp_under_target": torch.zeros(4, 1, dtype=torch.float64),
            "win": case.tensor("win"),
            "group": torch.arange(4),
        }
    )
    loss = loss_of(registry.page("nash-mp").make({"beta": case.settings["beta"], "c": 0.0}), batch, logp=logp)
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, logp)[0])
