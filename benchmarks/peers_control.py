"""The peers of `control.py`: Stable-Baselines3's PPO, and PPO written out in one file in CleanRL's manner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def stable_baselines3_ppo(
    envs: int, steps: int, warm_up: int, seconds: float, watch: Callable[[], Any]
) -> dict[str, Any]:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Clock(BaseCallback):  # type: ignore[misc]
        """Starts at a rollout's beginning after the warm-up, stops at one when the time is over."""

        def __init__(self) -> None:
            super().__init__()
            self.rollouts, self.first = 0, 0
            self.watch: Any = None
            self.result: dict[str, Any] = {}

        def _on_rollout_start(self) -> None:
            if self.rollouts == warm_up:
                self.watch, self.first = watch(), self.num_timesteps
            self.rollouts += 1
            if self.rollouts > warm_up + 1 and self.watch.busy() >= seconds and not self.result:
                self.result = {**self.watch.read(), "steps": self.num_timesteps - self.first}

        def _on_step(self) -> bool:
            return not self.result

    clock = Clock()
    PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=envs, seed=0),
        n_steps=steps,
        batch_size=envs * steps // 4,
        n_epochs=4,
        learning_rate=lambda left: 2.5e-4 * left,
        gamma=0.99,
        gae_lambda=0.95,
        clip_range=0.2,
        clip_range_vf=0.2,
        ent_coef=0.01,
        vf_coef=0.5,
        max_grad_norm=0.5,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
        device="cpu",
        seed=0,
        verbose=0,
    ).learn(10_000 * envs * steps, callback=clock)
    return clock.result


def one_file_ppo(envs: int, steps: int, warm_up: int, seconds: float, watch: Callable[[], Any]) -> dict[str, Any]:
    import gymnasium
    import numpy as np
    import torch
    from torch import nn
    from torch.distributions import Categorical

    def layer(inputs: int, outputs: int, gain: float = 2.0**0.5) -> nn.Linear:
        made = nn.Linear(inputs, outputs)
        nn.init.orthogonal_(made.weight, gain)
        nn.init.constant_(made.bias, 0.0)
        return made

    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.critic = nn.Sequential(layer(4, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, 1.0))
            self.actor = nn.Sequential(layer(4, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 2, 0.01))

        def value(self, x: torch.Tensor) -> torch.Tensor:
            return self.critic(x)

        def act(self, x: torch.Tensor, action: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
            head = Categorical(logits=self.actor(x))
            action = head.sample() if action is None else action
            return action, head.log_prob(action), head.entropy(), self.critic(x)

    def make() -> gymnasium.Env:
        return gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1"))

    torch.manual_seed(0)
    vector = gymnasium.vector.SyncVectorEnv([make] * envs)
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4, eps=1e-5)
    iterations, size = 10_000, envs * steps
    shape = (steps, envs)
    seen, actions, logps = torch.zeros(*shape, 4), torch.zeros(shape), torch.zeros(shape)
    rewards, ends, values = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    now = torch.tensor(vector.reset(seed=0)[0])
    over = torch.zeros(envs)
    timer, done = watch(), 0
    for iteration in range(iterations):
        if iteration == warm_up:
            timer = watch()
        elif iteration > warm_up and timer.busy() >= seconds:
            break
        optimizer.param_groups[0]["lr"] = 2.5e-4 * (1 - iteration / iterations)
        for t in range(steps):
            seen[t], ends[t] = now, over
            with torch.no_grad():
                action, logp, _, value = agent.act(now)
            values[t], actions[t], logps[t] = value.flatten(), action, logp
            following, reward, terminated, truncated, _ = vector.step(action.numpy())
            rewards[t] = torch.tensor(reward)
            now, over = torch.Tensor(following), torch.Tensor(np.logical_or(terminated, truncated))
        # A copy resets in the step after its end; such steps do not count.
        done += int(size - ends.sum()) if iteration >= warm_up else 0
        with torch.no_grad():
            last = agent.value(now).reshape(-1)
            advantages, carried = torch.zeros(shape), torch.zeros(envs)
            for t in reversed(range(steps)):
                alive = 1.0 - (over if t == steps - 1 else ends[t + 1])
                after = last if t == steps - 1 else values[t + 1]
                delta = rewards[t] + 0.99 * after * alive - values[t]
                advantages[t] = carried = delta + 0.99 * 0.95 * alive * carried
            returns = advantages + values
        flat = [x.reshape(size, *x.shape[2:]) for x in (seen, actions, logps, advantages, returns, values)]
        order = np.arange(size)
        for _ in range(4):
            np.random.shuffle(order)  # noqa: NPY002 - as the scripts do
            for begin in range(0, size, size // 4):
                part = order[begin : begin + size // 4]
                x, action, logp_old, advantage, target, value_old = (column[part] for column in flat)
                _, logp, entropy, value = agent.act(x, action.long())
                ratio = (logp - logp_old).exp()
                with torch.no_grad():
                    ((ratio - 1) - (logp - logp_old)).mean()
                    ((ratio - 1.0).abs() > 0.2).float().mean().item()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy_loss = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 0.8, 1.2)).mean()
                value = value.view(-1)
                clipped = value_old + torch.clamp(value - value_old, -0.2, 0.2)
                value_loss = 0.5 * torch.max((value - target) ** 2, (clipped - target) ** 2).mean()
                loss = policy_loss - 0.01 * entropy.mean() + 0.5 * value_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
    return {"steps": done, **timer.read()}
