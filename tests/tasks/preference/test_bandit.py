"""Arms: pairs follow the rewards, draws follow the policy, evaluations are exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vantage
from tests.harness import context
from vantage.core import UserError


def where(seed: int = 0) -> Any:
    return context().__class__(record=lambda *a: None, generator=torch.Generator().manual_seed(seed))


def test_labels_follow_bradley_and_terry() -> None:
    task = vantage.task("preference:arms=3,contexts=1,pairs=60000")
    chosen, rejected = task.pairs.unbind(1)
    assert (chosen != rejected).all()
    for one in range(3):
        for other in range(one):
            wins = ((chosen == one) & (rejected == other)).sum()
            losses = ((chosen == other) & (rejected == one)).sum()
            share = float(wins / (wins + losses))
            gap = float(task.rewards[0, one] - task.rewards[0, other])
            assert share == pytest.approx(1 / (1 + 2.718281828**-gap), abs=0.015)


def test_draws_follow_the_policy() -> None:
    task = vantage.task("preference:arms=4,contexts=2,pairs=10")
    policy = task.make_policy()
    with torch.no_grad():
        policy.weight.copy_(torch.randn(2, 4, generator=torch.Generator().manual_seed(1)))
    batch = task.make_engine(policy).sample(task.prompts(torch.tensor([0, 1])), 20000, where())
    for place in range(2):
        share = torch.bincount(batch.action[batch.observation[:, 0] == place, 0], minlength=4) / 20000
        torch.testing.assert_close(share, policy.logits()[place].softmax(-1).detach(), atol=0.015, rtol=0)
    judged = policy.evaluate(batch, frozenset({"logp"}))
    torch.testing.assert_close(judged.logp.detach(), batch.logp_old)


def test_evaluation_is_exact() -> None:
    task = vantage.task("preference:arms=5,contexts=3,pairs=10")
    policy = task.make_policy()
    judged = task.evaluate(policy, samples=1, seed=0)
    assert judged["reward"] == pytest.approx(float(task.rewards.mean()), abs=1e-6)
    assert judged["kl"] == pytest.approx(0, abs=1e-6)
    assert judged["win"] == pytest.approx(0.5)
    with torch.no_grad():
        policy.weight.copy_(1e3 * task.rewards)
    judged = task.evaluate(policy, samples=1, seed=0)
    assert judged["regret"] == pytest.approx(0, abs=1e-6)


def test_win_rate_in_a_group_is_the_mean_over_the_others() -> None:
    task = vantage.task("game:arms=6,games=2")
    policy = task.make_policy()
    batch = task.make_engine(policy).sample(task.prompts(torch.arange(4)), 5, where())
    win = task.score(batch, where())["win"].view(4, 5)
    for row in range(4):
        arms = batch.action.view(4, 5)[row]
        table = task.matrix[row % 2][arms][:, arms]
        others = (table.sum(1) - table.diagonal()) / 4
        torch.testing.assert_close(win[row], others)
    assert float(win.mean()) == pytest.approx(0.5)


def test_the_trap_looks_best_by_its_features_and_is_the_worst() -> None:
    task = vantage.task("preference:arms=10,contexts=4,features=6,covered=5,trap=2,pairs=100")
    assert int(task.pairs.max()) < 5
    best = task.rewards[:, :5].argmax(-1)
    torch.testing.assert_close(task.features[:, -1], 2 * task.features[torch.arange(4), best])
    assert (task.rewards.argmin(-1) == 9).all()


def test_saved_and_loaded(tmp_path: Path) -> None:
    run = vantage.train(
        "dpo", "preference:arms=4,contexts=2,pairs=50", steps=3, settings={"lr": 0.1}, out=tmp_path / "run"
    )
    judged = vantage.evaluate(tmp_path / "run")
    assert judged["reward"] == pytest.approx(run.outcome.history[-1]["eval/reward"])
    with pytest.raises(UserError, match="other arms"):
        vantage.task("preference:arms=5").make_policy(model=tmp_path / "run" / "model")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("preference:arms=1", "arms=1"),
        ("preference:covered=1", "covered=1"),
        ("preference:trap=1", "trap needs features"),
        ("preference:armss=3", "arms"),
        ("game:pairs=0", "pairs=0"),
    ],
)
def test_what_cannot_be_is_refused(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        vantage.task(spec)
