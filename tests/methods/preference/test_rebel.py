"""REBEL: the numbers of its card and its closed form."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import ToyPolicy, toy_batch
from tests.harness import context, loss_of, new_logp, random_batch
from tests.methods.toys import assert_resumes, gain
from tests.reference import Case, cases
from vantage.core import Evaluation, Trajectories, UserError
from vantage.core.loss import backward
from vantage.methods import registry
from vantage.methods.preference.rebel import RelativeRewards, Unfinished, Whiten
from vantage.rewards.mixing import Total


def pair(d: tuple[float, float], score: tuple[float, float]) -> tuple[Trajectories, torch.Tensor]:
    logp = torch.tensor([[d[0]], [d[1]]], dtype=torch.float64, requires_grad=True)
    columns = {
        "mask": torch.ones(2, 1, dtype=torch.bool),
        "logp_old": torch.zeros(2, 1, dtype=torch.float64),
        "score": torch.tensor(score, dtype=torch.float64),
        "group": torch.zeros(2, dtype=torch.int64),
    }
    return Trajectories(columns), logp


def test_worked_pair_and_its_mirror_image() -> None:
    for d, score, slope in (((0.3, 0.1), (1.0, 0.5), -0.6), ((0.1, 0.3), (0.5, 1.0), 0.6)):
        batch, logp = pair(d, score)
        loss = loss_of(vantage.method("rebel"), batch, logp=logp)
        assert float(loss.detach()) == pytest.approx(0.09)
        loss.backward()
        assert logp.grad[:, 0].tolist() == pytest.approx([slope, -slope])


def test_what_both_rewards_share_changes_nothing() -> None:
    batch = random_batch(8, size=2)
    logp = new_logp(batch)
    moved = batch.replace(score=batch.score + 3.0 * (batch.group + 1))
    method = vantage.method("rebel")
    torch.testing.assert_close(loss_of(method, batch, logp=logp), loss_of(method, moved, logp=logp))


def test_first_step_is_four_eta_times_the_leave_one_out_gradient() -> None:
    batch = random_batch(8, size=2)
    logp = batch.logp_old.clone().requires_grad_()
    loss_of(vantage.method("rebel", eta=0.5), batch, logp=logp).backward()
    other = batch.logp_old.clone().requires_grad_()
    score = batch.score.view(-1, 2)
    advantage = (score - score.flip(1)).reshape(-1)
    # Mean over pairs of 1/2 sum_i A_i logp_i.
    ((0.5 * advantage * torch.where(batch.mask, other, 0.0).sum(-1)).sum() / 4).backward()
    torch.testing.assert_close(logp.grad, -4 * 0.5 * other.grad)


def test_equal_rewards_pull_the_ratio_back() -> None:
    batch, logp = pair((0.4, 0.0), (1.0, 1.0))
    loss_of(vantage.method("rebel"), batch, logp=logp).backward()
    assert logp.grad[:, 0].tolist() == pytest.approx([0.8, -0.8])


def test_rounds_on_all_pairs_of_a_bandit_are_mirror_descent() -> None:
    generator = torch.Generator().manual_seed(0)
    contexts, arms, eta = 4, 6, 0.7
    rewards = torch.randn(contexts, arms, generator=generator, dtype=torch.float64)
    logits = torch.zeros(contexts, arms, dtype=torch.float64, requires_grad=True)
    one, other = torch.triu_indices(arms, arms, 1)
    place = torch.arange(contexts).repeat_interleave(len(one))
    both = torch.stack([one.repeat(contexts), other.repeat(contexts)], 1).reshape(-1)
    place2 = place.repeat_interleave(2)
    noise = torch.zeros(contexts, arms, dtype=torch.float64)
    for _ in range(3):
        seen = rewards + 0.1 * torch.randn(rewards.shape, generator=generator, dtype=torch.float64)
        noise += seen
        old = logits.detach().log_softmax(-1)[place2, both].unsqueeze(1)
        batch = Trajectories(
            {
                "mask": torch.ones(len(both), 1, dtype=torch.bool),
                "logp_old": old,
                "score": seen[place2, both],
                "group": torch.arange(len(both)) // 2,
            }
        )
        part = RelativeRewards(eta)
        optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def closure(
            batch: Trajectories = batch, part: RelativeRewards = part, optimizer: Any = optimizer
        ) -> torch.Tensor:
            optimizer.zero_grad()
            logp = logits.log_softmax(-1)[place2, both].unsqueeze(1)
            loss = part(Evaluation(logp=logp), batch, context()).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    expected = (eta * noise).softmax(-1)
    torch.testing.assert_close(logits.detach().softmax(-1), expected, atol=1e-3, rtol=0)


def test_unfinished_rows_and_whitening() -> None:
    batch = random_batch(4, size=2)
    cut = torch.zeros_like(batch.mask)
    cut[1, 0] = True
    found = Unfinished(-4.0)(batch.replace(truncated=cut), context())
    assert found.score[1] == -4.0
    assert found.score[[0, 2, 3]].tolist() == batch.score[[0, 2, 3]].tolist()
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0])
    white = Whiten(shift_mean=True)(batch.replace(score=scores), context()).score
    assert float(white.mean()) == pytest.approx(0, abs=1e-6)
    assert float(white.std(correction=0)) == pytest.approx(1)
    assert float(Whiten()(batch.replace(score=scores), context()).score.mean()) == pytest.approx(3.0)


def test_rewards_count_the_divergence_at_the_start_of_the_round() -> None:
    method = vantage.method("rebel", kl_coef=0.5)
    batch = random_batch(4, size=2)
    where: Any = context()
    found = Total()(batch.replace(reward=torch.zeros(4, 6)), where)
    found = method.rewards[2](found, where)
    ratio = torch.where(batch.mask, batch.logp_old - batch.logp_ref, 0.0).sum(-1)
    torch.testing.assert_close(found.score.double(), -0.5 * ratio)


def test_gradient_does_not_depend_on_micro_batches() -> None:
    method = vantage.method("rebel")

    def gradient(micro: int | None) -> torch.Tensor:
        policy = ToyPolicy(dtype=torch.float64)
        backward(toy_batch(12, 6), context(method=method, policy=policy), micro)
        return torch.cat([p.grad.reshape(-1) for p in policy.parameters() if p.grad is not None])

    for micro in (2, 5):
        torch.testing.assert_close(gradient(micro), gradient(None))


def test_it_learns_and_resumes(tmp_path: Any) -> None:
    settings = {"prompts": 12, "lr": 3e-2, "temperature": 1.0, "unfinished": None, "kl_coef": 0.0, "eta": 2.0}
    method = vantage.method("rebel", **settings)
    assert gain(method, 60) > 0.2
    assert_resumes(tmp_path, method)


def test_the_optimiser_is_that_of_the_script() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    found = vantage.method("rebel").update.optimizer.build([parameter])
    theirs = torch.optim.AdamW([parameter], lr=3e-6, eps=1e-5)
    assert type(found) is type(theirs)
    for name in ("lr", "eps", "betas", "weight_decay"):
        assert found.defaults[name] == theirs.defaults[name]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"kl_coef=-0\.1"):
        vantage.method("rebel", kl_coef=-0.1)
    with pytest.raises(UserError, match="eta=0"):
        vantage.method("rebel", eta=0.0)


@pytest.mark.parametrize("shift", [True, False])
def test_whitening_equal_scores_leaves_their_mean_alone(shift: bool) -> None:
    batch = random_batch(8, 3).replace(score=torch.full((8,), 0.7))
    found = Whiten(shift)(batch, context()).score
    assert torch.equal(found, torch.full((8,), 0.0 if shift else 0.7))
    score = torch.tensor([0.0, 1.0, 3.0, torch.nan])
    found = Whiten(shift)(random_batch(4, 3).replace(score=score), context()).score
    spread = score[:3].std(correction=0)
    expected = (score - 4 / 3) / spread + (0.0 if shift else 4 / 3)
    torch.testing.assert_close(found, expected, equal_nan=True)


@cases("rebel", "loss")
def test_rewards_loss_and_gradient_are_the_authors(case: Case) -> None:
    """Their minibatch of three pairs is the whole batch; row 3 ends with the last token that the limit allows."""
    said, pad = case.tensor("responses").long(), case.settings["pad"]
    mask = said != pad
    last = torch.arange(said.shape[1]) == mask.sum(1, keepdim=True) - 1
    ended = (last & (said == case.settings["eos"])).any(1, keepdim=True)
    batch = Trajectories(
        {
            "mask": mask,
            "length": mask.sum(1),
            "group": torch.arange(len(mask)) // 2,
            "rewards": {"model": case.tensor("scores")},
            "terminated": last & ended,
            "truncated": last & ~ended,
            "logp_old": case.tensor("logp_old"),
            "logp_ref": case.tensor("logp_ref"),
        }
    )
    settings = {"eta": case.settings["eta"], "whiten": case.settings["whiten_rewards"], "strict": True}
    made = registry.page("rebel").make(settings)
    where = context(engine=SimpleNamespace(max_length=said.shape[1]))
    for reward in made.rewards:
        part = Whiten(True) if isinstance(reward, Whiten) and case.settings["shift_mean"] else reward
        batch = part(batch, where)
    case.check("rewards", batch.score)
    logp = case.tensor("logp").requires_grad_()
    loss = loss_of(made, batch, logp=logp)
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, logp)[0])


def test_an_answer_that_ends_at_the_limit_counts_as_cut_where_that_is_asked_for() -> None:
    batch = random_batch(4, size=2)
    batch = batch.replace(mask=torch.ones_like(batch.mask), length=torch.full((4,), 6), score=torch.ones(4))
    where = context(engine=SimpleNamespace(max_length=6))
    assert Unfinished(-1.0)(batch, where).score.tolist() == [1.0] * 4
    assert Unfinished(-1.0, strict=True)(batch, where).score.tolist() == [-1.0] * 4
