"""Losses over pairs: which rows are a pair, where the loss stands, and that no cut changes it."""

from __future__ import annotations

import math

import pytest
import torch

from tests.core.toy import ToyPolicy, toy_batch, toy_method
from tests.harness import context, random_batch
from vantage.core import Evaluation, UserError
from vantage.core.loss import backward
from vantage.core.trajectories import FRESH, STORED
from vantage.functions.rows import row_logp
from vantage.objectives.preference import PairLogistic, on_both, pair_rows


def test_pairs_are_found_wherever_their_rows_stand() -> None:
    batch = random_batch(8, size=2).select(torch.tensor([2, 0, 3, 1, 6, 4, 7, 5]))
    first, second = pair_rows(batch)
    assert batch.group[first].tolist() == batch.group[second].tolist() == [0, 1, 2, 3]
    assert (first < second).all()


def test_stored_pairs_among_fresh_rows() -> None:
    source = torch.tensor([FRESH, STORED, STORED, FRESH, FRESH, STORED, STORED, FRESH])
    batch = random_batch(8).replace(source=source, group=torch.tensor([9, 3, 3, 9, 8, 1, 1, 7]))
    first, second = pair_rows(batch)
    assert first.tolist() == [5, 1]
    assert second.tolist() == [6, 2]
    loss = on_both(torch.tensor([2.0, 3.0]), first, second, 8)
    assert loss.tolist() == [0, 3, 3, 0, 0, 2, 2, 0]


def test_groups_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(UserError, match="groups of two rows"):
        pair_rows(random_batch(6, size=3))
    with pytest.raises(UserError, match="groups of two rows"):
        pair_rows(random_batch(5, size=2))


def test_row_logp_ignores_what_stands_in_the_padding() -> None:
    batch = random_batch(4)
    dirty = torch.where(batch.mask, batch.logp_old, float("-inf"))
    clean = torch.where(batch.mask, batch.logp_old, 0.0).sum(-1)
    torch.testing.assert_close(row_logp(dirty, batch.mask), clean)
    torch.testing.assert_close(row_logp(dirty, batch.mask, average=True), clean / batch.length)


@pytest.mark.parametrize("average", [False, True])
def test_at_no_margin_the_loss_is_log_2_and_its_slope_one_half(average: bool) -> None:
    batch = random_batch(2, size=2).replace(logp_ref=torch.zeros(2, 6, dtype=torch.float64))
    logp = torch.full((2, 6), -0.5, dtype=torch.float64, requires_grad=True)
    batch = batch.replace(mask=torch.ones(2, 6, dtype=torch.bool))
    loss = PairLogistic(0.3, average=average)(Evaluation(logp=logp), batch, context())
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)
    loss.mean().backward()
    share = 6 if average else 1
    assert logp.grad[:, 0].tolist() == pytest.approx([-0.15 / share, 0.15 / share])


@pytest.mark.parametrize("part", [PairLogistic(0.3), PairLogistic(2.0, 1.0, average=True, smoothing=0.1)])
def test_gradient_does_not_depend_on_micro_batches(part: PairLogistic) -> None:
    method = toy_method(objective=part)

    def gradient(micro: int | None) -> torch.Tensor:
        policy = ToyPolicy(dtype=torch.float64)
        where = context(method=method, policy=policy)
        backward(toy_batch(12, 6), where, micro)
        return torch.cat([p.grad.reshape(-1) for p in policy.parameters() if p.grad is not None])

    whole = gradient(None)
    assert whole.abs().max() > 1e-4
    for micro in (2, 4, 5):
        torch.testing.assert_close(gradient(micro), whole)


@pytest.mark.parametrize("average", [False, True])
def test_accuracy_counts_ties_as_one_half_whatever_their_rounding(average: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logp = -5 * torch.rand(8, 40, generator=generator)
    mask = torch.ones(8, 40, dtype=torch.bool)
    batch = random_batch(8, size=2).replace(
        action=None, observation=None, mask=mask, length=torch.full((8,), 40), logp_ref=logp * (1 + 1e-7)
    )
    if average:  # without a reference a tie is of two rows
        logp = logp[torch.arange(8) // 2 * 2][:, torch.randperm(40, generator=generator)]
    where = context()
    shift = torch.zeros(8, 1)
    shift[0], shift[2] = 1e-3, -1e-3  # pair 0 is right, pair 1 wrong; 2 and 3 are ties
    PairLogistic(0.3, average=average)(Evaluation(logp=logp + shift), batch, where)
    assert where.metrics.mean("pairs/accuracy") == (1 + 0 + 0.5 + 0.5) / 4


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"beta": 0.0}, {"gamma": -1.0}, {"smoothing": 0.5}):
        with pytest.raises(UserError, match=str(next(iter(settings.values())))):
            PairLogistic(**settings)
