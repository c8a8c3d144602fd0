"""Methods of peer libraries in a comparison: the same environment, budget and evaluation, their own code.

A peer is an arm like any other: `vantage compare ppo sb3-ppo --arena cartpole`. Its settings have the peer's names. The extra
`peers` installs the libraries; no result of theirs is stored in this package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vantage.core.errors import UserError, nearest, require
from vantage.study.evaluation import Evaluator, task_of

if TYPE_CHECKING:
    from vantage.study.jobs import Job, Reporter


@dataclass(frozen=True)
class StableBaselinesPPO:
    """Settings of Stable-Baselines3's PPO, under its names and with its defaults; its loss differs in two places.

    Its value loss is the mean squared error without the usual factor 1/2: `vf_coef` is half of others' for the same loss. Its
    value clipping has no maximum with the unclipped error: `clip_range_vf` differs from PPO's.

    Attributes:
        anneal: decrease the learning rate linearly to 0.
        normalize: normalise observations and scale rewards (`VecNormalize`).
        hidden: widths of the actor's and of the critic's hidden layers.
    """

    n_envs: int = 1
    n_steps: int = 2048
    batch_size: int = 64
    n_epochs: int = 10
    learning_rate: float = 3e-4
    anneal: bool = False
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    clip_range_vf: float | None = None
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = None
    normalize: bool = False
    hidden: tuple[int, ...] = (64, 64)


class _Actor:
    """Adapter of a Stable-Baselines3 policy for evaluations: from raw observations to the environment's actions."""

    training = True

    def __init__(self, model: Any, normalizer: Any) -> None:
        self.model, self.normalizer = model, normalizer

    def act(self, observation: np.ndarray, *, deterministic: bool = True, generator: Any = None) -> np.ndarray:
        """Return actions for observations [n, ...]; the statistics of a normaliser do not change."""
        seen = observation if self.normalizer is None else self.normalizer.normalize_obs(observation)
        return np.asarray(self.model.predict(seen, deterministic=deterministic)[0])

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Return the policy's parameters."""
        found: Iterator[torch.nn.Parameter] = self.model.policy.parameters()
        return found

    def train(self, mode: bool = True) -> None:
        """Do nothing: the library sets the mode itself."""


def sb3_ppo(job: Job, report: Reporter) -> float:
    """Run Stable-Baselines3's PPO in a control arena.

    Raises:
        UserError: the arena is not a control arena, or its budget is less than one rollout.
        ImportError: Stable-Baselines3 is not installed.
    """
    require("stable_baselines3", "peers")
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    from vantage.tasks.control.task import make

    torch.set_num_threads(1)
    if job.arena.field != "control":
        raise UserError(f"sb3-ppo runs in control arenas, not in {job.arena.name!r} ({job.arena.field})")
    settings = StableBaselinesPPO(**job.settings)
    task = task_of(job.arena)
    envs: Any = DummyVecEnv([lambda: make(task.env_id, task.env_options) for _ in range(settings.n_envs)])
    normalizer = (
        VecNormalize(envs, clip_obs=10.0, clip_reward=10.0, gamma=settings.gamma) if settings.normalize else None
    )
    own = asdict(settings)
    for name in ("n_envs", "anneal", "normalize", "hidden", "learning_rate"):
        own.pop(name)
    rate = settings.learning_rate
    model = PPO(
        "MlpPolicy",
        normalizer or envs,
        learning_rate=(lambda left: left * rate) if settings.anneal else rate,
        policy_kwargs={"net_arch": {"pi": list(settings.hidden), "vf": list(settings.hidden)}},
        seed=job.seed,
        device="cpu",
        **own,
    )
    rollout = settings.n_envs * settings.n_steps
    total = int(job.arena.budget.size // rollout) * rollout
    if not total:
        raise UserError(f"the budget of {job.arena.budget.size:g} steps is less than one rollout of {rollout}")
    evaluator = Evaluator(job.arena, task, _Actor(model, normalizer), job.seed, report)
    generator = torch.Generator()
    evaluator(0.0, generator)

    class Listener(BaseCallback):
        """Evaluates between an update and the next rollout."""

        def _on_rollout_start(self) -> None:
            spent = float(self.num_timesteps)
            report.progress(spent)
            if evaluator.due(spent):
                evaluator(spent, generator)

        def _on_step(self) -> bool:
            return True

    model.learn(total, callback=Listener())
    if evaluator.last < total:
        evaluator(float(total), generator)
    return evaluator.score


@dataclass(frozen=True)
class Peer:
    """Method of a peer library.

    Args:
        name: name on the command line.
        function: "module:function" that runs a job.
        settings: its settings and their defaults.
        field: field of its arenas.
        description: one line for a reader.
    """

    name: str
    function: str
    settings: Mapping[str, Any]
    field: str
    description: str

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse unknown settings.

        Raises:
            UserError: a setting is not known; the message has the nearest ones.
        """
        for name in settings:
            if name not in self.settings:
                raise UserError(
                    f"{self.name} has no setting {name!r}{nearest(name, self.settings)}"
                    f" (settings: {', '.join(self.settings)})"
                )


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "sb3-ppo",
            "vantage.study.peers:sb3_ppo",
            {f.name: f.default for f in fields(StableBaselinesPPO)},
            "control",
            "PPO of Stable-Baselines3",
        ),
    )
}
