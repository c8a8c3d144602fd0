"""Critics: value estimates before the update, and their training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.core import above, at_least, component, memory
from vantage.core.context import Context
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.surrogates import value_loss
from vantage.functions.whitening import masked_mean

BOOTSTRAP = frozenset({"last_observation", "final_observation"})
"""Columns that `policy.values` bootstraps from where rows end before their episodes; engines fill them where they are declared."""


@component
class Critic:
    """Fills `value` and `next_value`, and adds `coefficient` * 0.5 * (V - returns)^2 to the policy's loss.

    Attributes:
        coefficient: weight of the value loss (c1 in PPO's paper).
        clip: width of PPO's value clipping; None for plain squared error.
    """

    coefficient: Annotated[float, at_least(0)] = 0.5
    clip: Annotated[float, above(0)] | None = None
    wants = frozenset({"value"})
    columns = BOOTSTRAP
    needs = frozenset({"critic"})

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill the values; no gradient."""
        return fill_values(batch, context)

    def prepare(self, context: Context) -> None:
        """Add a critic to a policy that has none."""
        add_critic(context)

    def loss(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the value loss per decision [N, T]."""
        value_old = batch.value if self.clip is not None else None
        return self.coefficient * value_loss(evaluation.value, batch.returns, value_old, self.clip)


def add_critic(context: Context) -> None:
    """Add a critic to a policy that comes without one (a language model)."""
    grow = getattr(context.policy, "add_value_head", None)
    if grow is not None:
        grow()


def fill_values(batch: Trajectories, context: Context) -> Trajectories:
    """Fill `value` and `next_value` from the policy's critic; no gradient.

    Drops `last_observation` and `final_observation`, which only bootstrapping needs.
    """
    with torch.no_grad():
        value, next_value = context.policy.values(batch)
    return batch.replace(value=value, next_value=next_value, last_observation=None, final_observation=None)


@component
class FittedCritic:
    """Fills `value` and `next_value`; after each update fits the critic alone to the returns by epochs of Adam.

    For updates that the critic must not share (trust regions).

    Attributes:
        epochs: passes over the batch (vf_iters).
        minibatch: decisions per step; rows for a policy with memory.
        lr: learning rate of Adam.
    """

    epochs: Annotated[int, at_least(1)] = 5
    minibatch: Annotated[int, at_least(1)] = 64
    lr: Annotated[float, above(0)] = 1e-3
    columns = BOOTSTRAP
    _memory: dict[str, Any] = memory()
    needs = frozenset({"critic"})

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill the values; no gradient."""
        return fill_values(batch, context)

    def prepare(self, context: Context) -> None:
        """Make the optimiser of the parameters that the value depends on."""
        add_critic(context)
        module: Any = context.policy
        parameters = list(module.critic_parameters())
        self._memory.update(parameters=parameters, optimizer=torch.optim.Adam(parameters, lr=self.lr))

    def fit(self, batch: Trajectories, context: Context) -> None:
        """Fit to `returns` with shuffled minibatches."""
        flat = batch.flatten() if context.policy.memoryless else batch
        flat = flat.select(flat.mask.any(-1))
        optimizer = self._memory["optimizer"]
        for _ in range(self.epochs):
            order = torch.randperm(len(flat), generator=context.generator).to(flat.device)
            for rows in order.split(self.minibatch):
                part = flat.select(rows)
                value = context.policy.evaluate(part, frozenset({"value"})).value
                error = value_loss(value, part.returns)
                loss = masked_mean(error, part.mask)
                optimizer.zero_grad()
                # The trunk's gradients, where the critic reads a trunk that it does not move, would cost time and be thrown away.
                loss.backward(inputs=self._memory["parameters"])
                optimizer.step()
                context.record_total("loss/value", loss * part.mask.sum(), part.mask.sum())

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state."""
        return dict(self._memory["optimizer"].state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self._memory["optimizer"].load_state_dict(dict(state))
