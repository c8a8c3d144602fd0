from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from vantage.core import MissingColumn, Trajectories, UserError, concatenate
from vantage.functions.rows import per_decision


def small(rows: int = 3, steps: int = 4) -> Trajectories:
    return Trajectories(
        {
            "action": torch.arange(rows * steps).reshape(rows, steps),
            "mask": torch.ones(rows, steps, dtype=torch.bool),
            "group": torch.arange(rows),
            "observation": TensorDict({"a": torch.randn(rows, steps, 2), "b": torch.randn(rows)}, [rows]),
        }
    )


def test_reading_a_missing_column_names_it_and_who_would_fill_it() -> None:
    with pytest.raises(MissingColumn, match=r"no column 'value'.*`values`.*they hold: action, group, mask"):
        _ = small().value
    with pytest.raises(MissingColumn, match="did you mean"):
        _ = small()["advantages"]
    assert small().get("value") is None
    assert "value" not in small()
    assert "mask" in small()


def test_a_batch_is_a_value() -> None:
    batch = small()
    with pytest.raises(AttributeError, match="replace"):
        batch.mask = torch.zeros(3, 4)
    scored = batch.replace(score=torch.ones(3))
    assert "score" not in batch
    assert scored.score.sum() == 3
    assert scored.mask.data_ptr() == batch.mask.data_ptr()
    assert "group" not in batch.replace(group=None)
    with pytest.raises(UserError, match=r"'score' has shape \[2\]; its first dimension must be 3"):
        batch.replace(score=torch.ones(2))


def test_selecting_flattening_and_joining() -> None:
    batch = small()
    assert batch.select(torch.tensor([True, False, True])).action[:, 0].tolist() == [0, 8]
    assert len(batch[1:]) == 2
    flat = batch.flatten()
    assert len(flat) == 12
    assert flat.action.shape == (12, 1)
    assert flat.action[:, 0].tolist() == list(range(12))
    assert flat.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert flat.observation["a"].shape == (12, 1, 2)
    assert flat.observation["b"].shape == (12,)
    joined = concatenate([small(2, 4), small(1, 6)])
    assert joined.action.shape == (3, 6)
    assert joined.mask[0].tolist() == [True] * 4 + [False] * 2
    assert joined.observation["a"].shape == (3, 6, 2)
    with pytest.raises(UserError, match="differ in their columns: score"):
        concatenate([small(), small().replace(score=torch.ones(3))])


def test_per_decision_is_zero_outside_the_mask() -> None:
    mask = torch.tensor([[True, True, False]])
    assert per_decision(torch.tensor([2.0]), mask).tolist() == [[2.0, 2.0, 0.0]]


def test_flatten_keeps_a_table_that_holds_nothing() -> None:
    from tensordict import TensorDict

    batch = Trajectories({"mask": torch.ones(2, 3, dtype=torch.bool), "rewards": TensorDict({}, batch_size=[2])})
    flat = batch.flatten()
    assert len(flat) == 6
    assert flat.rewards.batch_size == torch.Size([6])
