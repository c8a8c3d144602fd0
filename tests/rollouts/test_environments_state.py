"""An engine that was saved and loaded goes on bit for bit; one that cannot says so."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")
import gymnasium

from tests.rollouts.environment_tools import Counter, context_for, policy_for
from vantage.core.trajectories import Trajectories
from vantage.policies.control import ControlPolicy
from vantage.rollouts import env_state
from vantage.rollouts.environments import EnvironmentEngine
from vantage.tasks.control import grid

grid.register()

CLASSIC = ["CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1", "Acrobot-v1"]
TEXT = ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4", "vantage/Grid-v0"]
MUJOCO = [
    "Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "HumanoidStandup-v5", "Swimmer-v5", "Reacher-v5",
    "Pusher-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5",
]  # fmt: skip


def through_a_file(state: Any) -> Any:
    """Write and read as a checkpoint does: nothing but tensors and plain values may pass."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def make(env_id: str, limit: int, **options: Any) -> tuple[EnvironmentEngine, ControlPolicy]:
    env = gymnasium.make(env_id, disable_env_checker=True)
    continuous = isinstance(env.action_space, gymnasium.spaces.Box)
    given = {"max_episode_steps": limit} if limit else {}
    engine = EnvironmentEngine(env_id, seed=3, options=given, normalize_rewards=continuous, **options)
    return engine, policy_for(env, normalize_observations=continuous, seed=1)


