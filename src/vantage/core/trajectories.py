"""The one value that travels the road: N rows of up to T decisions, as named columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from vantage.core.errors import MissingColumn, UserError, nearest

Column = Tensor | TensorDictBase


@dataclass(frozen=True)
class ColumnInfo:
    """What a well-known column holds: its shape, its meaning, and who fills it."""

    shape: str
    meaning: str
    filled_by: str


COLUMNS: dict[str, ColumnInfo] = {
    "action": ColumnInfo("[N, T, ...]", "the decision taken", "the rollout"),
    "mask": ColumnInfo("[N, T] bool", "decisions of the policy that are learnt from", "the rollout"),
    "length": ColumnInfo("[N]", "decisions that the row holds, inserted ones included", "the rollout"),
    "logp_old": ColumnInfo("[N, T]", "log-probability under the policy that acted", "the rollout"),
    "reward": ColumnInfo("[N, T]", "reward that followed the decision", "the rollout or `rewards`"),
    "score": ColumnInfo("[N]", "the row's scalar outcome", "`rewards` (for example rewards=Total())"),
    "rewards": ColumnInfo("{name: [N]}", "named rewards before they are mixed", "the task's verifier"),
    "group": ColumnInfo("[N]", "rows that are compared share it", "the rollout"),
    "prompt": ColumnInfo("[N]", "stable id of the prompt or initial state in its task", "the rollout"),
    "observation": ColumnInfo("[N, T, ...] or a nested table", "what the policy saw", "the rollout"),
    "terminated": ColumnInfo("[N, T] bool", "the episode ended by itself after the decision", "the rollout"),
    "truncated": ColumnInfo("[N, T] bool", "the episode was cut after the decision", "the rollout"),
    "value": ColumnInfo("[N, T]", "value of the state before the decision", "`values` (for example values=Critic())"),
    "next_value": ColumnInfo("[N, T]", "value of the state after the decision", "`values` (for example values=Critic())"),
    "returns": ColumnInfo("[N, T]", "what the critic is fitted to", "an advantage that estimates returns (GAE)"),
    "advantage": ColumnInfo("[N, T]", "credit of the decision", "`advantage`"),
    "logp_ref": ColumnInfo("[N, T]", "log-probability under the reference policy", "a part that names it in `columns`"),
    "logp_current": ColumnInfo("[N, T]", "log-probability under the policy before the update", "a part that names it in `columns`"),
    "entropy_old": ColumnInfo("[N, T]", "entropy of the policy that acted", "a rollout that records it"),
    "turn": ColumnInfo("[N, T]", "number of the turn that the decision belongs to", "a multi-turn rollout"),
    "segment": ColumnInfo("[N, T]", "number of the segment that the decision belongs to", "a rollout or advantage that splits"),
    "parent": ColumnInfo("[N]", "row that this one branched from, -1 for none", "a tree rollout"),
    "weight": ColumnInfo("[N] or [N, T]", "weight in the loss", "a selection that weighs"),
    "source": ColumnInfo("[N]", "which of several sources the row came from", "a rollout that mixes sources"),
    "age": ColumnInfo("[N]", "updates since the row was generated", "a replay rollout"),
}  # fmt: skip

STORED, FRESH = 0, 1
"""Values of the column `source` of a batch that mixes stored rows with rows that the policy has just sampled."""


class Trajectories:
    """N rows of up to T decisions, held as named columns whose first dimension is N.

    A column is a tensor or a nested TensorDict of tensors. Columns are read as attributes (`batch.reward`) or by name
    (`batch["reward"]`); reading one that is not there raises `MissingColumn`, which names the part that would fill it.
    A batch is a value: `replace` and indexing return new ones and share what did not change. The columns that parts
    of the library know are described in `COLUMNS`; a part may add any other.
    """

    __slots__ = ("columns",)

    # What type checkers may assume; presence is checked when a column is read.
    columns: TensorDictBase
    action: Tensor
    mask: Tensor
    length: Tensor
    logp_old: Tensor
    reward: Tensor
    score: Tensor
    rewards: TensorDictBase
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
    segment: Tensor
    parent: Tensor
    weight: Tensor
    source: Tensor
    age: Tensor

    def __init__(self, columns: Mapping[str, Any] | TensorDictBase, rows: int | None = None) -> None:
        if isinstance(columns, TensorDictBase):
            table: TensorDictBase = columns
        else:
            if rows is None:
                first = next(iter(columns.values()))
                rows = int(first.shape[0])
            table = TensorDict(dict(columns), batch_size=[rows])
        object.__setattr__(self, "columns", table)

    # reading -------------------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"trajectories are values: use batch.replace({name}=...)")

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            found = self.columns.get(key, None)
            if found is None:
                raise self._missing(key)
            return found
        return Trajectories(self.columns[key])

    def _missing(self, name: str) -> MissingColumn:
        have = ", ".join(sorted(str(key) for key in self.columns.keys()))  # noqa: SIM118 - a TensorDict is no mapping
        info = COLUMNS.get(name)
        if info is None:
            remedy = f"no shared part fills it{nearest(name, COLUMNS)}"
        else:
            remedy = f"it is filled by {info.filled_by}"
        return MissingColumn(f"the trajectories hold no column {name!r} ({remedy}); they hold: {have}")

    def get(self, name: str, default: Any = None) -> Any:
        """Return the column, or `default` when it is not there."""
        return self.columns.get(name, default)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.columns.keys()  # noqa: SIM118

    def __len__(self) -> int:
        return int(self.columns.batch_size[0])

    def __iter__(self) -> Iterator[str]:
        return iter(str(key) for key in self.columns.keys())  # noqa: SIM118

    def __repr__(self) -> str:
        described = ", ".join(
            f"{name}{list(self.columns[name].shape)}"
            for name in sorted(str(k) for k in self.columns.keys())  # noqa: SIM118
        )
        return f"Trajectories({len(self)} rows; {described})"

    @property
    def steps(self) -> int:
        """T, the longest row's number of decisions."""
        return int(self.mask.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the columns live."""
        return self.mask.device

    # making new ones -----------------------------------------------------------------------------------------------

    def replace(self, **columns: Any) -> Trajectories:
        """Return a batch with these columns set; None removes one. The other columns are shared, not copied."""
        table = self.columns.copy()
        for name, column in columns.items():
            if column is None:
                if name in self:
                    table.pop(name)
                continue
            if column.shape[:1] != (len(self),):
                raise UserError(
                    f"column {name!r} has shape {list(column.shape)}; its first dimension must be {len(self)}"
                )
            table.set(name, column)
        return Trajectories(table)

    def select(self, rows: Tensor) -> Trajectories:
        """Return the rows at these indices (long) or where this mask (bool) holds."""
        if rows.dtype == torch.bool:
            rows = rows.nonzero().squeeze(-1)
        return Trajectories(self.columns[rows])

    def flatten(self) -> Trajectories:
        """Return one row per decision ([N * T] rows of one decision), in row-major order.

        Only columns with a decision dimension are kept as they are; columns of a row are repeated. Rows of a policy
        with memory must not be flattened: a decision alone is then not what the policy saw.
        """
        count, steps = len(self), self.steps

        def one(column: Tensor) -> Tensor:
            if column.dim() >= 2 and column.shape[1] == steps:
                return column.reshape(count * steps, 1, *column.shape[2:])
            return column.repeat_interleave(steps, 0)

        table = {str(key): _apply(column, one, count * steps) for key, column in self.columns.items()}
        return Trajectories(table, rows=count * steps)

    def to(self, device: torch.device | str) -> Trajectories:
        """Return the batch on another device."""
        return Trajectories(self.columns.to(device))

    def detach(self) -> Trajectories:
        """Return the batch with no column that carries gradient."""
        return Trajectories(self.columns.detach())


def _apply(column: Any, function: Any, rows: int) -> Any:
    if isinstance(column, TensorDictBase):  # which may hold nothing
        inner = {str(key): _apply(value, function, rows) for key, value in column.items()}
        return TensorDict(inner, batch_size=[rows])
    return function(column)


def concatenate(batches: Sequence[Trajectories]) -> Trajectories:
    """Stack batches row-wise; shorter ones are padded with zeros (mask False) to the longest T.

    All batches must hold the same columns: a column that only some hold is an error that names it.
    """
    if not batches:
        raise UserError("concatenate needs at least one batch")
    if len(batches) == 1:
        return batches[0]
    names = set(batches[0])
    for batch in batches[1:]:
        if set(batch) != names:
            odd = ", ".join(sorted(set(batch) ^ names))
            raise UserError(f"batches to concatenate differ in their columns: {odd}")
    return Trajectories(_join([batch.columns for batch in batches]))


def _join(tables: Sequence[TensorDictBase]) -> TensorDictBase:
    joined: dict[str, Any] = {}
    for key in tables[0].keys():  # noqa: SIM118
        parts = [table.get(key) for table in tables]
        if isinstance(parts[0], TensorDictBase):
            joined[str(key)] = _join(parts)
        else:
            joined[str(key)] = torch.cat(pad_to_longest(parts), 0)
    rows = sum(int(table.batch_size[0]) for table in tables)
    return TensorDict(joined, batch_size=[rows])


def pad_to_longest(parts: Sequence[Tensor]) -> list[Tensor]:
    """Pad each [n_i, T_i, ...] with zeros along dimension 1 to the largest T_i; 1-D tensors come back as they are."""
    if parts[0].dim() < 2:
        return list(parts)
    longest = max(part.shape[1] for part in parts)
    return [
        part
        if part.shape[1] == longest
        else torch.cat([part, part.new_zeros(part.shape[0], longest - part.shape[1], *part.shape[2:])], 1)
        for part in parts
    ]
