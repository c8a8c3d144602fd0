"""Learning-rate schedules: their shape, and the peer they follow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vantage.core import UserError
from vantage.updates.optimizers import Constant, Cosine, Drop, Linear


def factors(schedule: Constant | Cosine | Linear, horizon: int) -> list[float]:
    return [schedule(step, horizon) for step in range(horizon)]


def test_a_drop_is_one_step_down() -> None:
    assert [Drop(0.6, 0.1)(step, 5) for step in range(5)] == [1.0, 1.0, 1.0, 0.1, 0.1]
    with pytest.raises(UserError, match=r"after=1\.5"):
        Drop(1.5)


@pytest.mark.parametrize("after", [False, True])
def test_without_a_warm_up_it_is_half_a_cosine_to_the_last_bit(after: bool) -> None:
    for horizon in (1, 7, 400):
        expected = [0.1 + 0.9 * (0.5 * (1 + math.cos(math.pi * step / horizon))) for step in range(horizon)]
        found = factors(Cosine(0.1, after=after), horizon)
        assert found == pytest.approx(expected, rel=1e-15)
    assert factors(Cosine(0.1, after=True), 400) == factors(Cosine(0.1), 400)


def test_a_cosine_after_the_warm_up_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = transformers.get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=20, num_training_steps=100)
    found = factors(Cosine(warmup=0.2, after=True), 100)
    assert found[20:] == pytest.approx([peer.lr_lambdas[0](step) for step in range(20, 100)])
    # The warm-up ends at the same step; ours begins with a step that moves.
    assert found[:20] == pytest.approx([peer.lr_lambdas[0](step + 1) for step in range(20)])


def test_a_warm_up_upon_the_cosine_meets_it_on_its_way_down() -> None:
    found, whole = factors(Cosine(0.1, warmup=0.2), 100), factors(Cosine(0.1), 100)
    assert found[20:] == whole[20:]
    assert found[:20] == pytest.approx([(step + 1) / 20 * whole[step] for step in range(20)])
    assert max(found) < 0.95


def test_linear_after_the_warm_up_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = transformers.get_linear_schedule_with_warmup(optimizer, num_warmup_steps=3, num_training_steps=100)
    for warmup in (3, 0.03):
        found = factors(Linear(warmup=warmup), 100)
        assert found[3:] == pytest.approx([peer.lr_lambdas[0](step) for step in range(3, 100)])
        assert found[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert factors(Linear(0.5), 4) == pytest.approx([1.0, 0.875, 0.75, 0.625])


@pytest.mark.parametrize("horizon", [20, 2000])
def test_a_warm_up_is_counted_in_steps_and_below_one_in_shares_of_the_run(horizon: int) -> None:
    assert factors(Constant(10), horizon)[:11] == pytest.approx([*((step + 1) / 10 for step in range(10)), 1.0])
    assert factors(Constant(0.05), horizon) == factors(Constant(0.05 * horizon), horizon)
    assert set(factors(Constant(1), horizon)) == {1.0}


def test_a_run_that_is_all_warm_up_and_settings_out_of_range() -> None:
    for made in (Cosine(warmup=4, after=True), Cosine(warmup=8, after=True), Linear(warmup=4), Constant(4)):
        assert factors(made, 4) == [(step + 1) / made.warmup for step in range(4)]
    wrong: list[dict[str, Any]] = [{"warmup": -0.1}, {"final": -1.0}]
    for settings in wrong:
        with pytest.raises(UserError, match=str(next(iter(settings.values())))):
            Cosine(**settings)
