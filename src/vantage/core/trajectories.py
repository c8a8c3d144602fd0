"""The one value that travels the road: N rows of up to T decisions, as named columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, Union, cast

import torch
from torch import Tensor

from vantage.core.errors import MissingColumn, UserError, nearest

Column = Union[Tensor, "Table"]


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
    "next_observation": ColumnInfo("[N, T, ...]", "what the policy saw after the decision", "a task of stored transitions"),
    "post_observation": ColumnInfo("[N, T, ...]", "what the decision left, before chance acts", "an engine that knows its system"),
    "last_observation": ColumnInfo("[N, ...]", "what was seen after the row's last decision", "an engine of environments"),
    "final_observation": ColumnInfo("[N, K, ...]", "what was seen at the row's K ends of episodes", "an engine of environments"),
    "outcome": ColumnInfo("[N, 1, ...]", "the finished sample", "the denoising engine"),
    "terminated": ColumnInfo("[N, T] bool", "the episode ended by itself after the decision", "the rollout"),
    "truncated": ColumnInfo("[N, T] bool", "the episode was cut after the decision", "the rollout"),
    "value": ColumnInfo("[N, T]", "value of the state before the decision", "`values` (for example values=Critic())"),
    "next_value": ColumnInfo("[N, T]", "value of the state after the decision", "`values` (for example values=Critic())"),
    "returns": ColumnInfo("[N, T]", "what the critic is fitted to", "an advantage that estimates returns (GAE)"),
    "advantage": ColumnInfo("[N, T]", "credit of the decision", "`advantage`"),
    "logp_ref": ColumnInfo("[N, T]", "log-probability under the reference policy", "a part that names it in `columns`"),
    "logp_current": ColumnInfo("[N, T]", "log-probability under the policy before the update", "a part that names it in `columns`"),
    "hidden_old": ColumnInfo("[N, T, H]", "hidden state of the policy before the update", "a part that names it in `columns`"),
    "entropy_old": ColumnInfo("[N, T]", "entropy of the policy that acted", "a rollout that records it"),
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


def declare(name: str, shape: str, meaning: str, filled_by: str) -> None:
    """Describe a column of your own in `COLUMNS`; `shape` begins with "[N, T" where it is per decision.

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


class _Later:
    """A column that is computed when it is first read, once for every table that shares it."""

    __slots__ = ("column", "make")

    def __init__(self, make: Callable[[], Column]) -> None:
        self.make: Callable[[], Column] | None = make
        self.column: Any = None

    def __call__(self) -> Column:
        if self.make is not None:
            self.column, self.make = self.make(), None
        return cast(Column, self.column)


