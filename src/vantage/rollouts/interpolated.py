"""Rollout without sampling: points on the lines from noise to data, for flow matching."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from vantage.annotations import at_least
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.costs import Cost
from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories


@component
class Interpolated:
    """Rollout: `batch` points on lines from noise to the task's data, as rows of one decision whose action is the velocity."""

    batch: Annotated[int, at_least(1)] = 256
    needs = frozenset({"flow"})

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step."""
        return Cost(self.batch, self.batch, self.batch)

    def __call__(self, context: Context) -> Trajectories:
        """Sample the next pairs."""
        data: Any = getattr(context.task, "data", None)
        if not hasattr(data, "draw"):
            raise UserError(
                f"flow matching needs a task with data to match; {context.task.name} has none (flow2d, digits)"
            )
        sample, label = data.draw(self.batch, context.generator)
        noise = torch.randn(sample.shape, generator=context.generator)
        time = torch.rand(self.batch, 1, generator=context.generator)
        shaped = time.reshape(-1, *[1] * (sample.dim() - 1))
        seen = {"x": ((1 - shaped) * sample + shaped * noise).unsqueeze(1), "time": time}
        if label is not None:
            seen["label"] = label.unsqueeze(1)
        rows = torch.arange(self.batch)
        return Trajectories(
            {
                "observation": seen,
                "action": (noise - sample).unsqueeze(1),
                "mask": torch.ones(self.batch, 1, dtype=torch.bool),
                "length": torch.ones(self.batch, dtype=torch.int64),
                "group": rows,
                "prompt": rows,
            }
        ).to(context.device)
