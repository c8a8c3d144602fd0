"""Advantages kept within bounds."""

from __future__ import annotations

import pytest
import torch

from tests.harness import context, random_batch
from vantage.advantages.clamped import Clamped
from vantage.advantages.groups import GroupStandardized
from vantage.core import UserError


def test_it_cuts_what_is_beyond_and_nothing_else() -> None:
    batch = random_batch(8)
    plain = GroupStandardized()(batch, context())
    assert torch.equal(Clamped(GroupStandardized(), 100.0)(batch, context()), plain)
    assert torch.equal(Clamped(GroupStandardized(), 0.5)(batch, context()), plain.clamp(-0.5, 0.5))
    with pytest.raises(UserError, match="limit=0"):
        Clamped(limit=0.0)
