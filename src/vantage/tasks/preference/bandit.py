"""Contextual bandits with preference pairs, rewards or games, evaluated exactly.

A row is one decision: an arm, in a context. Two kinds of task share policy and engine:

    preference   arms have true rewards; pairs of arms are labelled by Bradley and Terry's model. With `features` the policy
                 is linear in features that arms share, so that pairs of some arms change the probabilities of all others.
    game         arms are compared by a matrix that no reward explains; the score of a row is its win rate in its group.

Evaluations are exact: they use the policy's probabilities.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from vantage.core import between, component
from vantage.core.checkpoint import load_tensors, save_tensors, write_atomically
from vantage.core.context import Context
from vantage.core.errors import UserError, nearest
from vantage.core.protocols import Evaluation, Prompts
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_index
from vantage.rewards.specs import build, parse
from vantage.tasks.preference import game


class ArmPolicy(nn.Module):
    """Softmax policy over arms [X, A]: a table of logits, or features [X, A, D] times one weight vector; initially uniform.

    Args:
        contexts, arms: X and A.
        features: None for the table.
    """

    memoryless = True

    def __init__(self, contexts: int, arms: int, features: Tensor | None = None) -> None:
        super().__init__()
        self.shape = (contexts, arms)
        self.weight = nn.Parameter(torch.zeros(contexts, arms) if features is None else torch.zeros(features.shape[-1]))
        self.critic = nn.Parameter(torch.zeros(contexts))
        self.features: Tensor | None
        self.register_buffer("features", features)
        self.temperature = 1.0

    def logits(self) -> Tensor:
        """Return the logits of all arms in all contexts [X, A]."""
        table = self.weight if self.features is None else self.features @ self.weight
        return table / self.temperature

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Evaluate arms `action` [N, 1] in contexts `observation` [N, 1]; `distribution` is the logits [N, 1, A]."""
        evaluation = Evaluation()
        logits = self.logits()[batch.observation]
        logs = logits.log_softmax(-1)
        if "logp" in want:
            evaluation.logp = logs.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        if "entropy" in want:
            evaluation.entropy = -(logs.exp() * logs).sum(-1)
        if "distribution" in want:
            evaluation.distribution = logits
        if "value" in want:
            evaluation.value = self.critic[batch.observation]
        return evaluation

    @torch.no_grad()
    def values(self, batch: Trajectories) -> tuple[Tensor, Tensor]:
        """Return (value, 0) [N, 1]: a row is one decision."""
        value = self.critic[batch.observation]
        return value, torch.zeros_like(value)

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the contexts' values."""
        return [self.critic]

    def frozen(self) -> ArmPolicy:
        """Return a frozen copy."""
        return copy.deepcopy(self).requires_grad_(False)

    def save(self, folder: Any) -> None:
        """Write weights and shape."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self.state_dict(), folder / "model.safetensors")
        write_atomically(folder / "config.json", json.dumps({"shape": self.shape}).encode())


class ArmEngine:
    """Engine that samples arms and reads the task's stored pairs."""

    max_length = 1

    def __init__(self, task: ArmTask, policy: ArmPolicy) -> None:
        self.task, self.policy = task, policy

    @torch.no_grad()
    def sample(self, prompts: Prompts, count: int, context: Context, *, greedy: bool = False) -> Trajectories:
        """Sample `count` arms for each prompt."""
        rows = len(prompts) * count
        device = self.policy.weight.device
        place = self.task.context_of(prompts.ids).to(device).repeat_interleave(count)
        logs = self.policy.logits().log_softmax(-1)[place]
        if greedy:
            action = logs.argmax(-1)
        else:
            # Gumbel-max trick, with the run's own random numbers on any device.
            noise = torch.rand(logs.shape, generator=context.generator).clamp(min=1e-20)
            action = (logs - (-noise.log()).log().to(device)).argmax(-1)
        logp = logs.gather(-1, action.unsqueeze(-1))
        group = torch.arange(rows, device=device) // count
        return _rows(place, action, group, prompts.ids.to(device).repeat_interleave(count)).replace(logp_old=logp)

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Sample an arm for each of the next `rows` prompts: an episode is one decision, whatever `steps`."""
        return self.sample(context.next_prompts(rows), 1, context)

    def read(self, ids: Tensor, context: Context) -> Trajectories:
        """Return the stored pairs with these ids [B] as 2 B rows, the chosen arm first."""
        device = self.policy.weight.device
        both = self.task.pairs[ids].reshape(-1).to(device)
        twice = ids.to(device).repeat_interleave(2)
        place = self.task.context_of(ids).to(device).repeat_interleave(2)
        group = torch.arange(len(ids), device=device).repeat_interleave(2)
        found = _rows(place, both, group, twice)
        return found.replace(rewards={})

    def state_dict(self) -> dict[str, Any]:
        """Return no state: random numbers are the run's."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing: there is no state."""


