from __future__ import annotations

import pytest
import torch

from vantage.core import MissingColumn, Trajectories, UserError, concatenate
from vantage.core.trajectories import declare
from vantage.functions.rows import per_decision

declare("observation.a", "[N, T, 2]", "what is seen", "the test")


def small(rows: int = 3, steps: int = 4) -> Trajectories:
    return Trajectories(
        {
            "action": torch.arange(rows * steps).reshape(rows, steps),
            "mask": torch.ones(rows, steps, dtype=torch.bool),
            "group": torch.arange(rows),
            "observation": {"a": torch.randn(rows, steps, 2), "b": torch.randn(rows)},
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
    batch = Trajectories({"mask": torch.ones(2, 3, dtype=torch.bool), "rewards": {}})
    flat = batch.flatten()
    assert len(flat) == 6
    assert len(flat.rewards) == 6


def test_a_column_of_a_row_is_told_from_one_of_a_decision_by_its_declaration() -> None:
    """With D = K = T the shapes are alike: [N, T, ...] and [N, D] differ by what `COLUMNS` says."""
    steps = 3
    batch = Trajectories(
        {
            "mask": torch.ones(2, steps, dtype=torch.bool),
            "reward": torch.arange(6.0).reshape(2, steps),
            "last_observation": torch.arange(6.0).reshape(2, steps),
            "final_observation": torch.zeros(2, steps, 4),
            "path": torch.arange(6).reshape(2, steps),
            "mine": torch.zeros(2, steps),
            "wide": torch.zeros(2, steps + 2),
            "advantage": torch.zeros(2, steps + 1),
        }
    )
    flat = batch.flatten()
    assert flat.reward.tolist() == [[0], [1], [2], [3], [4], [5]]
    assert flat["last_observation"].tolist() == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3
    assert flat["final_observation"].shape == (6, steps, 4)
    assert flat["path"].tolist() == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3
    assert flat["wide"].shape == (6, steps + 2)
    with pytest.raises(UserError, match=r"'mine' \[2, 3\] is per decision or per row: say so by .*declare\('mine'"):
        _ = flat["mine"]
    with pytest.raises(UserError, match=r"'advantage' has shape \[2, 4\] and is declared \[N, T\] with T = 3"):
        _ = flat.advantage
    with pytest.raises(UserError, match="'path' is declared already"):
        declare("path", "[N, T]", "another thing", "the test")


@pytest.mark.parametrize(
    ("name", "filler"),
    [
        ("next_observation", "stored transitions"),
        ("last_observation", "engine of environments"),
        ("final_observation", "engine of environments"),
        ("path", "tree rollout"),
        ("outcome", "denoising engine"),
    ],
)
def test_a_missing_column_names_the_component_that_fills_it(name: str, filler: str) -> None:
    with pytest.raises(MissingColumn, match=f"no column '{name}' \\(it is filled by .*{filler}"):
        _ = small()[name]


def test_rows_are_gathered_when_a_column_is_read_and_once() -> None:
    batch = small()
    part = batch.select(torch.tensor([2, 0])).replace(score=torch.ones(2))[1:]
    action = part.action
    assert action.tolist() == [[0, 1, 2, 3]]
    assert part.action is action
    assert part.replace(score=None).action is action
    assert part.observation["b"].tolist() == batch.observation["b"][:1].tolist()
    assert batch.select(torch.tensor([1])).detach().to("cpu").group.tolist() == [1]


def test_a_gather_before_no_grad_keeps_the_gradient() -> None:
    given = torch.ones(3, 2, requires_grad=True)
    part = Trajectories({"mask": torch.ones(3, 2, dtype=torch.bool), "reward": given}).select(torch.tensor([0, 2]))
    with torch.no_grad():
        reward = part.reward
    assert reward.requires_grad
    assert not part.detach().reward.requires_grad


def test_columns_have_one_number_of_rows() -> None:
    with pytest.raises(UserError, match=r"'score' has shape \[2\]; its first dimension must be 3"):
        Trajectories({"mask": torch.ones(3, 1), "score": torch.ones(2)})
    with pytest.raises(UserError, match=r"'b' has shape \[2\]; its first dimension must be 3"):
        Trajectories({"mask": torch.ones(3, 1), "rewards": {"a": torch.ones(3), "b": torch.ones(2)}})
    nested = Trajectories({"observation": {"x": torch.ones(3, 1)}, "rewards": {}})
    assert len(nested) == len(nested.rewards) == 3
    assert Trajectories(nested.to_dict()).observation["x"].shape == (3, 1)
