"""GRPO-lambda: the numbers of its card."""

from __future__ import annotations

import pytest
import torch

import vantage
from tests.harness import context
from tests.methods.toys import gain
from vantage.advantages.groups import GroupStandardized
from vantage.core import Trajectories, UserError
from vantage.methods.rewards.grpo_lambda import BestSolvedShorter


def answers(scores: list[float], lengths: list[int], size: int = 4) -> Trajectories:
    length = torch.tensor(lengths)
    score = torch.tensor(scores)
    steps = int(length.max())
    last = torch.arange(steps) == (length - 1).unsqueeze(1)
    return Trajectories(
        {
            "mask": torch.arange(steps) < length.unsqueeze(1),
            "length": length,
            "score": score,
            "reward": score.unsqueeze(1) * last,
            "group": torch.arange(len(scores)) // size,
        }
    )


def scores(part: BestSolvedShorter, batch: Trajectories) -> list[float]:
    return part(batch, context()).score.tolist()


def test_worked_group() -> None:
    batch = answers([1.0] * 4, [10, 20, 30, 40])
    part = BestSolvedShorter(1.0, 0.2)
    found = part(batch, context())
    assert found.score.tolist() == pytest.approx([0.9586, 0.9220, 0.8780, 0.8414], abs=1e-4)
    assert float(found.score.sum()) == pytest.approx(3.6, abs=1e-5)
    assert found.reward.sum(1).tolist() == pytest.approx(found.score.tolist())
    advantage = GroupStandardized()(found, context())[:, 0]
    assert (advantage.diff() < 0).all()
    assert float(advantage[0]) > 0 > float(advantage[3])


@pytest.mark.parametrize(("share", "alpha"), [(0.0, 0.2), (1.0, 0.0)])
def test_without_share_or_penalty_it_is_grpo(share: float, alpha: float) -> None:
    batch = answers([1.0, 0.0, 1.0, 1.0] * 2, [1, 5, 3, 2, 6, 6, 2, 1])
    assert scores(BestSolvedShorter(share, alpha), batch) == batch.score.tolist()


def test_only_the_best_solved_groups_pay() -> None:
    # Shares of right answers 1/2, 1, 1, 0; the two whole groups tie, and the third is the shorter.
    batch = answers([1, 0, 1, 1, 1, 1, 0, 0], [9, 9, 7, 9, 2, 4, 1, 1], size=2)
    part = BestSolvedShorter(0.25, 0.2)
    found = torch.tensor(scores(part, batch)) != batch.score
    assert found.tolist() == [False] * 4 + [True, True] + [False] * 2
    two = torch.tensor(scores(BestSolvedShorter(0.5, 0.2), batch)) != batch.score
    assert two.tolist() == [False, False, True, True, True, True, False, False]
    # A share that would give less than one group gives one.
    assert scores(BestSolvedShorter(0.01, 0.2), batch) == scores(part, batch)
    # 0.6 * 5 is 3 in exact arithmetic and a little less in floating point.
    five = answers([1.0] * 10, list(range(1, 11)), size=2)
    assert sum(s != 1 for s in scores(BestSolvedShorter(0.6, 0.2), five)) == 6


def test_ties_in_share_and_length_go_by_order() -> None:
    batch = answers([1.0] * 6, [3, 5, 3, 5, 3, 5], size=2)
    assert [s != 1 for s in scores(BestSolvedShorter(0.34, 0.2), batch)] == [True, True] + [False] * 4


def test_wrong_answers_stay_below_right_ones_and_all_wrong_teaches_nothing() -> None:
    batch = answers([1.0, 0.0, 1.0, 0.0], [50, 1, 1, 1])
    found = scores(BestSolvedShorter(1.0, 0.9), batch)
    assert found[1] == found[3] == 0.0
    assert min(found[0], found[2]) > 0.1
    wrong = answers([0.0] * 4, [1, 2, 3, 4])
    assert scores(BestSolvedShorter(1.0, 0.2), wrong) == [0.0] * 4
    # A single right answer has no lengths to be compared with: half of alpha.
    single = scores(BestSolvedShorter(1.0, 0.2), answers([1.0, 0.0, 0.0, 0.0], [9, 1, 1, 1]))
    assert single[0] == pytest.approx(0.9)


def test_lengths_shifted_or_scaled_change_nothing() -> None:
    lengths = [3, 9, 4, 7]
    part = BestSolvedShorter(1.0, 0.2)
    base = scores(part, answers([1.0] * 4, lengths))
    assert scores(part, answers([1.0] * 4, [x + 11 for x in lengths])) == pytest.approx(base, abs=1e-6)
    assert scores(part, answers([1.0] * 4, [x * 5 for x in lengths])) == pytest.approx(base, abs=1e-6)


def test_threshold_variant() -> None:
    batch = answers([1.0, 1.0, 1.0, 0.0, 1.0, 1.0], [1, 2, 1, 2, 1, 2], size=2)
    found = scores(BestSolvedShorter(threshold=1.0), batch)
    assert [s != r for s, r in zip(found, batch.score.tolist(), strict=True)] == [True, True, False, False, True, True]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"share=1\.5 is out of range"):
        vantage.method("grpo-lambda", share=1.5)


def test_it_learns_on_the_toy() -> None:
    assert gain(vantage.method("grpo-lambda", prompts=6, group_size=8, lr=3e-2, beta=0.0), 40) > 0.3
