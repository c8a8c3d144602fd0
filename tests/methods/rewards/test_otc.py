"""OTC: the numbers of its card."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import SYMBOLS, ToyTask
from tests.harness import context
from tests.methods.conversations import talk
from tests.methods.toys import assert_resumes, trainer
from vantage.advantages.groups import GroupStandardized
from vantage.core import Schedule, Trainer, Trajectories, UserError
from vantage.methods.rewards.otc import LeastCalls
from vantage.rewards.economy import CallEconomy, economy
from vantage.rollouts.continuation import last_turn
from vantage.tasks.registry import make_task

ROOT = math.sqrt(3) / 2


def batch(calls: list[int], score: list[float], group: list[int] | None = None) -> Trajectories:
    """Conversations with these numbers of calls."""
    made = talk([[2] * (count + 1) for count in calls])
    keys = torch.tensor(group or [0] * len(calls))
    return made.replace(score=torch.tensor(score), group=keys, prompt=keys + 40)


def grouped(**settings: Any) -> CallEconomy:
    return CallEconomy(least=LeastCalls(), **settings)


def scores(part: CallEconomy, rows: Trajectories) -> list[float]:
    return [round(value, 4) for value in part(rows, context()).score.tolist()]


def test_factor_without_a_group() -> None:
    found = economy(torch.tensor([0.0, 1.0, 2.0, 4.0, 1e6]), None, 4.0)
    assert found.tolist() == pytest.approx([1.0, 0.8660, 0.7071, 0.5, 0.0], abs=5e-5)


def test_factor_with_the_least_of_the_group() -> None:
    m = torch.tensor([1.0, 2.0, 3.0, 5.0])
    assert economy(m, torch.ones(4), 4.0).tolist() == pytest.approx([1.0, ROOT, 0.7071, 0.5], abs=5e-5)
    assert float(economy(torch.tensor(4.0), torch.tensor(2.0), 9.0)) == pytest.approx(ROOT)
    # Symmetric, largest at m = n, nothing where a right answer took none of the calls that the least one took.
    grid = torch.arange(1.0, 8.0)
    table = economy(grid.unsqueeze(1).expand(7, 7), grid.expand(7, 7), 4.0)
    torch.testing.assert_close(table, table.T)
    assert (table.argmax(0) == torch.arange(7)).all()
    assert table.diagonal().tolist() == pytest.approx([1.0] * 7)
    assert float(economy(torch.tensor(0.0), torch.tensor(3.0), 4.0)) == 0
    # n = 0: the cosine, 1 without a call.
    none = torch.zeros(4)
    assert economy(torch.tensor([0.0, 1.0, 2.0, 4.0]), none, 4.0).tolist() == pytest.approx(
        [1.0, ROOT, 0.7071, 0.5], abs=5e-5
    )


def test_calls_are_the_answers_of_the_environment() -> None:
    rows = batch([0, 3, 1], [1.0, 1.0, 1.0])
    found = grouped()(rows, context())
    assert found.calls.tolist() == last_turn(rows).tolist() == [0, 3, 1]


def test_right_answers_are_paid_by_the_least_of_their_group() -> None:
    rows = batch([2, 1, 3, 0, 2, 1], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0, 0, 0, 0, 1, 1])
    # The wrong answer without a call is no least; a group of failures has none, and earns nothing.
    assert scores(grouped(), rows) == [0.8660, 1.0, 0.7071, 0.0, 0.0, 0.0]
    assert scores(grouped(alpha=2.5), rows) == [2.1651, 2.5, 1.7678, 0.0, 0.0, 0.0]
    assert scores(CallEconomy(c=4.0), rows) == [
        0.7071,
        0.8660,
        round(math.cos(0.3 * math.pi), 4),
        0.0,
        0.0,
        0.0,
    ]
    found = grouped()(rows, context())
    last = torch.arange(rows.steps) == (rows.length - 1).unsqueeze(1)
    torch.testing.assert_close(found.reward[last], found.score)
    assert not found.reward[~last].any()


def test_equal_calls_are_plain_grpo_and_the_scale_cancels() -> None:
    rows = batch([2, 2, 2, 2], [1.0, 0.0, 1.0, 1.0])
    plain = GroupStandardized()(rows, context())
    torch.testing.assert_close(GroupStandardized()(grouped()(rows, context()), context()), plain)
    mixed = batch([2, 1, 3, 1], [1.0, 0.0, 1.0, 1.0])
    small, large = (GroupStandardized(eps=0.0)(CallEconomy(alpha=a)(mixed, context()), context()) for a in (1.0, 50.0))
    torch.testing.assert_close(small, large)


def test_the_least_ever_seen_is_kept() -> None:
    part = CallEconomy(least=LeastCalls(persist=True))
    assert scores(part, batch([1, 2], [1.0, 1.0])) == [1.0, 0.8660]
    assert scores(part, batch([2, 2], [1.0, 1.0])) == [0.8660, 0.8660]
    again = CallEconomy(least=LeastCalls(persist=True))
    again.least.load_state_dict(part.least.state_dict())
    assert scores(again, batch([3, 2], [1.0, 0.0])) == [0.7071, 0.0]
    # This step's own least counts at once, and failures teach nothing of it.
    assert scores(again, batch([0, 1], [0.0, 1.0])) == [0.0, 1.0]
    assert scores(again, batch([0, 1], [1.0, 1.0])) == [1.0, 0.8660]
    assert scores(CallEconomy(least=LeastCalls(persist=True)), batch([2, 2], [0.0, 0.0])) == [0.0, 0.0]


def test_a_score_below_zero_takes_no_factor() -> None:
    rows = batch([2, 1, 0, 3], [1.0, -1.0, 0.0, -0.5])
    # More calls must not make a failure less bad.
    assert scores(grouped(), rows) == [1.0, -1.0, 0.0, -0.5]
    assert scores(CallEconomy(alpha=2.0), rows) == [1.4142, -2.0, 0.0, -1.0]


def test_settings_out_of_range_are_refused() -> None:
    for settings, message in (
        ({"c": 0.0}, r"c=0\.0"),
        ({"alpha": -1.0}, r"alpha=-1\.0"),
    ):
        with pytest.raises(UserError, match=message):
            vantage.method("otc", **settings)


def in_turns(method: vantage.Method, seed: int = 0) -> vantage.Method:
    """The toy's rows as conversations: every second symbol begins a turn."""
    plan = method.rollout

    class Talk:
        prompts, size = plan.prompts, plan.size

        def __call__(self, where: Any) -> Trajectories:
            rows = plan(where)
            return rows.replace(turn=(torch.arange(rows.steps) // 2).expand(rows.mask.shape))

    return method.replace(rollout=Talk())


class FirstSymbol(ToyTask):
    """1 where the first symbol is right: what follows it costs a call and earns nothing."""

    def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
        return {"right": ((batch.action[:, 0] == batch.prompt % SYMBOLS) & batch.mask[:, 0]).float()}


def test_it_learns_to_need_fewer_calls() -> None:
    settings: dict[str, Any] = {"prompts": 6, "group_size": 16, "lr": 3e-2, "beta": 0.0}

    def calls_and_score(name: str) -> tuple[float, float]:
        run = trainer(in_turns(vantage.method(name, **settings)), 60, task=FirstSymbol())
        run.run()
        rows = run.context.verify(run.context.method.rollout(run.context))
        return float(last_turn(rows).float().mean()), float(rows.rewards["right"].mean())

    (economical, right), (plain, plainly_right) = calls_and_score("otc"), calls_and_score("grpo")
    assert economical < 0.5 * plain
    assert right > plainly_right - 0.1


def test_it_resumes(tmp_path: Any) -> None:
    assert_resumes(tmp_path, in_turns(vantage.method("otc", prompts=6, group_size=16, lr=3e-2, persist=True)))


@pytest.mark.parametrize("name", ["otc", "otc-ppo"])
def test_it_runs_on_conversations_of_a_language_model(name: str) -> None:
    pytest.importorskip("transformers")
    task = make_task("calculator:terms=2,digits=1", options={"max_new_tokens": 5, "evaluated": 4})
    task.score = lambda rows, where: {"correct": (rows.action[:, 0] % 2).float()}
    policy: Any = task.make_policy(seed=0)
    with torch.no_grad():  # untrained, it would seldom end a turn or ask
        policy.model.lm_head.weight[policy.stop_tokens[0]] += 0.3
    made = vantage.method(name, prompts=4, group_size=4, lr=1e-3, micro_batch=4)
    before = [p.clone() for p in policy.parameters()]
    history = Trainer(made, task, policy, task.make_engine(policy), Schedule(2), seed=1).run().history
    assert all(math.isfinite(value) for line in history for value in line.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=False))
