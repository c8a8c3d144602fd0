"""DCPO: the numbers of its card."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import vantage
from tests.harness import context, loss_of, random_batch
from tests.methods.toys import assert_resumes, gain
from tests.reference import Case, cases
from vantage.advantages.groups import GroupStandardized
from vantage.core import Trajectories, concatenate
from vantage.methods.objectives.dcpo import SmoothStandardized, dynamic_bounds


def visit(part: SmoothStandardized, scores: list[float], prompt: int = 7) -> list[float]:
    """Advantages of one group of one prompt."""
    count = len(scores)
    batch = Trajectories(
        {
            "mask": torch.ones(count, 1, dtype=torch.bool),
            "score": torch.tensor(scores),
            "group": torch.zeros(count, dtype=torch.int64),
            "prompt": torch.full((count,), prompt),
        }
    )
    return part(batch, context())[:, 0].tolist()


@cases("dcpo", "bounds")
def test_the_bounds_are_the_authors(case: Case) -> None:
    objective = vantage.method("dcpo", **case.settings).objective
    low, high = dynamic_bounds(case.tensor("logp_old").exp(), objective.eps_low, objective.eps_high, objective.limit)
    case.check("low", low)
    case.check("high", high)


@cases("dcpo", "advantage")
def test_the_advantages_of_visits_are_the_authors(case: Case) -> None:
    prompt, scores = case.tensor("prompt").long(), case.tensor("scores")
    advantage = vantage.method("dcpo", history=case.name == "advantage-visits").advantage
    visits = [random_batch(len(prompt), 1).replace(prompt=prompt, group=prompt, score=score) for score in scores]
    case.check("advantage", torch.stack([advantage(batch, context())[:, 0] for batch in visits]))


@cases("dcpo", "loss")
def test_the_loss_is_the_authors(case: Case) -> None:
    columns = {name: case.tensor(name) for name in ("mask", "logp_old", "advantage")}
    batch = random_batch(*case.tensor("mask").shape).replace(**columns)
    logp = case.tensor("logp").requires_grad_()
    loss = loss_of(vantage.method("dcpo", **case.settings), batch, logp=logp)
    loss.backward()
    case.check("loss", loss)
    case.check("grad", logp.grad)


@pytest.mark.parametrize(
    ("q", "low", "high"), [(0.9, 0.76874, 1.18718), (0.01, 0.5, 5.0), (0.5, 0.5, 1.30623), (0.0, 0.5, 10.0)]
)
def test_bounds_of_the_papers_table(q: float, low: float, high: float) -> None:
    found = dynamic_bounds(torch.tensor([q]), 0.16, 0.2, 10.0)
    assert [float(bound) for bound in found] == pytest.approx([low, high], abs=1e-5)


def test_bounds_move_as_the_card_says() -> None:
    q = torch.linspace(0.01, 1, 200, dtype=torch.float64)
    low, high = dynamic_bounds(q, 0.16, 0.2, 1e9)
    assert (low[q <= 0.64] == 0.5).all()
    assert float(low[-1]) == pytest.approx(0.5 + 0.5 * math.sqrt(1 - 0.64))
    assert (low.diff() >= 0).all()
    assert (high.diff() < 0).all()
    # At the bound the probability moves by exactly what is allowed.
    torch.testing.assert_close((high - 1) * high * q, torch.full_like(q, 0.2))


def test_first_visit_is_grpo_without_eps() -> None:
    batch = random_batch(8, 3, size=4).replace(score=torch.rand(8))
    mine = SmoothStandardized()(batch, context())
    torch.testing.assert_close(mine, GroupStandardized(eps=0.0)(batch, context()))


def test_equal_scores_after_a_mixed_history_still_teach() -> None:
    part = SmoothStandardized()
    part._records.write(
        torch.tensor([7]), mean=torch.tensor([0.5]), variance=torch.tensor([0.25]), visits=torch.tensor([1.0])
    )
    assert visit(part, [1.0, 1.0, 1.0]) == pytest.approx([0.28868] * 3, abs=1e-5)
    held = part._records.read(torch.tensor([7]))
    assert float(held["mean"]) == pytest.approx(0.75)
    assert float(held["variance"]) == pytest.approx(0.1875)
    assert float(held["visits"]) == 2
    # Another prompt has no part in it.
    assert visit(part, [1.0, 1.0], prompt=8) == [0.0, 0.0]


def test_a_prompt_that_was_always_the_same_teaches_nothing() -> None:
    part = SmoothStandardized()
    for _ in range(5):
        assert visit(part, [0.3, 0.3, 0.3, 0.3]) == [0.0] * 4


def reference(history: list[list[float]]) -> list[float]:
    """The card's formulas, visit by visit, in Python's own numbers."""
    m = s2 = 0.0
    for i, scores in enumerate(history, start=1):
        mu = sum(scores) / len(scores)
        var = sum((r - mu) ** 2 for r in scores) / (len(scores) - 1)
        m, s2 = (
            ((i - 1) * m + mu) / i,
            ((i - 1) * s2 + var + (i - 1) / i * (mu - m) ** 2) / i,
        )
        new = [(r - mu) / math.sqrt(var) if var > 1e-12 else 0.0 for r in scores]
        total = [(r - m) / math.sqrt(s2) if s2 > 1e-12 else 0.0 for r in scores]
    found = []
    for a, b in zip(new, total, strict=True):
        first, second = ((i - 1) * a + b) / i, (a + (i - 1) * b) / i
        found.append(first if abs(first) < abs(second) else second)
    return found


def test_many_visits_follow_the_merging_rule() -> None:
    generator = torch.Generator().manual_seed(0)
    part, history = SmoothStandardized(), []
    for _ in range(12):
        history.append(torch.randint(4, (6,), generator=generator).div(3).tolist())
        assert visit(part, history[-1]) == pytest.approx(reference(history), abs=2e-5)


def test_binary_rewards_never_turn_a_sign() -> None:
    groups = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    # A prompt for each history of three visits.
    histories = torch.cartesian_prod(*[torch.arange(8)] * 3)
    prompt = torch.arange(len(histories)).repeat_interleave(3)
    part, batch = SmoothStandardized(), random_batch(len(prompt), 1).replace(prompt=prompt, group=prompt)
    for visited in histories.T:
        score = groups[visited]
        found = part(batch.replace(score=score.flatten()), context()).view(-1, 3)
    mean = score.mean(1, keepdim=True)
    mixed = (score != mean).any(1)
    assert int(mixed.sum()) == 6 * 64
    assert (found * (score - mean))[mixed].min() >= 0


def test_all_answers_to_a_prompt_are_one_visit_whatever_their_groups() -> None:
    batch = random_batch(4, 1).replace(score=torch.tensor([1.0, 1.0, 0.0, 0.0]), prompt=torch.full((4,), 7))
    part = SmoothStandardized()
    split = part(batch.replace(group=torch.tensor([0, 0, 1, 1])), context())[:, 0]
    # mean 1/2 and sample std 0.57735 of the four, where either pair alone would have no spread.
    assert split.tolist() == pytest.approx([0.866025, 0.866025, -0.866025, -0.866025])
    assert float(part._records.read(torch.tensor([7]))["visits"]) == 1


def test_clip_gradient_dual_clip_and_averaging() -> None:
    method = vantage.method("dcpo", eps_low=0.16, eps_high=0.2)
    batch = random_batch(1, 4, size=1).replace(
        mask=torch.ones(1, 4, dtype=torch.bool),
        length=torch.tensor([4]),
        logp_old=torch.tensor([[0.9, 0.01, 0.5, 0.01]]).log(),
        advantage=torch.tensor([[1.0, 1.0, -1.0, -1.0]]),
    )
    ratio = torch.tensor([[1.19, 4.9, 0.49, 12.0]])
    logp = (batch.logp_old + ratio.log()).requires_grad_()
    loss = loss_of(method, batch, logp=logp)
    # Tokens of a row are averaged: clipped at 1.18718; inside 5; clipped at 0.5; dual clip at 10.
    assert float(loss.detach()) == pytest.approx((-1.18718 - 4.9 + 0.5 + 10) / 4, abs=1e-4)
    loss.backward()
    assert logp.grad[0].tolist() == pytest.approx([0.0, -4.9 / 4, 0.0, 0.0], abs=1e-5)
    two, both = concatenate([batch, batch]), torch.cat([logp, logp])
    assert float(loss_of(method, two, logp=both).detach()) == pytest.approx(float(loss.detach()), rel=1e-6)
    # The paper adds up the rows.
    summed = loss_of(vantage.method("dcpo", eps_low=0.16, eps_high=0.2, averaging="seq-sum-token-mean"), two, logp=both)
    assert float(summed.detach()) == pytest.approx(2 * float(loss.detach()), rel=1e-6)


def test_padding_of_any_kind_is_harmless() -> None:
    method = vantage.method("dcpo")
    batch = random_batch(4, 5, size=4)
    batch = batch.replace(
        logp_old=torch.where(batch.mask, batch.logp_old, float("-inf")), advantage=torch.ones(4, 1) * batch.mask
    )
    logp = torch.where(batch.mask, batch.logp_old, -1.0).requires_grad_()
    loss_of(method, batch, logp=logp).backward()
    assert torch.isfinite(logp.grad).all()
    assert (logp.grad[~batch.mask] == 0).all()


def test_it_learns_and_resumes(tmp_path) -> None:
    method = vantage.method("dcpo", prompts=3, group_size=8, lr=3e-2, minibatches=2)
    assert gain(method, 40) > 0.3
    assert_resumes(tmp_path, method)
