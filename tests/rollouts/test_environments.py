"""The environment engine: what a batch holds, where it bootstraps, and that it depends on its seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")
import gymnasium
from gymnasium import spaces

from tests.rollouts.environment_tools import Counter, Echo, context_for, policy_for
from vantage.core.errors import UserError
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.control import ControlPolicy
from vantage.rollouts.environments import EnvironmentEngine

WANT = frozenset({"logp"})


def counted(
    rows: int, steps: int, calls: int = 1, values: bool = True
) -> tuple[list[Trajectories], ControlPolicy, list]:
    envs: list[Counter] = []

    def make() -> Counter:
        envs.append(Counter())
        return envs[-1]

    engine = EnvironmentEngine(make)
    policy = policy_for(Counter())
    context = context_for(policy, engine, values=values)
    batches = [engine.advance(rows, steps, context) for _ in range(calls)]
    return batches, policy, [context, envs]


def test_a_stream_goes_through_episode_ends() -> None:
    ((batch,), policy, _) = counted(rows=2, steps=7)
    # Episodes of 3 (ends), 2 (cut), 4 (ends) steps.
    assert batch.observation[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert batch.reward[0].tolist() == [1, 2, 3, 11, 12, 21, 22]
    assert batch.terminated[0].tolist() == [False, False, True, False, False, False, False]
    assert batch.truncated[0].tolist() == [False, False, False, False, True, False, False]
    assert batch.mask.all()
    assert batch.length.tolist() == [7, 7]
    assert batch.last_observation.tolist() == [[2, 2]] * 2
    assert batch.final_observation.tolist() == [[[1, 2]]] * 2
    assert batch.group.tolist() == [0, 1]
    assert batch.observation.dtype == batch.reward.dtype == batch.logp_old.dtype == torch.float32
    torch.testing.assert_close(policy.evaluate(batch, WANT).logp, batch.logp_old)


def test_streams_go_on_from_call_to_call() -> None:
    whole = counted(rows=2, steps=12)[0][0]
    parts, _, (_, envs) = counted(rows=2, steps=4, calls=3)
    for name in ("observation", "reward", "terminated", "truncated"):
        assert torch.equal(torch.cat([part[name] for part in parts], 1), whole[name])
    assert not any(env.stepped_after_end for env in envs)
    # One seed at the start, none afterwards: the generators go on.
    assert all(env.seeds[0] is not None and set(env.seeds[1:]) == {None} for env in envs)
    assert len({env.seeds[0] for env in envs}) == 2


def test_several_cuts_in_a_row_are_laid_out_in_order() -> None:
    ((batch,), policy, _) = counted(rows=1, steps=40)
    cuts = int((batch.truncated & ~batch.terminated).sum())
    assert cuts == 6
    assert batch.final_observation.shape == (1, cuts, 2)
    assert batch.final_observation[0, :, 0].tolist() == [1, 3, 5, 7, 9, 11]
    value, next_value = policy.values(batch)
    torch.testing.assert_close(next_value[batch.truncated], policy.value_of(batch.final_observation[0]).detach())
    going = ~(batch.truncated | batch.terminated)[:, :-1]
    torch.testing.assert_close(next_value[:, :-1][going], value[:, 1:][going])
    torch.testing.assert_close(next_value[:, -1], policy.value_of(batch.last_observation).detach())


def test_bootstrap_columns_come_only_where_values_do() -> None:
    ((batch,), _, _) = counted(rows=1, steps=5, values=False)
    assert "last_observation" not in batch
    assert "final_observation" not in batch


def test_episodes_are_recorded_in_their_own_reward() -> None:
    _, _, (context, _) = counted(rows=2, steps=4)
    # Only the first episode (1 + 2 + 3 over 3 steps) has ended, in both rows.
    assert context.metrics.collect() == {"episode/return": 6.0, "episode/length": 3.0, "episode/count": 2.0}
    _, _, (context, _) = counted(rows=1, steps=4, calls=3)
    # 12 steps: episodes 0 to 3 (6; 11 + 12; 21 + ... + 24; 31 + 32 + 33) of 3 + 2 + 4 + 3 steps.
    metrics = context.metrics.collect()
    assert metrics["episode/return"] == pytest.approx((6 + 23 + 90 + 96) / 4)
    assert metrics["episode/length"] == pytest.approx(3.0)
    assert metrics["episode/count"] == 4.0  # of all three calls


def test_whole_episodes_from_given_seeds() -> None:
    engine = EnvironmentEngine("CartPole-v1")
    policy = policy_for(gymnasium.make("CartPole-v1"))
    context = context_for(policy, engine)
    prompts = Prompts(torch.tensor([7, 11]), [7, 11])
    batch = engine.sample(prompts, 3, context)
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.prompt.tolist() == [7, 7, 7, 11, 11, 11]
    for row, seed in zip(range(6), (7, 7, 7, 11, 11, 11), strict=True):
        start, _ = gymnasium.make("CartPole-v1").reset(seed=seed)
        np.testing.assert_array_equal(batch.observation[row, 0], start)
    assert batch.length.max() == batch.steps
    positions = torch.arange(batch.steps)
    assert torch.equal(batch.mask, positions < batch.length[:, None])
    last = batch.terminated.float().argmax(1) + 1
    assert torch.equal(last, batch.length)
    assert (batch.reward.sum(1) == batch.length).all()
    assert (batch.observation[~batch.mask] == 0).all()
    torch.testing.assert_close(policy.evaluate(batch, WANT).logp[batch.mask], batch.logp_old[batch.mask])
    assert context.metrics.collect()["episode/length"] == pytest.approx(batch.length.float().mean().item())
    # Replaying the actions from the seed gives the rewards and the final observation.
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=11)
    for action in batch.action[4][batch.mask[4]].tolist():
        seen, *_ = env.step(action)
    np.testing.assert_array_equal(batch.last_observation[4], seen)


def test_episodes_that_are_cut_bootstrap() -> None:
    engine = EnvironmentEngine("Pendulum-v1", options={"max_episode_steps": 5})
    policy = policy_for(gymnasium.make("Pendulum-v1"))
    batch = engine.sample(Prompts(torch.arange(2), [0, 1]), 1, context_for(policy, engine))
    assert batch.steps == 5
    assert batch.truncated[:, -1].all()
    _, next_value = policy.values(batch)
    torch.testing.assert_close(next_value[:, -1], policy.value_of(batch.last_observation).detach())


def test_episodes_without_a_limit_of_their_own_are_cut() -> None:
    engine = EnvironmentEngine(lambda: Counter(lengths=(10**9,)), max_episode_steps=70)
    policy = policy_for(Counter())
    batch = engine.sample(Prompts(torch.arange(1), [0]), 2, context_for(policy, engine))
    assert batch.steps == 70
    assert batch.truncated[:, -1].all()
    assert batch.final_observation.tolist() == [[[0, 70]], [[0, 70]]]


@pytest.mark.parametrize(("rows", "backend"), [(4, "auto"), (4, "vector"), (16, "auto")])
def test_the_batch_follows_from_the_seed(rows: int, backend: str) -> None:
    def run(seed: int, draw: int) -> Trajectories:
        engine = EnvironmentEngine("CartPole-v1", seed=seed, backend=backend)
        policy = policy_for(gymnasium.make("CartPole-v1"), seed=1)
        context = context_for(policy, engine, seed=draw)
        return [engine.advance(rows, 50, context) for _ in range(2)][-1]

    first, second = run(0, 0), run(0, 0)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert not torch.equal(first.observation[:, 0], run(1, 0).observation[:, 0])
    assert not torch.equal(first.action, run(0, 1).action)


def test_a_native_vector_version_resets_late_and_outside_the_mask() -> None:
    engine = EnvironmentEngine("CartPole-v1", backend="vector", options={"max_episode_steps": 12})
    policy = policy_for(gymnasium.make("CartPole-v1"))
    context = context_for(policy, engine)
    batches = [engine.advance(8, 25, context) for _ in range(4)]
    joined = {name: torch.cat([batch[name] for batch in batches], 1) for name in ("mask", "terminated", "truncated")}
    over = joined["terminated"] | joined["truncated"]
    assert over.any()
    assert joined["truncated"].any()
    assert torch.equal(joined["mask"][:, 1:], ~over[:, :-1])
    assert joined["mask"][:, 0].all()
    reward = torch.cat([batch.reward for batch in batches], 1)
    assert torch.equal(reward, joined["mask"].float())
    assert not (over & ~joined["mask"]).any()
    # Where an episode is cut, the next state in the row is the true one: it has its value.
    batch = batches[0]
    assert "final_observation" not in batch
    value, next_value = policy.values(batch)
    assert torch.equal(next_value[:, :-1], value[:, 1:])
    # The state after a reset is a start again, and the one before it is not.
    observation = torch.cat([batch.observation for batch in batches], 1)
    starts = ~joined["mask"][:, :-1]
    assert (observation[:, 1:][starts].abs() <= 0.05).all()
    assert (observation[:, :-1][starts].abs().amax(-1) > 0.05).float().mean() > 0.8
    length = context.metrics.collect()
    assert length["episode/length"] == pytest.approx(length["episode/return"])
    assert length["episode/length"] <= 12


def test_a_native_version_has_the_same_dynamics() -> None:
    engine = EnvironmentEngine("CartPole-v1", backend="vector")
    policy = policy_for(gymnasium.make("CartPole-v1"))
    batch = engine.advance(8, 9, context_for(policy, engine))
    env = gymnasium.make("CartPole-v1").unwrapped
    for row in range(8):
        env.reset(seed=0)
        env.state = batch.observation[row, 0].double().numpy()
        for t in range(int(batch.terminated[row].float().argmax()) or 8):
            seen, *_ = env.step(int(batch.action[row, t]))
            if t + 1 < 9:
                np.testing.assert_allclose(batch.observation[row, t + 1], seen, atol=1e-5)


def test_vector_versions_are_taken_from_eight_copies_on() -> None:
    policy = policy_for(gymnasium.make("CartPole-v1"))
    for rows, expected in ((7, False), (8, True)):
        engine = EnvironmentEngine("CartPole-v1")
        batch = engine.advance(rows, 3, context_for(policy, engine))
        assert ("final_observation" not in batch) is expected


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(3),
        spaces.Box(-0.01, 0.02, (2,)),
        spaces.Box(np.array([[-1.0], [0.5]]), np.array([[1.0], [np.inf]]), dtype=np.float64),
    ],
    ids=str,
)
def test_environments_get_actions_of_their_space(space: spaces.Space) -> None:
    envs: list[Echo] = []

    def make() -> Echo:
        envs.append(Echo(space))
        return envs[-1]

    engine = EnvironmentEngine(make)
    policy = policy_for(Echo(space))
    context = context_for(policy, engine)
    batch = engine.advance(3, 20, context)
    torch.testing.assert_close(policy.evaluate(batch, WANT).logp, batch.logp_old)
    engine.sample(Prompts(torch.arange(2), [0, 1]), 2, context)
    if isinstance(space, spaces.Box):
        # What is stored is what was drawn; what was heard is cut to the bounds.
        drawn, heard = batch.action[0].numpy(), np.stack(envs[0].heard[:20]).reshape(20, -1)
        np.testing.assert_array_equal(np.clip(drawn, space.low.ravel(), space.high.ravel()), heard)
        assert (drawn != heard).any()


@pytest.mark.parametrize("kind", ["MountainCarContinuous-v0", "FrozenLake-v1", "Acrobot-v1", "Taxi-v4"])
def test_other_environments_run(kind: str) -> None:
    env = gymnasium.make(kind)
    engine, policy = EnvironmentEngine(kind), policy_for(env)
    context = context_for(policy, engine)
    batch = engine.advance(3, 30, context)
    value, next_value = policy.values(batch)
    assert value.shape == next_value.shape == (3, 30)
    assert torch.isfinite(policy.evaluate(batch, frozenset({"logp", "entropy"})).entropy).all()


def test_images_run() -> None:
    class Pictures(gymnasium.Env):
        observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
        action_space = spaces.Discrete(3)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
            super().reset(seed=seed)
            return self.np_random.integers(256, size=(4, 84, 84), dtype=np.uint8), {}

        def step(self, action: int) -> tuple:
            return self.np_random.integers(256, size=(4, 84, 84), dtype=np.uint8), 1.0, False, action == 0, {}

    engine, policy = EnvironmentEngine(Pictures), policy_for(Pictures(), hidden=(16,))
    batch = engine.advance(2, 6, context_for(policy, engine))
    assert batch.observation.dtype == batch.last_observation.dtype == torch.uint8
    torch.testing.assert_close(policy.evaluate(batch, WANT).logp, batch.logp_old, atol=1e-5, rtol=1e-5)
    assert policy.values(batch)[1].shape == (2, 6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_policy_on_another_device() -> None:
    batches = {}
    for device in ("cpu", "cuda"):
        engine = EnvironmentEngine("Pendulum-v1", normalize_rewards=True)
        policy = policy_for(gymnasium.make("Pendulum-v1"), normalize_observations=True, seed=1).to(device)
        context = context_for(policy, engine)
        batches[device] = [engine.advance(3, 30, context) for _ in range(2)][-1]
        assert batches[device].device.type == device
        value, next_value = policy.values(batches[device])
        assert value.device.type == next_value.device.type == device
        assert policy.normalizer is not None
        batches[device + "-count"] = policy.normalizer.count.cpu()
    for name in batches["cpu"]:
        torch.testing.assert_close(batches["cuda"][name].cpu(), batches["cpu"][name], atol=1e-3, rtol=1e-3)
    assert batches["cuda-count"] == batches["cpu-count"]


def test_bad_input_is_refused() -> None:
    policy = policy_for(Counter())
    with pytest.raises(UserError, match="backend='vectr' is not known; did you mean vector"):
        EnvironmentEngine("CartPole-v1", backend="vectr")
    with pytest.raises(UserError, match="needs the id of an environment"):
        EnvironmentEngine(Counter, backend="vector")
    with pytest.raises(UserError, match=r"gamma=1.5 is out of range"):
        EnvironmentEngine("CartPole-v1", gamma=1.5)
    with pytest.raises(UserError, match="max_episode_steps=0 is out of range"):
        EnvironmentEngine("CartPole-v1", max_episode_steps=0)
    engine = EnvironmentEngine("Acrobot-v1", backend="vector")
    with pytest.raises(UserError, match="Acrobot-v1 has no vector version"):
        engine.advance(2, 2, context_for(policy, engine))
    engine = EnvironmentEngine("CartPol-v1")
    with pytest.raises(UserError, match="unknown environment 'CartPol-v1'; did you mean CartPole-v1"):
        engine.advance(2, 2, context_for(policy, engine))
    engine = EnvironmentEngine(Counter)
    context = context_for(policy, engine)
    engine.advance(2, 2, context)
    with pytest.raises(UserError, match="rows=3: this engine has 2 streams"):
        engine.advance(3, 2, context)
    stranger = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match="run by a ControlPolicy, not by Linear"):
        engine.advance(2, 2, context_for(stranger, engine))  # type: ignore[arg-type]