def _rows(place: Tensor, action: Tensor, group: Tensor, prompt: Tensor) -> Trajectories:
    one = torch.ones(len(place), 1, dtype=torch.bool, device=place.device)
    return Trajectories(
        {
            "observation": place.unsqueeze(-1),
            "action": action.unsqueeze(-1),
            "mask": one,
            "length": one.long().squeeze(-1),
            "group": group,
            "prompt": prompt,
            "terminated": one,
            "truncated": ~one,
        }
    )


class ArmTask:
    """Task of a contextual bandit with stored pairs.

    Args:
        name: as on the command line.
        matrix: probability [X, A, A] that one arm is preferred to another.
        rewards: true rewards [X, A]; None for a game.
        features: of the policy [X, A, D]; None for a table.
        pairs: number of stored pairs, sampled among the first `covered` arms of each context.
        covered: see `pairs`; 2 to the number of arms.
        noise: standard deviation of an observed reward.
        beta: weight of the KL terms of the regularised game in an evaluation.
        seed: seed of the pairs.
    """

    default_steps = 200

    def __init__(
        self, name: str, matrix: Tensor, rewards: Tensor | None, features: Tensor | None, *, pairs: int, covered: int,
        noise: float = 0.0, beta: float = 0.05, seed: int = 0,
    ) -> None:  # fmt: skip
        self.name, self.matrix, self.rewards, self.features = name, matrix.float(), rewards, features
        self.noise, self.beta = noise, beta
        self.contexts, self.arms = matrix.shape[:2]
        if not 2 <= covered <= self.arms:
            raise UserError(f"task {name}: covered={covered} is out of range: 2 to {self.arms} arms")
        if pairs < 1:
            raise UserError(f"task {name}: pairs={pairs} is out of range: at least 1")
        self.size = pairs
        generator = torch.Generator().manual_seed(seed)
        one = torch.randint(covered, (pairs,), generator=generator)
        other = (one + 1 + torch.randint(covered - 1, (pairs,), generator=generator)) % covered
        chance = matrix[self.context_of(torch.arange(pairs)), one, other]
        first = torch.rand(pairs, generator=generator) < chance
        self.pairs = torch.stack([torch.where(first, one, other), torch.where(first, other, one)], 1)
        """[M, 2] the chosen and the rejected arm of each stored pair."""

    def context_of(self, ids: Tensor) -> Tensor:
        """Return the context of prompts [B]: the id modulo the number of contexts."""
        return ids % self.contexts

    def prompts(self, ids: Tensor) -> Prompts:
        """Return prompts by id; the item is the context's number."""
        return Prompts(ids, self.context_of(ids).tolist())

    def score(self, batch: Trajectories, context: Context) -> dict[str, Tensor]:
        """Return the observed reward [N]; in a game the win rate against the group's other rows.

        Where every row is a group of its own, the win rate is against uniform arms.
        """
        place, arm = batch.observation[:, 0], batch.action[:, 0]
        if self.rewards is not None:
            drawn = torch.randn(len(batch), generator=context.generator) if self.noise else torch.zeros(len(batch))
            return {"reward": self.rewards.to(place.device)[place, arm] + self.noise * drawn.to(place.device)}
        matrix = self.matrix.to(place.device)
        index, groups = group_index(batch.group)
        if groups == len(batch):
            return {"win": matrix[place, arm].mean(-1)}
        # Counts of each arm per group; a row's own choice, worth 1/2 against itself, is subtracted.
        chosen = matrix.new_zeros(groups, self.arms).index_put_((index, arm), matrix.new_ones(()), accumulate=True)
        wins = (matrix[place, arm] * chosen[index]).sum(-1) - 0.5
        return {"win": wins / (chosen.sum(-1) - 1).clamp(min=1)[index]}

    def prefer(self, first: Trajectories, second: Trajectories, context: Context) -> Tensor:
        """Return the probability [N] that row i of the first batch is preferred to row i of the second."""
        matrix = self.matrix.to(first.device)
        return matrix[first.observation[:, 0], first.action[:, 0], second.action[:, 0]]

    @torch.no_grad()
    def evaluate(self, policy: ArmPolicy, *, samples: int, seed: int) -> dict[str, float]:
        """Evaluate the policy exactly; `samples` and `seed` have no effect.

        Returns:
            `reward`, the mean true reward, and `regret`, the best arms' mean less it, where arms have rewards; `kl`, in nats,
            to the uniform policy; and of the game at `beta` the `exploitability` and `win`, the rate against uniform arms.
        """
        logp = policy.logits().log_softmax(-1).double().cpu()
        uniform = torch.full_like(logp, 1.0 / self.arms).log()
        matrix = self.matrix.double()
        metrics = {}
        if self.rewards is not None:
            mean = (logp.exp() * self.rewards.double()).sum(-1)
            metrics["reward"] = float(mean.mean())
            metrics["regret"] = float((self.rewards.double().amax(-1) - mean).mean())
        metrics["kl"] = max(0.0, float(game.divergence(logp, uniform).mean()))
        metrics["exploitability"] = float(game.exploitability(matrix, logp, uniform, self.beta).mean())
        metrics["win"] = float((logp.exp() * game.win_rate(matrix, uniform)).sum(-1).mean())
        return metrics

    def make_policy(self, model: str | Path = "", seed: int = 0) -> ArmPolicy:
        """Return the uniform policy, or the saved one in the folder `model`.

        Raises:
            UserError: the folder holds no policy, or one for other arms.
        """
        policy = ArmPolicy(self.contexts, self.arms, self.features)
        if model:
            path = Path(model) / "model.safetensors"
            if not path.is_file():
                raise UserError(f"there is no policy of arms in {model}")
            weights = load_tensors(path)
            own = policy.state_dict()
            if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own.items()}:
                raise UserError(f"the policy in {model} is for other arms or contexts than {self.name} has")
            policy.load_state_dict(weights)
        return policy

    def make_engine(self, policy: ArmPolicy, seed: int = 0) -> ArmEngine:
        """Return an engine that samples the policy's arms."""
        return ArmEngine(self, policy)


