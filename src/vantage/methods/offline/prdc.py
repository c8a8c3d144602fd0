"""PRDC: the actor is held near the action of the closest state and action in the whole data set. (S098)

Held to the action that the data took in the same state, a policy cannot use what worked in a state nearby. PRDC's anchor is the
action of the nearest neighbour of (beta s, pi(s)) among all keys (beta s_i, a_i), Euclidean:

    lam  = alpha / mean |Q1(s, pi(s))|         loss = -lam * mean Q1(s, pi(s)) + mean (pi(s) - a_nn)^2

The search carries no gradient. beta -> infinity is TD3+BC (whose one part this page replaces); beta = 0 ignores the
state. The authors' alpha / beta are 40 / 2, 2.5 / 2 and 7.5 / 7.5 by data set; the defaults are their script's. States are
standardised before the tree is built. On equal distances any neighbour may be taken. arXiv 2306.06569, equations 5 to 8.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import UserError, require
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories
from vantage.methods.claim import Claim
from vantage.methods.offline.td3_bc import td3_bc
from vantage.methods.registry import Paper, method
from vantage.objectives.deterministic import AnchoredGradient

PAPER = Paper(
    "Policy Regularization with Dataset Constraint for Offline Reinforcement Learning",
    "Yuhang Ran and Yi-Chen Li and Fuxiang Zhang and Zongzhang Zhang and Yang Yu",
    2023,
    arxiv="2306.06569",
)


@dataclass(frozen=True)
class Neighbour:
    """Anchor: the action of the stored transition whose (beta * state, action) is nearest to (beta * s, pi(s)).

    The tree is built once, from the engine's table, and searched for a whole minibatch at a time, on the CPU.

    Attributes:
        beta: weight of the state, at least 0.
    """

    beta: float = 1.0
    _memory: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise UserError(f"Neighbour.beta={self.beta} is out of range: at least 0")

    def prepare(self, context: Context) -> None:
        """Build the tree of the data."""
        table: Trajectories = context.engine.table  # type: ignore[attr-defined]
        self.index(table.observation[:, 0], table.action[:, 0])

    def index(self, states: Tensor, actions: Tensor) -> None:
        """Build the tree of pairs [M, D], [M, A]."""
        spatial = require("scipy.spatial", "offline")
        keys = torch.cat([self.beta * states, actions], -1).cpu().numpy()
        self._memory.update(tree=spatial.cKDTree(keys), actions=actions)

    def __call__(self, action: Tensor, batch: Trajectories, context: Context) -> Tensor:
        """Return the neighbours' actions [N, 1, A]."""
        query = torch.cat([self.beta * batch.observation, action], -1)
        _, nearest = self._memory["tree"].query(query[:, 0].detach().cpu().numpy())
        actions: Tensor = self._memory["actions"]
        return actions[torch.from_numpy(nearest).to(actions.device)].unsqueeze(1)


@method(id="S098", papers=PAPER)
def prdc(
    rows: int = 256,
    lr: float = 3e-4,
    alpha: float = 2.5,
    beta: float = 1.0,
    gamma: float = 0.99,
    tau: float = 0.005,
    noise: float = 0.2,
    every: int = 2,
) -> Method:
    """Compose PRDC."""
    return td3_bc(rows, lr, alpha, gamma=gamma, tau=tau, noise=noise, every=every).replace(
        objective=AnchoredGradient(alpha, Neighbour(beta))
    )


claim = Claim(
    arena="offline-point",
    against="td3-bc",
    settings={"beta": 2.0},
    note="The authors: state of the art on locomotion and navigation. Data: random walks with a tenth of good episodes.",
)
