"""Trajectories: N rows of up to T decisions as named columns, the batch that the training loop passes between components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vantage.core.errors import MissingColumn, UserError, nearest
from vantage.core.table import Column, Table, TableT, concatenate, pad_to_longest

__all__ = [
    "COLUMNS", "ENVIRONMENT", "FRESH", "GUIDE", "POLICY", "STORED", "ColumnInfo", "Table", "TableT", "Trajectories",
    "concatenate", "credit_flows", "declare", "exists", "own", "pad_to_longest", "per_decision_column",
]  # fmt: skip


@dataclass(frozen=True)
class ColumnInfo:
    """Description of a known column: its shape, its meaning, and the component that fills it."""

    shape: str
    meaning: str
    filled_by: str


COLUMNS: dict[str, ColumnInfo] = {
    "action": ColumnInfo("[N, T, ...]", "the decision taken", "the rollout"),
    "mask": ColumnInfo("[N, T] bool", "decisions that are in the loss", "the rollout"),
    "length": ColumnInfo("[N]", "positions that the row holds, inserted ones included", "the rollout"),
    "logp_old": ColumnInfo("[N, T]", "log-probability under the policy that acted", "the rollout"),
    "reward": ColumnInfo("[N, T]", "reward that followed the decision", "the rollout or `rewards`"),
    "post_reward": ColumnInfo("[N, T]", "the part of `reward` that the decision alone fixes", "an engine that knows its system"),
    "score": ColumnInfo("[N]", "the row's scalar outcome", "`rewards` (for example rewards=Total())"),
    "rewards": ColumnInfo("{name: [N]}", "named rewards before they are mixed", "the task's verifier"),
    "group": ColumnInfo("[N]", "rows that are compared share it", "the rollout"),
    "prompt": ColumnInfo("[N]", "stable id of the prompt or initial state in its task", "the rollout"),
    "observation": ColumnInfo("[N, T, ...] or a nested table", "what the policy saw", "the rollout"),
    "next_observation": ColumnInfo("[N, T, ...]", "what followed the decision", "stored transitions, or `columns` asks an engine"),
    "post_observation": ColumnInfo("[N, T, ...]", "what the decision left, before chance acts", "an engine that knows its system"),
    "last_observation": ColumnInfo("[N, ...]", "what followed the last decision", "an engine of environments, asked by `columns`"),
    "final_observation": ColumnInfo("[N, K, ...]", "what followed at K ends", "an engine of environments, asked by `columns`"),
    "outcome": ColumnInfo("[N, 1, ...]", "the finished sample", "the denoising engine"),
    "terminated": ColumnInfo("[N, T] bool", "the episode ended by itself after the decision", "the rollout"),
    "truncated": ColumnInfo("[N, T] bool", "the episode was cut after the decision", "the rollout"),
    "value": ColumnInfo("[N, T]", "value of the state before the decision", "`values` (for example values=Critic())"),
    "next_value": ColumnInfo("[N, T]", "value of the state after the decision", "`values` (for example values=Critic())"),
    "returns": ColumnInfo("[N, T]", "what the critic is fitted to", "an advantage that estimates returns (GAE)"),
    "advantage": ColumnInfo("[N, T]", "credit of the decision", "`advantage`"),
    "logp_ref": ColumnInfo("[N, T]", "log-probability under the reference policy", "a component that names it in `columns`"),
    "logp_current": ColumnInfo("[N, T]", "log-probability before the update", "a component that names it in `columns`"),
    "hidden_old": ColumnInfo(
        "[N, T, H]", "hidden state of the policy before the update", "a component that names it in `columns`"
    ),
    "entropy_old": ColumnInfo("[N, T]", "entropy of the policy that acted", "a rollout that records it"),
    "origin": ColumnInfo("[N, T] int8", "who produced the position: POLICY, ENVIRONMENT or GUIDE", "a multi-turn rollout"),
    "turn": ColumnInfo("[N, T]", "number of the turn that the decision belongs to", "a multi-turn rollout"),
    "segment": ColumnInfo("[N, T]", "number of the segment that the decision belongs to", "a rollout or advantage that splits"),
    "path": ColumnInfo("[N, D]", "number of the node at each of D depths", "a tree rollout"),
    "parent": ColumnInfo("[N]", "row that this one branched from, -1 for none", "a tree rollout"),
    "weight": ColumnInfo("[N] or [N, T]", "weight in the loss", "a selection that weighs"),
    "source": ColumnInfo("[N]", "which of several sources the row came from", "a rollout that mixes sources"),
    "age": ColumnInfo("[N]", "updates since the row was generated", "a replay rollout"),
}  # fmt: skip
"""The columns that components share. A shape that begins with [N, T] says that the column is per decision."""

STORED, FRESH = 0, 1
"""Values of the column `source` of a batch that mixes stored rows with rows that the policy has just sampled."""
POLICY, ENVIRONMENT, GUIDE = 0, 1, 2
"""Values of the column `origin`: written by the policy; by the environment or a tool; or by a demonstration or hint."""


def declare(name: str, shape: str, meaning: str, filled_by: str) -> None:
    """Describe a new column in `COLUMNS`; `shape` begins with "[N, T" where it is per decision.

    Args:
        name: of the column; "observation.tokens" for one of a nested table.
        shape: for example "[N, T, 2]", "[N, D]".
        meaning: what it holds.
        filled_by: the component that fills it, for the error when it is read and not there.

    Raises:
        UserError: the name is declared already, and otherwise.
    """
    info = ColumnInfo(shape, meaning, filled_by)
    if COLUMNS.setdefault(name, info) != info:
        raise UserError(f"the column {name!r} is declared already: {COLUMNS[name]}")


def per_decision_column(name: str, column: Tensor, steps: int) -> bool:
    """Return whether a column [N, ...] holds one value per decision, by its declaration in `COLUMNS`."""
    if column.dim() < 2:
        return False
    info = COLUMNS.get(name)
    fits = column.shape[1] == steps
    if info is None:
        if fits:
            raise UserError(
                f"cannot tell whether the column {name!r} {list(column.shape)} is per decision or per row: "
                f"say so by vantage.core.trajectories.declare({name!r}, '[N, T]' or '[N, D]', meaning, filled_by)"
            )
        return False
    declared = "[N, T" in info.shape
    if declared and not fits:
        raise UserError(
            f"the column {name!r} has shape {list(column.shape)} and is declared {info.shape} with T = {steps}"
        )
    return declared


class Trajectories(Table):
    """N rows of up to T decisions, held as named columns whose first dimension is N.

    Columns are read as attributes (`batch.reward`) or by name (`batch["reward"]`); reading one that is not there raises
    `MissingColumn`, which names the component that would fill it. The columns that components of the library know are
    described in `COLUMNS`; a component may add any other, and describes it by `declare` where it has more than one dimension.
    """

    __slots__ = ()

    # What type checkers may assume; presence is checked when a column is read.
    action: Tensor
    mask: Tensor
    length: Tensor
    logp_old: Tensor
    reward: Tensor
    score: Tensor
    rewards: Table
    group: Tensor
    prompt: Tensor
    observation: Any
    terminated: Tensor
    truncated: Tensor
    value: Tensor
    next_value: Tensor
    returns: Tensor
    advantage: Tensor
    logp_ref: Tensor
    entropy_old: Tensor
    turn: Tensor
    origin: Tensor
    segment: Tensor
    parent: Tensor
    weight: Tensor
    source: Tensor
    age: Tensor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"trajectories are values: use batch.replace({name}=...)")

    def _missing(self, name: str) -> MissingColumn:
        info = COLUMNS.get(name)
        if info is None:
            remedy = f"no component of the library fills it{nearest(name, COLUMNS)}"
        else:
            remedy = f"it is filled by {info.filled_by}"
        return MissingColumn(f"the trajectories hold no column {name!r} ({remedy}); they hold: {self._held()}")

    @property
    def steps(self) -> int:
        """T, the longest row's number of decisions."""
        return int(self.mask.shape[1])

    @property
    def device(self) -> torch.device:
        """Device of the columns."""
        return self.mask.device

    def flatten(self) -> Trajectories:
        """Return one row per decision ([N * T] rows of one decision), in row-major order.

        Columns of a decision are kept as they are; columns of a row are repeated. `COLUMNS` says which is which; a column with
        one dimension is of the row. Rows of a policy with memory must not be flattened: a decision alone is then not what the
        policy saw.

        Raises:
            UserError: when a column [N, T, ...] is read that is not declared, or one [N, M, ...] that is declared per decision.
        """
        return _flat(self, self.steps, "")


