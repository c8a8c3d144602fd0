"""Gradients through a simulator: rows are replayed and differentiated from their rewards to the policy's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from vantage.core import component
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.loss import method_loss, micro_batches, weighted
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.updates.gradient import GradientUpdate

REPLAYED = "reward"


@component
class Pathwise(GradientUpdate):
    """Gradient steps on rows that are replayed with their recorded randomness under the present policy's most likely decisions.

    The random draws of a row are kept and the row is run again, so that its rewards are a differentiable function of the weights.
    The task does it: `replay(policy, batch) -> reward [N, T]`, with gradient through all T steps. The objective finds the
    rewards as `evaluation.extras["reward"]`; averaging, regularizers, epochs and minibatches are as usual, over whole rows.
    """

    unit: Literal["row", "group"] = "row"
    needs = frozenset({"simulator"})

    def prepare(self, context: Context) -> None:
        """Make the optimiser.

        Raises:
            UserError: the task cannot be differentiated.
        """
        if not hasattr(context.task, "replay"):
            name = getattr(context.task, "name", type(context.task).__name__)
            raise UserError(f"the task {name!r} has no simulator to differentiate through: take an inventory task")
        super().prepare(context)

    def differentiate(self, part: Trajectories, context: Context) -> None:
        """Leave the gradient of the replayed objective in the parameters' `.grad`."""
        part = weighted(part, context.method.averaging)
        task: Any = context.task
        for some in micro_batches(part, self.micro_batch, False):
            evaluation = Evaluation(extras={REPLAYED: task.replay(context.policy, some)})
            method_loss(evaluation, some, context, part).backward()


@dataclass(frozen=True)
class ReplayedCost:
    """-reward of the replayed decisions [N, T]: the cost in the simulator; gradient flows through the simulator."""

    unit = "row"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision."""
        return -evaluation.extras[REPLAYED]
