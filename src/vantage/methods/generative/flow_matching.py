"""Flow matching: fits a velocity field to the straight lines from noise to data.

A sample and a draw of noise are joined by a line, and the network learns the line's direction at a random point of it; its
prediction, the mean direction through the point, transports noise to data along an ODE:

    x_0 ~ data, x_1 ~ N(0, I), t ~ U(0, 1)        x_t = (1 - t) x_0 + t x_1
    loss = mean over pairs of mean over dimensions of  (v(x_t, t) - (x_1 - x_0))^2

arXiv 2210.02747 with the straight paths of arXiv 2209.03003. It is the supervised training before reinforcement learning, and
a method like any other, whose rollout yields pairs. The loss is that of facebookresearch/flow_matching, whose time runs from noise
to data and whose velocity has the other sign. The optimiser's settings are ours, for the small models of the tasks: its example in
two dimensions takes 4096 points a step, a constant 1e-3 and no bound of the gradient.
"""

from __future__ import annotations

from torch import Tensor

from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.methods.registry import Paper, method
from vantage.objectives.likelihood import NoCredit
from vantage.rollouts.interpolated import Interpolated
from vantage.rollouts.plans import Shuffled
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam, Cosine

PAPER = Paper(
    "Flow Matching for Generative Modeling",
    "Yaron Lipman and Ricky T. Q. Chen and Heli Ben-Hamu and Maximilian Nickel and Matt Le",
    2023,
    arxiv="2210.02747",
)
STRAIGHT = Paper(
    "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
    "Xingchao Liu and Chengyue Gong and Qiang Liu",
    2022,
    arxiv="2209.03003",
)


@component
class MatchVelocity:
    """The page's loss per decision [N, 1]; gradient flows through the policy's proxy `logp`, which is its negative."""

    wants = frozenset({"logp"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss."""
        if not evaluation.proxy:
            raise UserError("flow matching needs a flow policy, whose logp on pairs is a matching loss")
        return -evaluation.logp


@method(
    kind="recipe", papers=(PAPER, STRAIGHT), needs="flow",
    source="facebookresearch/flow_matching@11568d3 examples/2d_flow_matching.ipynb",
)  # fmt: skip
def flow_matching(
    batch: int = 256, lr: float = 2e-3, weight_decay: float = 0.0, final: float = 0.05, max_grad_norm: float = 1.0
) -> Method:
    """batch: points a step; lr: Adam's, at the start; weight_decay: Adam's; final: share of the rate at the end of
    its cosine; max_grad_norm: largest norm of the gradient."""
    return Method(
        prompts=Shuffled(),
        rollout=Interpolated(batch),
        rewards=(),
        values=None,
        advantage=NoCredit(),
        objective=MatchVelocity(),
        averaging="token-mean",
        update=GradientUpdate(
            optimizer=Adam(lr, weight_decay=weight_decay),
            schedule=Cosine(final=final, warmup=0.02),
            max_grad_norm=max_grad_norm,
        ),
    )
