"""EnvPool and Atari, where their extras are installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch

pytest.importorskip("gymnasium")

from tests.rollouts.environment_tools import context_for
from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories
from vantage.policies.control import ControlPolicy
from vantage.rollouts.environments import EnvironmentEngine
from vantage.tasks.control.task import ControlTask

needs_envpool = pytest.mark.skipif(not find_spec("envpool"), reason="the extra 'envpool' is not installed")
needs_atari = pytest.mark.skipif(
    not (find_spec("ale_py") and find_spec("cv2")), reason="the extra 'atari' is not installed"
)


def run(
    task: ControlTask, rows: int, steps: int, **options: object
) -> tuple[Trajectories, ControlPolicy, EnvironmentEngine]:
    policy = task.make_policy(seed=0, **options)
    engine = task.make_engine(policy, seed=2)
    context = context_for(policy, engine)
    engine.advance(rows, steps, context)
    batch = engine.advance(rows, steps, context)
    value, next_value = policy.values(batch)
    assert value.shape == next_value.shape == (rows, steps)
    logp = policy.evaluate(batch, frozenset({"logp"})).logp
    torch.testing.assert_close(logp, batch.logp_old, atol=1e-4, rtol=1e-4)
    return batch, policy, engine


@needs_envpool
def test_envpool_resets_late_and_outside_the_mask() -> None:
    task = ControlTask("cartpole", backend="envpool", num_threads=1)
    batch, policy, engine = run(task, 4, 60)
    over = batch.terminated | batch.truncated
    assert over.any()
    assert torch.equal(batch.mask[:, 1:], ~over[:, :-1])
    assert torch.equal(batch.reward, batch.mask.float())
    with pytest.warns(UserWarning, match="EnvPool keeps its environments' states to itself"):
        task.make_engine(policy).load_state_dict(engine.state_dict())
    judged = task.evaluate(policy, samples=6, seed=0)
    assert judged["return"] == judged["length"] > 5
    assert judged == task.evaluate(policy, samples=6, seed=0)


@needs_envpool
def test_envpool_takes_continuous_actions() -> None:
    task = ControlTask("Pendulum-v1", backend="envpool", num_threads=1)
    batch, _, _ = run(task, 3, 50)
    assert batch.observation.abs().max() <= 10
    assert batch.action.shape == (3, 50, 1)


@needs_envpool
def test_envpool_names_what_it_lacks() -> None:
    with pytest.raises(UserError, match=r"EnvPool has no environment 'CartPol-v1'; did you mean .*CartPole-v1"):
        ControlTask("CartPol-v1", backend="envpool")
    with pytest.raises(UserError, match="does not take the options"):
        ControlTask("CartPole-v1", backend="envpool", wheels=3)


@needs_envpool
def test_atari_in_envpool() -> None:
    task = ControlTask("Pong-v5", backend="envpool", num_threads=1)
    batch, _, engine = run(task, 2, 8, hidden=(32,))
    assert batch.observation.shape == (2, 8, 4, 84, 84)
    assert batch.observation.dtype == torch.uint8
    assert engine.clip_rewards


@needs_atari
def test_atari() -> None:
    task = ControlTask("ALE/Breakout-v5")
    batch, policy, engine = run(task, 2, 40, hidden=(32,))
    assert batch.observation.shape == (2, 40, 4, 84, 84)
    assert batch.observation.dtype == torch.uint8
    assert engine.clip_rewards
    assert set(batch.reward.unique().tolist()) <= {-1.0, 0.0, 1.0}
    # The last three frames of an observation are the first three of the next.
    going = ~(batch.terminated | batch.truncated)[0, :-1]
    assert torch.equal(batch.observation[0, :-1, 1:][going], batch.observation[0, 1:, :-1][going])
    with pytest.warns(UserWarning, match="FrameStackObservation keeps a state that cannot be saved"):
        task.make_engine(policy).load_state_dict(engine.state_dict())


@needs_atari
def test_unknown_games_are_named() -> None:
    with pytest.raises(UserError, match="unknown environment 'ALE/Pongg-v5'; did you mean ALE/Pong-v5"):
        ControlTask("ALE/Pongg-v5")


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"pip install 'vantage\[envpool\]'"):
        ControlTask("CartPole-v1", backend="envpool")
