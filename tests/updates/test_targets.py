"""Copies that follow, and updates that wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.core.toy import ToyPolicy
from vantage.core import UserError
from vantage.functions.parameters import polyak, twins
from vantage.updates.targets import Every, MoveTargets, SlowCopy


def test_polyak() -> None:
    target = [torch.tensor([0.0, 2.0]), torch.tensor([[4.0]])]
    polyak(target, [torch.tensor([1.0, 0.0]), torch.tensor([[0.0]])], 0.25)
    assert target[0].tolist() == [0.25, 1.5]
    assert target[1].tolist() == [[3.0]]


def test_a_copy_moves_by_its_rate_and_is_remembered() -> None:
    policy = ToyPolicy()
    copy = policy.frozen()
    where: Any = SimpleNamespace(policy=policy, named=lambda name: copy)
    part = SlowCopy("target", 0.5)
    part.prepare(where)
    before = copy.head.clone()
    with torch.no_grad():
        policy.head += 1.0
    part(where)
    torch.testing.assert_close(copy.head, before + 0.5)
    state = part.state_dict()
    part(where)
    torch.testing.assert_close(copy.head, before + 0.75)
    part.load_state_dict(state)
    torch.testing.assert_close(copy.head, before + 0.5)


def test_a_view_of_the_policy_is_no_copy() -> None:
    with pytest.raises(UserError, match="lora_rank=0"):
        twins(ToyPolicy(), SimpleNamespace(named_parameters=lambda: iter(())))


def test_targets_move_every_few_steps() -> None:
    live, target = torch.ones(1), torch.zeros(1)
    policy = SimpleNamespace(targets=lambda: [(live, target)])
    part = MoveTargets(0.5, 2)
    seen = []
    for step in range(1, 5):
        part(SimpleNamespace(policy=policy, step=step))  # type: ignore[arg-type]
        seen.append(float(target))
    assert seen == [0.0, 0.5, 0.5, 0.75]


def test_every_second_step() -> None:
    done = []
    part = Every(2, lambda batch, where: done.append(where.step))
    for step in range(5):
        part(None, SimpleNamespace(step=step))  # type: ignore[arg-type]
    assert done == [1, 3]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="rate=0"):
        SlowCopy(rate=0.0)
    with pytest.raises(UserError, match="rate=2"):
        MoveTargets(rate=2.0)
    with pytest.raises(UserError, match="steps=0"):
        Every(0, None)
