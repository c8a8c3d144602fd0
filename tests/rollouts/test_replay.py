from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import pytest
import torch

from tests.core.toy import ToyEngine, ToyPolicy, ToyTask, toy_method
from vantage.core import Schedule, Trainer, Trajectories, UserError
from vantage.core.checkpoint import read_checkpoint
from vantage.functions.groups import rank_within
from vantage.rollouts.plans import Groups
from vantage.rollouts.replay import PromptQueues, RecentReplay, RowTable, from_state, to_state


def rows(prompts: list[int], marks: list[int], steps: int = 3) -> Trajectories:
    count = len(prompts)
    mark = torch.tensor(marks)
    return Trajectories(
        {
            "prompt": torch.tensor(prompts),
            "mark": mark,
            "action": mark.unsqueeze(1).expand(count, steps).clone(),
            "mask": torch.ones(count, steps, dtype=torch.bool),
            "observation": {"tokens": mark.unsqueeze(1).repeat(1, steps + 1)},
        }
    )


def test_queues_hold_the_newest_records_of_each_prompt_oldest_first() -> None:
    queues = PromptQueues(3)
    expected: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=3))
    generator = torch.Generator().manual_seed(0)
    mark = 0
    for step in range(25):
        prompts = torch.randint(6, (5,), generator=generator).tolist()
        marks = list(range(mark, mark + 5))
        mark += 5
        queues.push(rows(prompts, marks, steps=2 + step % 3))
        for prompt, value in zip(prompts, marks, strict=True):
            expected[prompt].append(value)
        slot, there = queues.slots(torch.arange(7))
        for prompt in range(7):
            found = queues.table.get(slot[prompt][there[prompt]]).mark.tolist()
            assert found == list(expected[prompt])
    # Rows shorter than the widest are padded with zeros and masked out.
    got = queues.table.get(slot[there])
    assert got.steps == 4
    assert (got.action[got.mask] == got.mark.unsqueeze(1).expand(-1, 4)[got.mask]).all()
    assert got.observation["tokens"][:, 0].tolist() == got.mark.tolist()


def test_queues_go_through_a_checkpoint(tmp_path) -> None:
    queues = PromptQueues(2)
    queues.push(rows([5, 5, 5, 8], [1, 2, 3, 4]))
    torch.save(queues.state_dict(), tmp_path / "state.pt")
    again = PromptQueues(2)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for queue in (queues, again):
        queue.push(rows([5], [9]))
    slot, there = again.slots(torch.tensor([8, 5]))
    assert again.table.get(slot[there]).mark.tolist() == [4, 3, 9]
    assert torch.equal(again.table.get(slot[there]).action, queues.table.get(slot[there]).action)


def test_a_table_gives_back_what_was_put() -> None:
    table = RowTable()
    table.put(torch.tensor([4, 1]), rows([0, 0], [10, 11]))
    table.put(torch.tensor([4, 300]), rows([0, 0], [12, 13], steps=5))
    assert table.get(torch.tensor([1, 4, 300])).mark.tolist() == [11, 12, 13]
    assert table.get(torch.tensor([1])).mask.tolist() == [[True, True, True, False, False]]


def test_rows_as_state_and_back() -> None:
    batch = rows([1, 2], [3, 4])
    again = from_state(to_state(batch))
    assert again is not None
    assert again.observation["tokens"].equal(batch.observation["tokens"])
    assert from_state(to_state(None)) is None


def test_rank_within_equal_keys() -> None:
    rank, total = rank_within(torch.tensor([2, 0, 2, 2, 1]), 4)
    assert rank.tolist() == [0, 0, 1, 2, 0]
    assert total.tolist() == [1, 1, 3, 0]


def run(share: Any, steps: int = 6, folder: Any = None, window: int = 2) -> tuple[Trainer, list[Trajectories]]:
    seen: list[Trajectories] = []

    def watch(batch: Trajectories, context: Any) -> Trajectories:
        seen.append(batch)
        return batch

    method = toy_method(rollout=RecentReplay(Groups(10, 4), share, window)).replace(
        selection=(watch,),
    )
    policy = ToyPolicy()
    return Trainer(method, ToyTask(), policy, ToyEngine(policy), Schedule(steps, save_every=2), folder=folder), seen


def test_groups_are_replayed_whole_with_the_log_probabilities_of_their_step() -> None:
    trainer, seen = run(0.5)
    trainer.run()
    fresh = [batch.select(batch.age == 0) for batch in seen]
    assert (seen[0].age == 0).all()
    for step, batch in enumerate(seen):
        assert len(batch) == 40
        assert torch.unique(batch.group, return_counts=True)[1].tolist() == [4] * 10
        for age in range(1, 3):
            old = batch.select(batch.age == age)
            if len(old):
                match = (old.logp_old[:, None] == fresh[step - age].logp_old[None]).all(-1) & (
                    old.action[:, None] == fresh[step - age].action[None]
                ).all(-1)
                assert match.any(1).all()
                assert match.any(0).sum() >= len(torch.unique(old.group))
    ages = torch.cat([batch.age for batch in seen[2:]])
    assert set(ages.tolist()) == {0, 1, 2}


def test_the_share_of_old_groups_is_the_one_asked_for() -> None:
    trainer, seen = run(0.4, steps=50)
    trainer.run()
    old = torch.cat([batch.age for batch in seen[2:]]) > 0
    # 480 groups: standard deviation 0.022. Snapshots of few fresh groups cannot always serve, so a little below 0.4.
    assert float(old.float().mean()) == pytest.approx(0.4, abs=0.08)


def test_a_share_that_changes_in_the_run_and_ends_drops_the_history() -> None:
    trainer, seen = run(lambda context: 0.5 if context.step < 3 else 0.0)
    trainer.run()
    assert all((batch.age == 0).all() for batch in seen[3:])
    assert trainer.context.method.rollout.state_dict() == {"kept": []}


def test_a_resumed_run_replays_the_same_rows(tmp_path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    run(0.5, 8, whole)[0].run()
    first = run(0.5, 8, part)[0]
    first.listeners.append(lambda report: setattr(first, "_interrupted", report.step == 4))
    assert first.run().status == "interrupted"
    again = run(0.5, 8, part)[0]
    assert again.restore() == 4
    again.run()
    assert (part / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    _, left, _ = read_checkpoint(part / "checkpoints" / "step-00000008")
    _, right, _ = read_checkpoint(whole / "checkpoints" / "step-00000008")
    assert all(left[name].equal(right[name]) for name in left)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"share=1\.0 is out of range: at least 0, below 1"):
        RecentReplay(share=1.0)
    with pytest.raises(UserError, match="window=0"):
        RecentReplay(window=0)
