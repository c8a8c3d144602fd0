"""Learning-rate schedules: their shape, and the peer they follow."""

from __future__ import annotations

import math

import pytest
import torch

from vantage.core import UserError
from vantage.updates.optimizers import Cosine


def factors(schedule: Cosine, horizon: int) -> list[float]:
    return [schedule(step, horizon) for step in range(horizon)]


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


def test_a_run_that_is_all_warm_up_and_settings_out_of_range() -> None:
    assert factors(Cosine(warmup=1.0, after=True), 4) == [0.25, 0.5, 0.75, 1.0]
    for settings in ({"warmup": -0.1}, {"warmup": 1.5}, {"final": -1.0}):
        with pytest.raises(UserError, match=str(next(iter(settings.values())))):
            Cosine(**settings)