class Table:
    """Named columns of N rows: tensors [N, ...] and tables of N rows.

    A table is a value: indexing and `replace` return new ones, which share what did not change. Rows are gathered when a column
    is read, so that who takes a minibatch of many columns pays for those that are read. `len` is N; iterating gives names.

    Args:
        columns: by name; a mapping becomes a nested table.
        rows: N; None reads it off the first column.

    Raises:
        UserError: a column's first dimension is not N.
    """

    __slots__ = ("_columns", "_rows")

    _columns: dict[str, Any]
    _rows: int

    def __init__(self, columns: Mapping[str, Any] | Table, rows: int | None = None) -> None:
        if rows is None:
            rows = _rows_of(columns)
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_columns", {name: self._checked(name, one) for name, one in columns.items()})

    def _checked(self, name: str, column: Any) -> Column:
        if isinstance(column, Mapping):
            return Table(column, self._rows)
        if not isinstance(column, Table):
            column = torch.as_tensor(column)
        if _rows_of(column) != self._rows:
            shape = f"{len(column)} rows" if isinstance(column, Table) else f"shape {list(column.shape)}"
            raise UserError(f"column {name!r} has {shape}; its first dimension must be {self._rows}")
        return cast(Column, column)

    def _made(self, columns: dict[str, Any], rows: int) -> Self:
        made = object.__new__(type(self))
        object.__setattr__(made, "_columns", columns)
        object.__setattr__(made, "_rows", rows)
        return made

    def _mapped(self, function: Callable[[str, Column], Column], rows: int) -> Self:
        """Apply a function of name and column, when the new column is read; at once where it carries gradient."""

        def later(name: str, held: Any) -> Any:
            if isinstance(held, Tensor) and held.requires_grad:
                return function(name, held)
            return _Later(lambda: function(name, self[name]))

        return self._made({name: later(name, held) for name, held in self._columns.items()}, rows)

    # reading -------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.select(key)
        found = self.get(key)
        if found is None:
            raise self._missing(key)
        return found

    def _missing(self, name: str) -> MissingColumn:
        return MissingColumn(f"the table holds no column {name!r}{nearest(name, self)}; it holds: {self._held()}")

    def _held(self) -> str:
        return ", ".join(sorted(self)) or "none"

    def get(self, name: str, default: Any = None) -> Any:
        """Return the column, or `default` when it is not there."""
        found = self._columns.get(name, default)
        return found() if isinstance(found, _Later) else found

    def keys(self) -> KeysView[str]:
        """Return the names of the columns."""
        return self._columns.keys()

    def items(self) -> Iterator[tuple[str, Any]]:
        """Iterate over (name, column)."""
        return ((name, self[name]) for name in self)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __repr__(self) -> str:
        described = ", ".join(
            f"{name}{list(column.shape) if isinstance(column, Tensor) else f'[{column!r}]'}"
            for name, column in sorted(self.items())
        )
        return f"{type(self).__name__}({len(self)} rows; {described})"

    def to_dict(self) -> dict[str, Any]:
        """Return the columns as a dict of tensors, nested tables as dicts in it; `Trajectories(...)` reads it back."""
        return {name: one.to_dict() if isinstance(one, Table) else one for name, one in self.items()}

    # making new ones -----------------------------------------------------------------------------------------------

    def replace(self, /, **columns: Any) -> Self:
        """Return a table with these columns set; None removes one. The other columns are shared, not copied."""
        table = dict(self._columns)
        for name, column in columns.items():
            if column is None:
                table.pop(name, None)
            else:
                table[name] = self._checked(name, column)
        return self._made(table, len(self))

    def select(self, rows: Tensor | slice | Sequence[int]) -> Self:
        """Return the rows at these indices (long or slice) or where this mask (bool) holds."""
        if isinstance(rows, slice):
            return self._mapped(lambda _, column: column[rows], len(range(*rows.indices(len(self)))))
        index = torch.as_tensor(rows)
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(-1)
        return self._mapped(lambda _, column: column[index], len(index))

    def to(self, device: torch.device | str) -> Self:
        """Return the table on another device; all its columns are gathered."""
        return self._made({name: column.to(device) for name, column in self.items()}, len(self))

    def detach(self) -> Self:
        """Return the table with no column that carries gradient."""
        # What is still to be gathered carries none.
        columns = {name: one if isinstance(one, _Later) else one.detach() for name, one in self._columns.items()}
        return self._made(columns, len(self))


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
        """Where the columns live."""
        return self.mask.device

    def flatten(self) -> Trajectories:
        """Return one row per decision ([N * T] rows of one decision), in row-major order.

        Columns of a decision are kept as they are; columns of a row are repeated. Which is which, `COLUMNS` says; a column with
        one dimension is of the row. Rows of a policy with memory must not be flattened: a decision alone is then not what the
        policy saw.

        Raises:
            UserError: when a column [N, T, ...] is read that nobody declared, or one [N, M, ...] that is declared per decision.
        """
        return _flat(self, self.steps, "")


def _rows_of(column: Any) -> int:
    if isinstance(column, Table):
        return len(column)
    if isinstance(column, Mapping):
        return _rows_of(next(iter(column.values())))
    shape = torch.as_tensor(column).shape
    return int(shape[0]) if shape else -1


TableT = TypeVar("TableT", bound=Table)


def _flat(table: TableT, steps: int, above: str) -> TableT:
    def one(name: str, column: Column) -> Column:
        name = f"{above}{name}"
        if isinstance(column, Table):
            return _flat(column, steps, f"{name}.")
        if not per_decision_column(name, column, steps):
            return column.repeat_interleave(steps, 0)
        return column.reshape(len(table) * steps, 1, *column.shape[2:])

    return table._mapped(one, len(table) * steps)


def concatenate(batches: Sequence[TableT]) -> TableT:
    """Stack batches row-wise; shorter ones are padded with zeros (mask False) to the longest T.

    All batches must hold the same columns: a column that only some hold is an error that names it.
    """
    if not batches:
        raise UserError("concatenate needs at least one batch")
    first = batches[0]
    if len(batches) == 1:
        return first
    for batch in batches[1:]:
        if batch.keys() != first.keys():
            odd = ", ".join(sorted(batch.keys() ^ first.keys()))
            raise UserError(f"batches to concatenate differ in their columns: {odd}")

    def joined(parts: list[Any]) -> Any:
        return concatenate(parts) if isinstance(parts[0], Table) else torch.cat(pad_to_longest(parts), 0)

    columns = {name: joined([batch[name] for batch in batches]) for name in first}
    return first._made(columns, sum(len(batch) for batch in batches))


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