def assert_same(first: Trajectories, second: Trajectories) -> None:
    assert set(first) == set(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def check(env_id: str, rows: int, limit: int = 0, steps: int = 23, **options: Any) -> None:
    engine, policy = make(env_id, limit, **options)
    context = context_for(policy, engine, seed=5)
    engine.advance(rows, steps, context)
    saved = through_a_file(
        {"engine": engine.state_dict(), "policy": policy.state_dict(), "random": context.generator.get_state()}
    )
    context.metrics.collect()
    expected = [engine.advance(rows, steps, context) for _ in range(2)]
    recorded = context.metrics.collect()

    other, fresh = make(env_id, limit, **options)
    fresh.load_state_dict(saved["policy"])
    other.load_state_dict(saved["engine"])
    context = context_for(fresh, other)
    context.generator.set_state(saved["random"])
    assert_same_states(other.state_dict(), saved["engine"])
    for batch in expected:
        assert_same(other.advance(rows, steps, context), batch)
    assert context.metrics.collect() == recorded
    assert other.resume_notes == []
    assert_same_states(other.state_dict(), engine.state_dict())


def assert_same_states(first: Any, second: Any) -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same_states(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, another in zip(first, second, strict=True):
            assert_same_states(one, another)
    else:
        assert first == second


@pytest.mark.parametrize("env_id", CLASSIC)
@pytest.mark.parametrize("limit", [0, 15])
def test_classic_control(env_id: str, limit: int) -> None:
    check(env_id, rows=3, limit=limit)


@pytest.mark.parametrize("env_id", TEXT)
def test_toy_text(env_id: str) -> None:
    check(env_id, rows=3)


@pytest.mark.parametrize(("env_id", "rows"), [("CartPole-v1", 8), ("vantage/Grid-v0", 9)])
def test_native_vector_versions(env_id: str, rows: int) -> None:
    check(env_id, rows=rows, limit=13)


@pytest.mark.parametrize("env_id", MUJOCO)
def test_mujoco(env_id: str) -> None:
    pytest.importorskip("mujoco")
    check(env_id, rows=2, limit=31, steps=47)


def test_saved_before_the_first_step() -> None:
    engine, policy = make("CartPole-v1", 0)
    other, _ = make("CartPole-v1", 0)
    other.load_state_dict(through_a_file(engine.state_dict()))
    first = engine.advance(2, 9, context_for(policy, engine))
    assert_same(other.advance(2, 9, context_for(policy, other)), first)


class Hidden(Counter):
    """Keeps its state to itself."""


def test_an_environment_that_cannot_be_saved_is_reset_and_it_is_said() -> None:
    envs: list[Hidden] = []

    def make_hidden() -> Hidden:
        envs.append(Hidden())
        return envs[-1]

    engine, policy = EnvironmentEngine(make_hidden, seed=1), policy_for(Counter())
    context = context_for(policy, engine)
    engine.advance(2, 4, context)
    state = through_a_file(engine.state_dict())
    assert state["envs"] is None
    others = [EnvironmentEngine(make_hidden, seed=1) for _ in range(2)]
    for other in others:
        with pytest.warns(UserWarning, match="Hidden has no state_dict: the 2 environments begin new episodes"):
            other.load_state_dict(state)
        assert len(other.resume_notes) == 1
    batches = [other.advance(2, 4, context_for(policy, other)) for other in others]
    assert_same(batches[0], batches[1])
    assert batches[0].observation[0, 0].tolist() == [0, 0]
    assert str(int(batches[0].prompt[0])) in others[0].resume_notes[0]
    # The seeds are others than at the start, and others again after a further stop.
    again = EnvironmentEngine(make_hidden, seed=1)
    with pytest.warns(UserWarning, match="begin new episodes"):
        again.load_state_dict(through_a_file(others[0].state_dict()))
    third = again.advance(2, 4, context_for(policy, again))
    assert len({tuple(one.tolist()) for one in (torch.tensor(engine._seeds), batches[0].prompt, third.prompt)}) == 3


def test_a_wrapper_with_a_state_of_its_own() -> None:
    class Remembers(gymnasium.Wrapper):
        count = 0

        def step(self, action: Any) -> Any:
            self.count += 1
            return self.env.step(action)

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count, "inner": env_state.save(self.env)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]
            env_state.load(self.env, state["inner"])

    env, other = (Remembers(gymnasium.make("CartPole-v1")) for _ in range(2))
    env.reset(seed=0)
    env.step(0)
    other.reset(seed=9)
    env_state.load(other, through_a_file(env_state.save(env)))
    assert other.count == 1
    np.testing.assert_array_equal(env.step(1)[0], other.step(1)[0])


def test_wrappers_that_hide_their_state_are_named() -> None:
    stacked = gymnasium.wrappers.FrameStackObservation(gymnasium.make("CartPole-v1"), 2)
    stacked.reset(seed=0)
    with pytest.raises(env_state.CannotSave, match="the wrapper FrameStackObservation keeps a state"):
        env_state.save(stacked)

    class Mine(gymnasium.Wrapper):
        pass

    with pytest.raises(env_state.CannotSave, match="the wrapper Mine has no state_dict"):
        env_state.save(Mine(gymnasium.make("CartPole-v1")))


def test_stateless_wrappers_pass() -> None:
    def wrapped() -> gymnasium.Env:
        return gymnasium.wrappers.RescaleAction(gymnasium.make("Pendulum-v1"), -1.0, 1.0)

    env, other = wrapped(), wrapped()
    env.reset(seed=0), other.reset(seed=1)
    env_state.load(other, through_a_file(env_state.save(env)))
    action = np.array([0.3], np.float32)
    for _ in range(250):
        one, another = env.step(action), other.step(action)
        np.testing.assert_array_equal(one[0], another[0])
        if one[3]:
            assert another[3]
            np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


def test_states_of_another_make_are_refused() -> None:
    env, other = gymnasium.make("CartPole-v1"), gymnasium.make("Acrobot-v1")
    env.reset(seed=0)
    with pytest.raises(env_state.CannotSave, match="of CartPoleEnv, the environment is AcrobotEnv"):
        env_state.load(other, env_state.save(env))
    with pytest.raises(env_state.CannotSave, match="has a wrapper TimeLimit, the environment CartPoleEnv"):
        env_state.load(env.unwrapped, env_state.save(env))


@pytest.mark.parametrize(
    "value",
    [
        1, -(2**80), 2.5, True, None, "text", [1, (2, 3)], {"a": {"b": 2**70}},
        np.float64(0.1), np.int32(7), np.bool_(True), np.arange(6, dtype=np.uint8).reshape(2, 3), np.array(3.5),
    ],
    ids=repr,
)  # fmt: skip
def test_values_come_back_as_they_were(value: Any) -> None:
    back = env_state.decode(through_a_file(env_state.encode(value)))
    assert type(back) is type(value)
    assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value


def test_other_values_are_refused() -> None:
    with pytest.raises(env_state.CannotSave, match="type object cannot be saved"):
        env_state.encode({"a": [object()]})