@component(label="preference")
class Preference:
    """Settings of `preference:...`: arms with true rewards, standard normal times `scale`.

    Attributes:
        arms, contexts: number of each.
        features: dimension of the shared features in which rewards are linear; 0 for a table.
        pairs: number of stored pairs.
        covered: number of arms of each context from which pairs are sampled; 0 for all.
        trap: with features: the last arm of each context has `trap` times the features of the best covered one, and the
            lowest reward; 0 for no such arm. A reward that is fitted to pairs without it overestimates it.
        noise: standard deviation of the noise of an observed reward.
        scale: standard deviation of true rewards.
        seed: seed of rewards, features and pairs.
    """

    arms: Annotated[int, between(2, 100_000)] = 20
    contexts: Annotated[int, between(1, 10_000_000)] = 20
    features: Annotated[int, between(0, 100_000)] = 0
    pairs: int = 2000
    covered: int = 0
    trap: float = 0.0
    noise: float = 0.0
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trap and not self.features:
            raise UserError(
                "preference: trap needs features: in a table, pairs of other arms do not change an arm's logit"
            )

    def __call__(self, name: str) -> ArmTask:
        """Make the task."""
        covered = self.covered or self.arms
        generator = torch.Generator().manual_seed(self.seed)
        known: Tensor | None = None
        if self.features:
            known = torch.randn(self.contexts, self.arms, self.features, generator=generator) / self.features**0.5
            rewards = self.scale * (known @ torch.randn(self.features, generator=generator))
            if self.trap:
                best = rewards[:, : min(covered, self.arms - 1)].argmax(-1)
                known[:, -1] = self.trap * known[torch.arange(self.contexts), best]
                rewards[:, -1] = rewards[:, :-1].amin(-1) - self.scale
        else:
            rewards = self.scale * torch.randn(self.contexts, self.arms, generator=generator)
        matrix = torch.sigmoid(rewards.unsqueeze(-1) - rewards.unsqueeze(-2))
        return ArmTask(
            name, matrix, rewards, known, pairs=self.pairs, covered=covered, noise=self.noise, seed=self.seed + 1
        )


@component(label="game")
class Play:
    """Settings of `game:...`: random intransitive games, evaluated with the KL divergence to uniform arms at weight `beta`.

    Attributes:
        arms, games: number of each.
        beta: weight of the KL divergence, above 0.
        scale: standard deviation of the preferences' logits.
        pairs: number of stored pairs.
        seed: seed of games and pairs.
    """

    arms: Annotated[int, between(2, 10_000)] = 100
    games: Annotated[int, between(1, 100_000)] = 20
    beta: float = 0.05
    scale: float = 1.0
    pairs: int = 2000
    seed: int = 0

    def __call__(self, name: str) -> ArmTask:
        """Make the task."""
        matrix = game.random_game(self.arms, self.games, self.seed, self.scale)
        return ArmTask(
            name, matrix, None, None, pairs=self.pairs, covered=self.arms, beta=self.beta, seed=self.seed + 1
        )


WORLDS: dict[str, Callable[..., Callable[[str], ArmTask]]] = {"preference": Preference, "game": Play}


def task_from_spec(spec: str, options: Mapping[str, Any] | None = None) -> ArmTask:
    """Make the task of `preference:arms=20,features=4` or `game:arms=100`."""
    name, settings = parse("task", spec, WORLDS, {})
    known = [each.name for each in fields(WORLDS[name])]  # type: ignore[arg-type]
    for key, value in dict(options or {}).items():
        if key not in known:
            raise UserError(f"task {name}: no option {key!r}{nearest(key, known)} (options: {', '.join(known)})")
        settings[key] = str(value)
    made: ArmTask = build("task", name, WORLDS[name], settings)(spec)
    return made
