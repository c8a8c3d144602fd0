"""T-PPO: the numbers of its card."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import STEPS, ToyPolicy
from tests.harness import context
from tests.methods.family import of_episodes
from tests.methods.toys import assert_resumes, gain, trainer
from tests.reference import Case, cases
from vantage.advantages.estimators import GAE
from vantage.core import Trajectories, UserError
from vantage.methods import registry
from vantage.methods.credit.t_ppo import OutcomeCritic


class Told:
    """A policy whose values are given."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def values(self, batch: Trajectories) -> tuple[torch.Tensor, torch.Tensor]:
        following = torch.cat([self.value[:, 1:], torch.full_like(self.value[:, :1], 7.0)], 1)
        return self.value, torch.where(batch.terminated, 0.0, following)


def row(value: list[float], reward: float | None) -> tuple[Trajectories, Any]:
    """One answer; without a reward it was cut."""
    count = len(value)
    last = (torch.arange(count) == count - 1).unsqueeze(0)
    batch = Trajectories(
        {
            "mask": torch.ones(1, count, dtype=torch.bool),
            "length": torch.tensor([count]),
            "reward": last * float(reward or 0.0),
            "terminated": last & (reward is not None),
            "truncated": last & (reward is None),
        }
    )
    return batch, context(policy=Told(torch.tensor([value])))


def advantage(value: list[float], reward: float | None, lam: float, gamma: float = 1.0) -> list[float]:
    batch, where = row(value, reward)
    return GAE(gamma, lam)(OutcomeCritic()(batch, where), where).advantage[0].tolist()


def test_worked_advantages_at_a_cut() -> None:
    assert advantage([0.2, 0.5, 0.4], None, lam=1.0) == pytest.approx([0.2, -0.1, 0.0])
    assert advantage([0.2, 0.5, 0.4], None, lam=0.0) == pytest.approx([0.3, -0.1, 0.0])
    # At an end the outcome enters.
    assert advantage([0.2, 0.5, 0.4], 1.0, lam=1.0) == pytest.approx([0.8, 0.5, 0.6])


def test_a_critic_that_knows_nothing_moves_finished_answers_alone() -> None:
    assert advantage([0.0] * 4, None, lam=0.9) == [0.0] * 4
    assert advantage([0.0] * 3, 1.0, lam=0.5) == pytest.approx([0.25, 0.5, 1.0])


def watched(method: vantage.Method, steps: int) -> tuple[Any, list[Trajectories]]:
    seen: list[Trajectories] = []
    run = trainer(method, steps)
    run.context.method = run.context.method.replace(selection=(lambda b, c: seen.append(b) or b,))
    run.run()
    return run, seen


SETTINGS: dict[str, Any] = {"rows": 24, "window": 2, "lr": 3e-2, "critic_lr": 3e-2}


def test_each_token_is_learnt_from_once_under_the_policy_that_made_it() -> None:
    _, seen = watched(vantage.method("t-ppo", **SETTINGS), 6)
    resumed = 0
    for before, now in itertools.pairwise(seen):
        held = before.select(~before.ended)
        assert len(now) == 24
        # Unfinished answers stand first, whole, with the tokens and log-probabilities that they had.
        part = now[: len(held)]
        inside = torch.arange(STEPS) < held.length.unsqueeze(1)
        assert torch.equal(part.prompt, held.prompt)
        assert torch.equal(part.action[inside], held.action[inside])
        assert torch.equal(part.logp_old[inside], held.logp_old[inside])
        # New tokens only, at most a window of them.
        assert not (part.mask & inside).any()
        assert (part.mask.sum(1) == part.length - held.length).all()
        assert (part.mask.sum(1) <= 2).all()
        assert (now[len(held) :].mask.sum(1) == now[len(held) :].length).all()
        resumed += len(held)
    assert resumed > 20


def test_outcomes_count_where_the_answer_ended_and_nowhere_else() -> None:
    _, seen = watched(vantage.method("t-ppo", **SETTINGS), 4)
    for batch in seen:
        ended = batch.terminated.any(1)
        assert torch.equal(ended, batch.ended)
        inside = torch.arange(STEPS) < batch.length.unsqueeze(1)
        said_so = ((batch.action == 0) & inside).any(1)
        assert torch.equal(ended, said_so | (batch.length == STEPS))
        assert batch.score[~ended].abs().sum() == 0
        assert torch.isnan(batch.rewards["right"][~ended]).all()
        assert not torch.isnan(batch.rewards["right"][ended]).any()
        assert torch.equal(batch.truncated.any(1), ~ended)


def test_a_window_as_long_as_the_answer_is_ppo() -> None:
    _, seen = watched(vantage.method("t-ppo", rows=12, window=STEPS, lr=1e-2), 2)
    for batch in seen:
        assert batch.ended.all()
        assert torch.equal(batch.mask.sum(1), batch.length)


def test_decoding_time_is_the_longest_new_segment_of_each_step() -> None:
    run, seen = watched(vantage.method("t-ppo", **SETTINGS), 5)
    expected = sum(int(batch.mask.sum(1).max()) for batch in seen)
    plan = run.context.method.rollout
    assert int(plan.state_dict()["time"]) == expected <= 10
    twin = vantage.method("t-ppo", **SETTINGS).rollout
    twin.load_state_dict(plan.state_dict())
    assert twin.state_dict()["time"] == expected


def test_the_critic_is_taught_by_whole_answers_that_ended() -> None:
    run = trainer(vantage.method("t-ppo", rows=4, window=2, critic_lr=0.2), 1)
    policy: ToyPolicy = run.context.policy
    critic = run.context.method.values
    run.step()
    last = torch.arange(STEPS) == 3
    batch = Trajectories(
        {
            "action": torch.ones(2, STEPS, dtype=torch.int64),
            "prompt": torch.tensor([1, 2]),
            "observation": torch.full((2,), -1),
            "mask": torch.tensor([[False, False, True, True]] * 2),
            "length": torch.tensor([4, 4]),
            "reward": last.float().expand(2, -1) * torch.tensor([[1.0], [5.0]]),
            "terminated": last.expand(2, -1) & torch.tensor([[True], [False]]),
            "truncated": last.expand(2, -1) & torch.tensor([[False], [True]]),
            "ended": torch.tensor([True, False]),
            "score": torch.tensor([1.0, 0.0]),
        }
    )
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    critic.fit(batch.select(torch.tensor([1])), run.context)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    for _ in range(120):
        critic.fit(batch, run.context)
    value = policy.evaluate(batch, frozenset({"value"})).value
    # All four tokens of the first row aim at its outcome; the second row's 5 is unknown.
    assert value[0].tolist() == pytest.approx([1.0] * 4, abs=0.25)
    changed = [name for name, value in policy.state_dict().items() if not torch.equal(before[name], value)]
    assert changed == ["critic"]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"Windows\.length=0"):
        vantage.method("t-ppo", window=0)


def test_it_learns_and_resumes_with_its_unfinished_answers(tmp_path) -> None:
    assert gain(vantage.method("t-ppo", **{**SETTINGS, "rows": 48, "epochs": 2}), 60) > 0.2
    assert_resumes(tmp_path, vantage.method("t-ppo", **SETTINGS))


@cases("t-ppo")
def test_advantage_is_verls_over_a_tools_tokens_too(case: Case) -> None:
    made = registry.page("t-ppo").make({"lam": case.settings["lam"]})
    found = made.advantage(of_episodes(case), context())
    case.check("advantages", found.advantage)
