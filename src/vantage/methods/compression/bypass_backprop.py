"""Bypass back-propagation: masks drawn from a policy, whose means learn from the pruned model's loss. [S000]

Each unit of the model (an attention head with its key-value group, a feed-forward channel, a neuron) is kept with its own
probability s_i. The model is only ever run forward: K masks m^k on one mini-batch give losses L_k, and the means move by a
score-function estimate, then back onto the budget:

    delta <- (1 - 1/w) delta + (1/w) mean_k L_k                        (before use; the first delta is the first mean)
    g_i = 1 / (K - 1) * sum_k (L_k - delta) (m_i^k - s_i) / sqrt((s_i + e) (1 - s_i + e)) + mu (log(1 - s_i + e) - log(s_i + e))
    s <- projection of s - lr g onto {0 <= s <= 1, sum s <= keep * n}  (one budget over all layers of a pool)

At the end the most likely units are kept. As components this is REINFORCE on the task's policy over masks, a moving baseline, a
transform of the gradient and a projection after each step. The gradient of log-probability has s (1 - s) below where the authors'
code has the root: `RootScale` converts one into the other; whether the paper's text has the root was not checked. The weights of
`initial` in the task are the code's initialisation, on inputs of the whole network; there each layer sees what the layers before
it make when pruned by their first masks. The projection is exact here and bisected to 1e-3 there. A row whose loss is NaN is
left out; where all are, the means do not change, but the learning rate's schedule advances, which it does not there.

arXiv 2406.10576.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.annotations import at_least
from vantage.core.component import component, memory
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories
from vantage.functions.rows import per_decision
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import PolicyGradient
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Groups, Shuffled
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import SGD, Cosine

PAPER = Paper(
    "Bypass Back-propagation: Optimization-based Structural Pruning for Large Language Models via Policy Gradient",
    "Yuan Gao and Zujing Liu and Weizhong Zhang and Bo Du and Gui-Song Xia",
    2024,
    arxiv="2406.10576",
)
EPS = 1e-7


@component
class MovingBaseline:
    """Advantage (score - baseline) * K / (K - 1), the same for all decisions of a row; no gradient.

    The baseline is a moving average of the steps' mean scores over `window` steps, this step's included. Averaged over the rows of
    a mini-batch the advantage is a sum over its K masks, divided by K - 1. A row with a reward that is not a number gets 0.

    Attributes:
        window: w, at least 1.
        size: K, at least 2.
    """

    window: Annotated[int, at_least(1)] = 5
    size: Annotated[int, at_least(2)] = 2
    _state: dict[str, Tensor] = memory()

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage [N, T] and move the baseline."""
        score = batch.score
        valid = ~torch.isnan(score)
        if "rewards" in batch:
            for name in batch.rewards:
                valid = valid & ~torch.isnan(batch.rewards[name])
        mean = torch.where(valid, score, 0.0).sum() / valid.sum()
        held = self._state.get("baseline", score.new_tensor(torch.nan)).to(score.device)
        # The mean over no row is NaN: the baseline then does not change.
        moved = torch.where(held.isnan(), mean, (1 - 1 / self.window) * held + mean / self.window)
        self._state["baseline"] = torch.where(mean.isnan(), held, moved)
        context.record("baseline", self._state["baseline"])
        credit = torch.where(valid, score - self._state["baseline"], 0.0) * (self.size / (self.size - 1))
        return per_decision(credit, batch.mask)


@component
class RootScale:
    """Converts d/ds of log-probability into (m - s) / sqrt((s + e)(1 - s + e)), and adds the penalty's gradient.

    Attributes:
        penalty: mu; above 0 it drives the means towards 0 and 1.
    """

    penalty: float = 0.0

    def __call__(self, parameters: list[torch.nn.Parameter], context: Context) -> None:
        """Change the gradient of the means in place."""
        policy = _masks(context)
        s = policy.means().detach()
        grad = policy.mean.grad
        if grad is None:
            raise UserError("bypass-backprop: the means have no gradient; its objective must read log-probabilities")
        grad.mul_(s * (1 - s) / ((s + EPS) * (1 - s + EPS)).sqrt())
        if self.penalty:
            grad.add_((1 - s + EPS).log() - (s + EPS).log(), alpha=self.penalty)


@component
class OntoBudget:
    """After each step of the optimiser, moves the means to the nearest point of the budget."""

    every = "minibatch"
    needs = frozenset({"masks"})

    def __call__(self, context: Context) -> None:
        """Project, in place."""
        policy = _masks(context)
        policy.project()
        with torch.no_grad():
            context.record("means/undecided", ((policy.mean > 0.05) & (policy.mean < 0.95)).float().mean())


def _masks(context: Context) -> Any:
    policy: Any = context.policy
    if not hasattr(policy, "means") or not hasattr(policy, "project"):
        raise UserError(
            f"bypass-backprop learns the means of a policy over masks, which {type(policy).__name__} is not: train it on"
            " prune-digits or prune-text"
        )
    return policy


@method(
    id="S000", papers=PAPER, needs=("episodes", "masks"),
    source="ethanygao/backprop-free_LLM_pruning@60f0d31 scripts/llama2_7b.sh",
)  # fmt: skip
def bypass_backprop(
    group_size: Annotated[int, at_least(2)] = 2,
    window: int = 5,
    lr: float = 2e-3,
    penalty: float = 0.0,
    warmup: float = 0.0,
) -> Method:
    """group_size: K, masks of a mini-batch; window: w, steps of the moving baseline; lr: of the means; penalty: mu,
    above 0 it drives the means towards 0 and 1; warmup: share of the run in which the rate rises. Batch and keep
    rate are the task's."""
    return Method(
        prompts=Shuffled(),
        rollout=Groups(1, group_size),
        rewards=(Total(),),
        values=None,
        advantage=MovingBaseline(window, group_size),
        objective=PolicyGradient(),
        averaging="seq-mean-token-sum",
        controllers=(OntoBudget(),),
        update=GradientUpdate(
            optimizer=SGD(lr), schedule=Cosine(warmup=warmup), max_grad_norm=None, transforms=(RootScale(penalty),)
        ),
    )


claim = Claim(
    arena="prune-units",
    against="bypass-backprop",
    settings={"lr": 0.05},
    against_settings={"lr": 1e-12},
    direction="lower",
    note="The baseline is the hard mask of the initial scores, which a rate of 1e-12 leaves as it is. The paper's rate, 0.002, is"
    " that of 15,000 steps; this run has a few hundred.",
)
