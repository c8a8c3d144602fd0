"""Selection that adds what earlier steps selected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from vantage.core import at_least, component, memory
from vantage.core.context import Context
from vantage.core.trajectories import Trajectories, concatenate
from vantage.functions.groups import group_index


@component
class RecentBatches:
    """The batch, followed by those of the steps before it, newest first: `count` in all, fewer at the start of a run.

    Earlier batches come back with all their columns as they were: the log-probabilities, values and advantages of their time.
    Groups of different steps stay apart. Kept rows are on the CPU until they are read.

    Attributes:
        count: batches, at least 1; 1 keeps nothing.
    """

    count: Annotated[int, at_least(1)] = 6
    _memory: dict[str, Any] = memory()

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the joint batch, [N_1 + N_2 + ..., T]."""
        kept: list[Trajectories] = self._memory.setdefault("kept", [])
        parts, groups = [], 0
        for part in (batch, *kept):
            index, count = group_index(part.group)
            parts.append(part.to(batch.device).replace(group=(index + groups).to(batch.device)))
            groups += count
        kept.insert(0, batch.to("cpu"))
        del kept[self.count - 1 :]
        context.record("replay/batches", len(parts))
        return concatenate(parts)

    def state_dict(self) -> dict[str, Any]:
        """Return the batches that are kept, newest first."""
        return {"kept": [batch.to_dict() for batch in self._memory.get("kept", [])]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self._memory["kept"] = [Trajectories(batch) for batch in state["kept"]]
