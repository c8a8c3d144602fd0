"""GDPO: the numbers of the authors' code, and those of its card."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import STEPS, SYMBOLS, ToyTask
from tests.harness import context, random_batch
from tests.methods.family import check_loss
from tests.methods.toys import gain
from tests.reference import Case, cases
from vantage.advantages.groups import GroupStandardized
from vantage.core import Trajectories, UserError
from vantage.methods.objectives.gdpo import Decoupled


def rewards(**named: list[float]) -> Trajectories:
    count = len(next(iter(named.values())))
    table = {name: torch.tensor(values) for name, values in named.items()}
    return Trajectories(
        {
            "mask": torch.ones(count, 1, dtype=torch.bool),
            "length": torch.ones(count, dtype=torch.int64),
            "group": torch.arange(count) // 2,
            "rewards": table,
        }
    )


def advantages(batch: Trajectories, **settings: Any) -> list[float]:
    return Decoupled(**settings)(batch, context())[:, 0].tolist()


def test_two_right_rewards_are_worth_more_than_one() -> None:
    # Totals (0, 1) and (0, 2): the sum standardised is the same in both groups, the decoupled one is not.
    batch = rewards(a=[0.0, 1.0, 0.0, 1.0], b=[0.0, 0.0, 0.0, 1.0])
    total = batch.replace(score=batch.rewards["a"] + batch.rewards["b"])
    r = 0.70711
    assert GroupStandardized(eps=0.0)(total, context())[:, 0].tolist() == pytest.approx([-r, r, -r, r], abs=1e-5)
    assert advantages(batch, eps=0.0, over_batch=False) == pytest.approx([-r, r, -2 * r, 2 * r], abs=1e-5)


def test_one_reward_is_grpo() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(2, (24,), generator=generator).float()
    batch = rewards(a=score.tolist()).replace(group=torch.arange(24) // 4, score=score)
    for statistics in ("rows", "tokens"):
        found = vantage.method("gdpo", statistics=statistics).advantage(batch, context())
        assert torch.equal(found, vantage.method("grpo").advantage(batch, context()))


def test_two_equal_rewards_are_grpo_rescaled_by_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(2, (24,), generator=generator).float()
    batch = rewards(a=score.tolist(), b=score.tolist()).replace(group=torch.arange(24) // 4, score=score)
    plain = GroupStandardized(eps=0.0)(batch, context()).nan_to_num(0.0)
    mixed = sum(0 < float(group.sum()) < 4 for group in score.view(6, 4))
    found = Decoupled(eps=1e-12)(batch, context())
    std = (mixed * 3 / 23) ** 0.5
    torch.testing.assert_close(found, plain / std, rtol=1e-4, atol=1e-5)


def rows_of(case: Case) -> Trajectories:
    """The inputs of a case, whose rewards are [K, N]."""
    mask = case.tensor("mask")
    named = {f"r{k}": value.float() for k, value in enumerate(case.tensor("rewards"))}
    columns = {"mask": mask, "length": mask.sum(1), "group": case.tensor("group", torch.int64), "rewards": named}
    return Trajectories({**columns, "score": sum(named.values())})


@cases("gdpo", "advantage trl")
def test_advantages_of_the_trl_form(case: Case) -> None:
    method = vantage.method("gdpo")
    weights = {f"r{k}": value for k, value in enumerate(case.settings["reward_weights"])}
    found = method.adapt("advantage", weights=weights).advantage(rows_of(case), context(method=method))
    case.check("advantage", found)


@cases("gdpo", "advantage verl")
def test_advantages_of_the_verl_form(case: Case) -> None:
    method = vantage.method("gdpo", statistics="tokens", eps_std=1e-6)
    case.check("advantage", method.advantage(rows_of(case), context(method=method)))


@cases("gdpo", "loss")
def test_loss_and_gradient(case: Case) -> None:
    check_loss(case, vantage.method("gdpo"))


def test_scale_of_a_reward_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 8, generator=generator)
    one = advantages(rewards(a=a.tolist(), b=b.tolist()), eps=1e-9)
    other = advantages(rewards(a=a.tolist(), b=(100 * b).tolist()), eps=1e-9)
    assert one == pytest.approx(other, abs=1e-4)


def test_a_constant_reward_contributes_exactly_nothing() -> None:
    a = [0.0, 1.0, 1.0, 0.0]
    alone = advantages(rewards(a=a))
    assert advantages(rewards(a=a, b=[0.3, 0.3, 0.7, 0.7]), over_batch=False) == alone
    assert advantages(rewards(a=a, b=[0.3, 0.3, 0.7, 0.7])) == advantages(rewards(a=a, b=[0.0] * 4))


def test_weights_and_missing_rewards() -> None:
    nan = float("nan")
    batch = rewards(a=[0.0, 1.0, 3.0, nan, nan, nan], b=[nan, nan, 5.0, 5.0, nan, 1.0]).replace(
        group=torch.tensor([0, 0, 1, 1, 2, 2])
    )
    found = advantages(batch, weights={"a": 2.0}, eps=0.0, over_batch=False)
    # Row 4 has no reward at all, rows 2 and 5 are alone with theirs.
    assert found == pytest.approx([-2 * 0.70711, 2 * 0.70711, 0, 0, 0, 0], abs=1e-4)
    whole = Decoupled(eps=1e-6)(batch, context())[:, 0]
    assert float(whole[4]) == 0
    # Standardised over the five rows that have a reward.
    rest = whole[torch.tensor([0, 1, 2, 3, 5])]
    assert float(rest.mean()) == pytest.approx(0, abs=1e-6)
    assert float(rest.std()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("kinds", "values", "vectors"), [(2, (23, 15), (107, 51)), (3, (51, 33), (501, 147))])
def test_number_of_distinct_advantages(kinds: int, values: tuple[int, int], vectors: tuple[int, int]) -> None:
    """Over all tables of K binary rewards for 4 answers, at once: one group for each table."""
    tables = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4 * kinds)), dtype=torch.float64).view(-1, 4, kinds)
    count = len(tables)
    group = torch.arange(count).repeat_interleave(4)
    named = {f"r{k}": tables[:, :, k].reshape(-1) for k in range(kinds)}
    batch = Trajectories(
        {
            "mask": torch.ones(4 * count, 1, dtype=torch.bool),
            "group": group,
            "score": tables.sum(-1).reshape(-1),
            "rewards": named,
        }
    )
    decoupled = Decoupled(eps=1e-12, over_batch=False)(batch, context()).view(count, 4)
    summed = GroupStandardized(eps=1e-12)(batch, context()).view(count, 4)
    for found, expected_values, expected_vectors in (
        (decoupled, *_pair(values, vectors, 0)),
        (summed, *_pair(values, vectors, 1)),
    ):
        # Rounded to what float32 tells apart; -0 is 0.
        rounded = (found.double() * 1e4).round() + 0.0
        assert len(torch.unique(rounded)) == expected_values
        assert len(torch.unique(rounded, dim=0)) == expected_vectors


def _pair(values: tuple[int, int], vectors: tuple[int, int], place: int) -> tuple[int, int]:
    return values[place], vectors[place]


def test_the_batch_step_keeps_the_order() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.rand(2, 12, generator=generator)
    batch = rewards(a=a.tolist(), b=b.tolist()).replace(group=torch.arange(12) // 4)
    before = torch.tensor(advantages(batch, over_batch=False))
    after = torch.tensor(advantages(batch))
    assert torch.equal(before.argsort(), after.argsort())
    assert float(after.mean()) == pytest.approx(0, abs=1e-6)
    assert float(after.std()) == pytest.approx(1, abs=1e-3)


def test_a_gated_reward_is_paid_where_the_gate_is_open() -> None:
    method = vantage.method("gdpo", gated="short", gate="right", threshold=1.0)
    batch = rewards(right=[1.0, 0.5, 1.0, 0.0], short=[0.7, 0.7, -1.0, 1.0]).replace(
        reward=torch.zeros(4, 1), terminated=torch.ones(4, 1, dtype=torch.bool)
    )
    paid = method.rewards[0](batch, context())
    assert paid.rewards["short"].tolist() == pytest.approx([0.7, 0.0, -1.0, 0.0])
    assert batch.rewards["short"].tolist() == pytest.approx([0.7, 0.7, -1.0, 1.0])
    with pytest.raises(UserError, match=r"'lenght', which no verifier gives; did you mean length"):
        vantage.method("gdpo", gated="lenght", gate="right").rewards[0](
            rewards(right=[1.0, 1.0], length=[1.0, 2.0]), context()
        )
    with pytest.raises(UserError, match="go together"):
        vantage.method("gdpo", gated="short")
    with pytest.raises(UserError, match=r"eps=-1\.0"):
        vantage.method("gdpo", eps_std=-1.0)


def test_a_gated_reward_is_missing_where_it_or_its_gate_is() -> None:
    nan = float("nan")
    gate = vantage.method("gdpo", gated="short", gate="right").rewards[0]
    batch = rewards(right=[1.0, nan, 0.0, 1.0, 0.0], short=[0.7, 0.7, nan, nan, 0.7])
    paid = gate(batch, context()).rewards["short"]
    torch.testing.assert_close(paid, torch.tensor([0.7, nan, nan, nan, 0.0]), equal_nan=True)


class TwoRewards(ToyTask):
    """Right symbols, and a reward a hundred times smaller for rows that use their whole length."""

    def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
        right = (batch.action == (batch.prompt % SYMBOLS).unsqueeze(-1)) & batch.mask
        return {"right": right.float().sum(-1) / STEPS, "whole": 0.01 * (batch.length == STEPS).float()}


def test_it_learns_the_toy_and_hears_the_small_reward() -> None:
    task = TwoRewards()
    task.size = 6
    settings: dict[str, Any] = {
        "prompts": 6,
        "group_size": 8,
        "lr": 3e-2,
        "lr_schedule": "constant",
        "lr_warmup": 0,
        "beta": 0.0,
    }
    assert gain(vantage.method("gdpo", **settings), 40) > 0.3
    assert gain(vantage.method("gdpo", **settings), 40, task=task) > 0.3


def test_random_groups_have_no_gradient_in_the_advantage() -> None:
    batch = random_batch(8, 4, size=4)
    batch = batch.replace(rewards={"a": batch.score})
    assert not Decoupled()(batch, SimpleNamespace(record=lambda *a, **k: None)).requires_grad


@pytest.mark.parametrize("size", [1, 4])
def test_without_an_epsilon_equal_rewards_and_groups_of_one_give_zero(size: int) -> None:
    equal = {"a": torch.full((8,), 0.7), "b": torch.full((8,), 0.1)}
    batch = random_batch(8, 3).replace(rewards=equal, group=torch.arange(8) // size)
    for over_batch in (True, False):
        found = Decoupled(eps=0.0, over_batch=over_batch)(batch, context())
        assert torch.equal(found, torch.zeros(8, 3))
