"""DAPO: equality with TRL and verl, and the four parts in which it differs from GRPO."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import vantage
from tests.harness import context, random_batch
from tests.methods.family import check_advantage, check_against_trl, check_groups, check_loss
from tests.reference import Case, cases
from vantage.core import Trajectories, UserError
from vantage.methods.composition import differences


@pytest.mark.peers
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_and_gradient_equal_trl(seed: int) -> None:
    check_against_trl(vantage.method("dapo"), "dapo", seed, low=0.2, high=0.28)


@cases("dapo", "loss")
def test_loss_and_gradient_with_huge_ratios(case: Case) -> None:
    check_loss(case, vantage.method("dapo"))


@cases("dapo", "advantage")
def test_advantages(case: Case) -> None:
    check_advantage(case, vantage.method("dapo"))


def shaped(method: vantage.Method, correct: list[float], length: list[int], limit: int) -> Trajectories:
    """Rows with these scores and lengths after the method's rewards."""
    mask = torch.arange(limit) < torch.tensor(length).unsqueeze(1)
    named = {"correct": torch.tensor(correct, dtype=torch.float32)}
    batch = Trajectories({"mask": mask, "length": torch.tensor(length), "rewards": named})
    for part in method.rewards:
        batch = part(batch, context(engine=SimpleNamespace(max_decisions=limit)))
    return batch


@cases("dapo", "overlong")
def test_a_right_answer_at_the_limit_is_worth_more_than_a_wrong_short_one(case: Case) -> None:
    method = vantage.method("dapo", overlong_buffer=case.settings["overlong_buffer_len"])
    batch = shaped(method, case.inputs["correct"], case.inputs["length"], case.settings["max_resp_len"])
    case.check("score", batch.score)
    case.check("score", batch.reward.sum(1))
    assert batch.score[3] > batch.score[4]


def test_scores_that_are_signed_already_are_refused_or_left() -> None:
    with pytest.raises(UserError, match=r"the score -1 is not between 0 and 1; .*signed=false"):
        shaped(vantage.method("dapo", overlong_buffer=2), [1.0, -1.0], [3, 3], 4)
    left = shaped(vantage.method("dapo", overlong_buffer=2, signed=False), [1.0, -1.0, float("nan")], [1, 4, 1], 4)
    torch.testing.assert_close(left.score, torch.tensor([1.0, -2.0, float("nan")]), equal_nan=True)
    missing = shaped(vantage.method("dapo", overlong_buffer=2), [1.0, float("nan")], [1, 1], 4)
    torch.testing.assert_close(missing.score, torch.tensor([1.0, float("nan")]), equal_nan=True)
    assert missing.reward.sum(1).tolist() == [1.0, 0.0]


def test_it_is_grpo_with_four_parts_replaced() -> None:
    changed = differences(vantage.method("dapo", overlong_buffer=4), vantage.method("dapo").parent)
    assert set(changed) == {"rollout", "rewards", "advantage", "objective", "averaging"}
    assert changed["advantage"][0] == changed["advantage"][1].replace("eps=0.0001", "eps=1e-06")
    check_groups(vantage.method("dapo"))


def test_ten_steps_of_warm_up_whatever_the_length_of_the_run() -> None:
    schedule = vantage.method("dapo").update.schedule
    for total in (20, 5000):
        assert [schedule(step, total) for step in (0, 4, 9, 19)] == pytest.approx([0.1, 0.5, 1.0, 1.0])


def test_the_ratio_of_a_wrong_answer_counts_up_to_ten() -> None:
    batch = random_batch(2, 1, size=2).replace(mask=torch.ones(2, 1, dtype=torch.bool), advantage=-torch.ones(2, 1))
    log = torch.tensor([[9.0], [11.0]], dtype=torch.float64).log().requires_grad_()
    objective = vantage.method("dapo").objective
    loss = objective(SimpleNamespace(logp=batch.logp_old + log), batch, context())
    loss.sum().backward()
    assert loss[:, 0].tolist() == pytest.approx([9.0, 10.0])
    assert log.grad is not None
    assert log.grad[:, 0].tolist() == pytest.approx([9.0, 0.0])
