"""The control task: names, spaces, budgets, evaluation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")
import gymnasium

from vantage.core.errors import UserError
from vantage.policies.control import ControlPolicy
from vantage.policies.spaces import Actions, Observations
from vantage.tasks.control.task import EVALUATION, SHORT_NAMES, ControlTask, task_from_spec
from vantage.tasks.registry import make_task


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_short_names(name: str) -> None:
    if name in ("hopper", "halfcheetah"):
        pytest.importorskip("mujoco")
    task = make_task(name)
    assert task.env_id == SHORT_NAMES[name]
    assert task.size == 0
    continuous = task.actions.kind == "continuous"
    assert continuous == (name in ("pendulum", "hopper", "halfcheetah", "two-goals", "detour"))
    # The usual settings of continuous control come with it.
    policy = task.make_policy(seed=0)
    assert (policy.normalizer is not None) == task.make_engine(policy).normalize_rewards == continuous


@pytest.mark.parametrize(
    ("spec", "env_id", "env_options", "gamma"),
    [
        ("gym:Acrobot-v1", "Acrobot-v1", {}, None),
        ("Acrobot-v1", "Acrobot-v1", {}, None),
        ("cartpole:max_episode_steps=100,gamma=0.9", "CartPole-v1", {"max_episode_steps": 100}, 0.9),
        ("gym:FrozenLake-v1,is_slippery=false", "FrozenLake-v1", {"is_slippery": False}, None),
        ("grid:size=5,slip=0.25", "vantage/Grid-v0", {"size": 5, "slip": 0.25}, None),
    ],
)
def test_specifications(spec: str, env_id: str, env_options: dict, gamma: float | None) -> None:
    task = make_task(spec)
    assert task.env_id == env_id
    assert task.env_options == env_options
    assert task.engine_options.get("gamma") == gamma


def test_options_reach_policy_engine_and_environment() -> None:
    options = {"hidden": (8,), "normalize_observations": True, "backend": "vector", "max_episode_steps": 30}
    task = ControlTask("cartpole", **options)
    policy = task.make_policy(seed=0)
    assert policy.actor.linears[0].out_features == 8
    assert policy.normalizer is not None
    engine = task.make_engine(policy, seed=4)
    assert (engine.backend, engine.seed, engine.options) == ("vector", 4, {"max_episode_steps": 30})
    assert task.episode_limit == 30
    assert task.make_policy(seed=0, hidden=(4,)).actor.linears[0].out_features == 4


def test_prompts_are_seeds() -> None:
    prompts = ControlTask("cartpole").prompts(torch.tensor([4, 9]))
    assert list(prompts.items) == [4, 9]
    assert prompts.ids.tolist() == [4, 9]


def test_evaluation_is_of_the_policy_and_the_seed_alone() -> None:
    task = ControlTask("pendulum", max_episode_steps=20, stochastic_evaluation=True)
    policy = task.make_policy(seed=0)
    assert policy.normalizer is not None
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    first, second = (task.evaluate(policy, samples=5, seed=3) for _ in range(2))
    assert first == second
    assert first != task.evaluate(policy, samples=5, seed=4)
    assert set(first) == {"return", "return_std", "length", "return_sampled"}
    assert first["length"] == 20
    assert first["return_sampled"] != first["return"]
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())


def test_evaluation_counts_every_episode_once() -> None:
    # 7 episodes in 3 environments are the 7 episodes that 7 environments run.
    results = [ControlTask("cartpole", parallel=parallel) for parallel in (1, 3, 16)]
    policy = results[0].make_policy(seed=2)
    judged = [task.evaluate(policy, samples=7, seed=0) for task in results]
    assert judged[0] == judged[1] == judged[2]
    assert judged[0]["return"] == judged[0]["length"]


def test_evaluation_equals_playing_by_hand() -> None:
    task = ControlTask("acrobot", max_episode_steps=40)
    policy = task.make_policy(seed=1)
    returns, _ = task._play(policy, 2, 5, None)
    from vantage.rollouts.env_backends import seeds_of

    for expected, seed in zip(returns, seeds_of(5, 2, EVALUATION), strict=True):
        env = gymnasium.make("Acrobot-v1", max_episode_steps=40)
        seen, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action = int(policy.distribution_of(torch.from_numpy(seen)).mode)
            seen, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        assert total == expected


def test_a_saved_policy_comes_back(tmp_path: Path) -> None:
    task = ControlTask("cartpole")
    policy = task.make_policy(seed=3)
    policy.save(tmp_path)
    loaded = task.make_policy(model=tmp_path)
    assert task.evaluate(loaded, samples=3, seed=0) == task.evaluate(policy, samples=3, seed=0)
    with pytest.raises(UserError, match="made for other observations or actions than Acrobot-v1"):
        ControlTask("acrobot").make_policy(model=tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gym:CartPol-v1", "unknown environment 'CartPol-v1'; did you mean CartPole-v1"),
        ("gym:", "give the environment's id, as in gym:Hopper-v5"),
        ("gym:Blackjack-v1", r"task Blackjack-v1: observation space Tuple.* is not supported: Box, Discrete"),
        ("cartpole:wheels=3", r"CartPole-v1 does not take the options \{'wheels': 3\}"),
        ("cartpole:fast", "'fast' must be written name=value"),
        ("grid:size=1", r"grid: size=1 is out of range: at least 2"),
        ("grid:slip=2", r"grid: slip=2 is out of range: 0 to 1"),
    ],
)
def test_bad_specifications(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_from_spec(spec)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"Hopper-v5 needs a library .*pip install 'vantage\[control\]'"):
        ControlTask("hopper")
    monkeypatch.setitem(sys.modules, "ale_py", None)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"LunarLander-v3 needs a library .*pip install 'vantage\[control\]'"):
        ControlTask("LunarLander-v3")
    with pytest.raises(ImportError, match=r"vantage\[atari\]"):
        ControlTask("ALE/Pong-v5")


def test_any_policy_that_acts_can_be_evaluated() -> None:
    class Still:
        def act(self, observation: np.ndarray, *, deterministic: bool, generator: torch.Generator | None) -> np.ndarray:
            return np.zeros(len(observation), dtype=np.int64)

    judged = ControlTask("cartpole").evaluate(Still(), samples=4, seed=0)
    assert 7 < judged["return"] < 12


def test_spaces_are_those_of_the_environment() -> None:
    task = ControlTask("cartpole")
    assert task.observations == Observations("vector", (4,))
    assert task.actions == Actions("discrete", (), (2,), (0,))
    assert isinstance(task.make_policy(), ControlPolicy)
