"""Behaviour cloning: imitates the recorded actions.

    loss = -mean log N(a; pi(s), 1)   =   mean |pi(s) - a|^2 / 2 + const

on recorded transitions, without their rewards: the baseline of every method for offline reinforcement learning. A
deterministic actor whose mean is pi(s) has unit variance in the loss. Pomerleau 1989; the settings are those of CORL's runs on all
data (its class's default clones the best tenth of the episodes, its other set of runs). Its loss is the mean over coordinates too:
for A of them the gradient here is A / 2 times as large, which Adam does not see.
"""

from __future__ import annotations

from vantage.core.method import Method
from vantage.methods.registry import Paper, method
from vantage.objectives.likelihood import NegativeLogLikelihood, NoCredit
from vantage.rollouts.offline import Transitions
from vantage.rollouts.plans import Shuffled
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam

PAPER = Paper(
    "ALVINN: An Autonomous Land Vehicle in a Neural Network", "Dean A. Pomerleau", 1989, venue="Advances in Neural Information"
    " Processing Systems 1",
)  # fmt: skip


@method(
    papers=PAPER, needs="transitions",
    source="tinkoff-ai/CORL@6afec90 configs/offline/bc/hopper/medium_v2.yaml",
)  # fmt: skip
def bc(rows: int = 256, lr: float = 3e-4) -> Method:
    """rows: transitions a step; lr: Adam's."""
    return Method(
        prompts=Shuffled(),
        rollout=Transitions(rows),
        rewards=(),
        values=None,
        advantage=NoCredit(),
        objective=NegativeLogLikelihood(),
        update=GradientUpdate(optimizer=Adam(lr), unit="row", max_grad_norm=None),
    )
