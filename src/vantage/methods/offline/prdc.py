"""PRDC: TD3 with the actor regularised towards the action of the nearest state-action pair in the data. (S098)

Regularised towards the data's action in the same state, a policy cannot use actions from states nearby. PRDC's anchor is the
action of the nearest neighbour of (beta s, pi(s)) among all keys (beta s_i, a_i), Euclidean:

    lam  = alpha / mean |Q1(s, pi(s))|         loss = -lam * mean Q1(s, pi(s)) + mean (pi(s) - a_nn)^2

The search carries no gradient. beta -> infinity is TD3+BC (of which this page replaces one component); beta = 0 ignores the
state. The authors' alpha / beta are 40 / 2 (half-cheetah), 2.5 / 2 (hopper, walker) and 7.5 / 7.5 (antmaze, where rewards are
10000 r - 1), given in each command; the defaults are their parser's. States are standardised before the tree is built. On equal
distances any neighbour may be taken. Order of steps and start as in TD3+BC here. arXiv 2306.06569, equations 5 to 8.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.annotations import at_least
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.errors import require
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


@component
class Neighbour:
    """Anchor: the action of the stored transition whose (beta * state, action) is nearest to (beta * s, pi(s)).

    The tree is built once, from the engine's table, and searched for a whole minibatch at a time, on the CPU.

    Attributes:
        beta: weight of the state, at least 0.
    """

    beta: Annotated[float, at_least(0)] = 1.0
    _tree: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Rebuilt from the data when a run is resumed, so it is not saved."""

    def prepare(self, context: Context) -> None:
        """Build the tree of the data."""
        table: Trajectories = context.engine.table  # type: ignore[attr-defined]
        self.index(table.observation[:, 0], table.action[:, 0])

    def index(self, states: Tensor, actions: Tensor) -> None:
        """Build the tree of pairs [M, D], [M, A]."""
        spatial = require("scipy.spatial", "offline")
        keys = torch.cat([self.beta * states, actions], -1).cpu().numpy()
        self._tree.update(tree=spatial.cKDTree(keys), actions=actions)

    def __call__(self, action: Tensor, batch: Trajectories, context: Context) -> Tensor:
        """Return the neighbours' actions [N, 1, A]."""
        query = torch.cat([self.beta * batch.observation, action], -1)
        _, nearest = self._tree["tree"].query(query[:, 0].detach().cpu().numpy())
        actions: Tensor = self._tree["actions"]
        return actions[torch.from_numpy(nearest).to(actions.device)].unsqueeze(1)


@method(id="S098", papers=PAPER, base=td3_bc, without=("pull",), source="LAMDA-RL/PRDC@9f38464 README.md")
def prdc(base: Method, alpha: float = 2.5, beta: float = 1.0) -> Method:
    """beta: weight of the state in the distance, 0 ignores it."""
    return base.replace(objective=AnchoredGradient(alpha, Neighbour(beta)))


claim = Claim(
    arena="offline-point",
    against="td3-bc",
    settings={"beta": 2.0},
    note="The authors: state of the art on locomotion and navigation. Data: random walks with a tenth of good episodes.",
)