def _flat(table: TableT, steps: int, above: str) -> TableT:
    def one(name: str, column: Column) -> Column:
        name = f"{above}{name}"
        if isinstance(column, Table):
            return _flat(column, steps, f"{name}.")
        if not per_decision_column(name, column, steps):
            return column.repeat_interleave(steps, 0)
        return column.reshape(len(table) * steps, 1, *column.shape[2:])

    return table._mapped(one, len(table) * steps)


# Masks. Three columns describe a position:
#
#   it exists               t < `length`; what lies behind is padding
#   who produced it         `origin`; without that column the policy did, but in rows with `turn` what is outside of the mask
#                           was inserted
#   it is in the loss       `mask`; averagings, losses and statistics read it
#
# In a stream of environment steps a reset takes a step of its own: it is outside of the mask, after the end of an episode.


def exists(batch: Trajectories) -> Tensor:
    """Return which positions [N, T] are not padding; all, where rows have no `length`."""
    length = batch.get("length")
    if length is None:
        return torch.ones_like(batch.mask)
    return torch.arange(batch.steps, device=batch.device) < length.unsqueeze(-1)


def own(batch: Trajectories) -> Tensor:
    """Return which positions [N, T] the policy produced, in the loss or not; verifiers and length rewards read these."""
    origin = batch.get("origin")
    if origin is not None:
        return exists(batch) & (origin == POLICY)
    return exists(batch) & batch.mask if "turn" in batch else exists(batch)


def credit_flows(batch: Trajectories) -> Tensor:
    """Return which positions [N, T] credit flows through: those that exist, inserted ones included, and are no reset.

    An inserted position takes no time: it has no value, no reward of its own and no discount. Where an episode ends, credit
    stops whatever this says (`terminated`, `truncated`). A batch without `terminated` and `truncated` has no resets.
    """
    flows = exists(batch)
    if batch.steps > 1 and "terminated" in batch and "truncated" in batch:
        over = (batch.terminated | batch.truncated)[:, :-1]
        reset = ~batch.mask[:, 1:] & over
        flows = torch.cat([flows[:, :1], flows[:, 1:] & ~reset], 1)
    return flows
