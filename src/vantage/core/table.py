"""Named columns of rows: the base class of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence
from typing import Any, Self, TypeVar, Union, cast

import torch
from torch import Tensor

from vantage.core.errors import MissingColumn, UserError, nearest

Column = Union[Tensor, "Table"]
TableT = TypeVar("TableT", bound="Table")


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
    is read, so that a minibatch costs only the columns that are read. `len` is N; iteration yields names.

    Args:
        columns: by name; a mapping becomes a nested table.
        rows: N; None takes that of the first column.

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
        if not isinstance(column, Tensor | Table):
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


def _rows_of(column: Any) -> int:
    if isinstance(column, Table):
        return len(column)
    if isinstance(column, Mapping):
        return _rows_of(next(iter(column.values())))
    shape = (column if isinstance(column, Tensor) else torch.as_tensor(column)).shape
    return int(shape[0]) if shape else -1


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
    """Pad each [n_i, T_i, ...] with zeros along dimension 1 to the largest T_i; 1-D tensors are returned unchanged."""
    if parts[0].dim() < 2:
        return list(parts)
    longest = max(part.shape[1] for part in parts)
    return [
        part
        if part.shape[1] == longest
        else torch.cat([part, part.new_zeros(part.shape[0], longest - part.shape[1], *part.shape[2:])], 1)
        for part in parts
    ]
