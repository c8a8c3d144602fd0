from __future__ import annotations

import pytest
import torch

from vantage.core import UserError
from vantage.rollouts.records import PromptIndex, Records, per_prompt


def test_index_numbers_ids_as_they_appear_whatever_their_size() -> None:
    index = PromptIndex()
    assert index.find(torch.tensor([3, 4])).tolist() == [-1, -1]
    assert index.add(torch.tensor([2**62, 5, 5])).tolist() == [1, 0, 0]
    assert index.add(torch.tensor([-7, 5, 6])).tolist() == [2, 0, 3]
    assert index.find(torch.tensor([6, 2**62, 8, -7])).tolist() == [3, 1, -1, 2]


def test_records_keep_what_was_written_like_a_dict() -> None:
    records = Records(mean=0.5, count=0.0)
    held: dict[int, tuple[float, float]] = {}
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        ids = torch.randperm(40, generator=generator)[:7] * 1_000_003
        found = records.read(ids)
        expected = [held.get(int(i), (0.5, 0.0)) for i in ids]
        assert list(zip(found["mean"].tolist(), found["count"].tolist(), strict=True)) == expected
        new = torch.rand(7, generator=generator)
        records.write(ids, mean=new, count=found["count"] + 1)
        held |= {int(i): (float(v), held.get(int(i), (0.0, 0.0))[1] + 1) for i, v in zip(ids, new, strict=True)}
    assert len(records) == len(held)


def test_names_left_out_keep_their_values_and_unknown_ones_are_refused() -> None:
    records = Records(a=1.0, b=2.0)
    records.write(torch.tensor([9]), a=torch.tensor([5.0]))
    records.write(torch.tensor([4]), b=torch.tensor([6.0]))
    found = records.read(torch.tensor([4, 9]))
    assert found["a"].tolist() == [1.0, 5.0]
    assert found["b"].tolist() == [6.0, 2.0]
    with pytest.raises(UserError, match="have a, b, not c"):
        records.write(torch.tensor([4]), c=torch.tensor([1.0]))


def test_state_goes_through_a_checkpoint(tmp_path) -> None:
    records = Records(a=1.0)
    records.write(torch.tensor([9, 3, 6]), a=torch.tensor([5.0, 7.0, 8.0]))
    torch.save(records.state_dict(), tmp_path / "state.pt")
    again = Records(a=1.0)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.read(torch.tensor([6, 3, 1, 9]))["a"].tolist() == [8.0, 7.0, 1.0, 5.0]


def test_what_was_read_is_not_changed_by_a_later_write() -> None:
    records = Records(a=0.0)
    records.write(torch.tensor([1]), a=torch.tensor([3.0]))
    state = records.state_dict()
    records.write(torch.tensor([1]), a=torch.tensor([4.0]))
    assert state["values"]["a"].tolist() == [3.0]


def test_rows_find_their_prompt() -> None:
    ids, index, count = per_prompt(torch.tensor([7, 2, 7, 9]))
    assert (ids.tolist(), index.tolist(), count) == ([2, 7, 9], [1, 0, 1, 2], 3)
