"""Replay of rows of earlier steps with fresh ones: queues per prompt, and a window of the latest rollouts.

Rows are stored as the rollout returned them, with the log-probabilities of the policy that sampled them (`logp_old`) and their
rewards. Stored rows are on the CPU; they are copied to the batch's device when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.core import at_least, below, checked_by, component, memory
from vantage.core.context import Context
from vantage.core.costs import Cost, cost
from vantage.core.errors import out_of_range
from vantage.core.trajectories import Table, TableT, Trajectories, pad_to_longest
from vantage.core.walk import adapted
from vantage.functions.groups import group_index, rank_within
from vantage.rollouts.plans import Groups, joined
from vantage.rollouts.records import PromptIndex


def to_state(batch: Trajectories | None) -> dict[str, Any] | None:
    """Return rows as nested dicts of tensors, for a checkpoint."""
    return None if batch is None else batch.to_dict()


def from_state(state: Mapping[str, Any] | None) -> Trajectories | None:
    """Invert `to_state`."""
    return None if state is None else Trajectories(state)


class RowTable:
    """Table of trajectory rows in numbered slots: written in place, read by gather, widened for longer rows."""

    def __init__(self) -> None:
        self.rows: Trajectories | None = None

    def put(self, slots: Tensor, batch: Trajectories) -> None:
        """Write row i of the batch [N] into slot `slots[i]`; slots are distinct."""
        if not len(slots):
            return
        batch, slots = batch.to("cpu"), slots.cpu()
        held = batch[:0] if self.rows is None else self.rows
        room = int(slots.max()) + 1
        if room > len(held):
            # Doubling the size bounds the total cost of copies by that of the rows.
            held = Trajectories(_extended(held, max(room, 2 * len(held))))
        self.rows = _written(held, batch, slots)

    def get(self, slots: Tensor) -> Trajectories:
        """Return the rows in these slots [N]."""
        assert self.rows is not None
        return self.rows.select(slots.cpu()).to(slots.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the slots."""
        return {"rows": to_state(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self.rows = from_state(state["rows"])


def _extended(table: Table, rows: int) -> dict[str, Any]:
    """Return the columns of a table padded with zeros to `rows` rows."""
    return {
        name: _extended(column, rows)
        if isinstance(column, Table)
        else torch.cat([column, column.new_zeros(rows - len(column), *column.shape[1:])])
        for name, column in table.items()
    }


def _written(held: TableT, fresh: Table, slots: Tensor) -> TableT:
    """Write rows into the slots of a table, in place unless they are longer than its own; return the table."""

    def one(old: Any, new: Any) -> Any:
        if isinstance(old, Table):
            return _written(old, new, slots)
        old, new = pad_to_longest([old, new])
        old[slots] = new.to(old.dtype)
        return old

    return held.replace(**{name: one(held[name], column) for name, column in fresh.items()})


class PromptQueues:
    """First-in-first-out queues of rows, at most `capacity` for each prompt.

    Args:
        capacity: rows per prompt, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise out_of_range("PromptQueues.capacity", capacity, "at least 1")
        self.capacity = capacity
        self.index = PromptIndex()
        self.pushed = torch.zeros(0, dtype=torch.int64)
        """[P] total number of rows pushed, by the prompt's number."""
        self.table = RowTable()

    def push(self, batch: Trajectories) -> None:
        """Append rows in their order, each to the queue of its `prompt`; the oldest are dropped."""
        batch = batch.to("cpu")
        place = self.index.add(batch.prompt)
        self.pushed = torch.cat([self.pushed, self.pushed.new_zeros(len(self.index) - len(self.pushed))])
        rank, total = rank_within(place, len(self.index))
        stays = rank >= total[place] - self.capacity
        slot = place * self.capacity + (self.pushed[place] + rank) % self.capacity
        self.pushed = self.pushed + total
        self.table.put(slot[stays], batch.select(stays))

    def slots(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Return (slot, there) of the records of these prompts [B], oldest first: both [B, capacity]; on the CPU."""
        place = self.index.find(prompts.cpu())
        count = torch.where(place >= 0, self.pushed[place.clamp(min=0)] if len(self.pushed) else 0, 0)
        held = count.clamp(max=self.capacity)
        order = torch.arange(self.capacity)
        age = (count - held).unsqueeze(-1) + order
        slot = place.clamp(min=0).unsqueeze(-1) * self.capacity + age % self.capacity
        return slot, order < held.unsqueeze(-1)

    def state_dict(self) -> dict[str, Any]:
        """Return queues and rows."""
        return {"index": self.index.state_dict(), "pushed": self.pushed, "table": self.table.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self.index.load_state_dict(state["index"])
        self.pushed = state["pushed"]
        self.table.load_state_dict(state["table"])


def _takes_prompts(plan: Any) -> None:
    if not hasattr(plan, "prompts"):
        raise ValueError(
            f"{type(plan).__name__} does not declare its number of prompts, which RecentReplay must reduce: put RecentReplay"
            " inside it instead"
        )


@component
class RecentReplay:
    """Plan in which each group is, with probability `share`, a group of one of the last `window` rollouts.

    Each of the plan's prompts is at random fresh or old, and an old one's number of steps back is uniform in 1 to `window`;
    where the run has fewer steps, or that rollout has no further group, it is fresh. Groups are replayed whole, with the
    log-probabilities of the policy that generated them in `logp_old`, and `age` [N] is the number of steps since then.
    At least one group is fresh. With share 0 no rows are stored and the plan is unchanged.

    Attributes:
        plan: samples fresh groups; has `prompts`.
        share: probability of an old group, 0 to below 1; a function of the context where it changes in the run.
        window: number of rollouts that are stored.
        current: also fill `logp_current`, by one more forward pass over the old rows; for fresh ones it is `logp_old`.
    """

    plan: Annotated[Any, checked_by(_takes_prompts)] = field(default_factory=Groups)
    share: Annotated[float, at_least(0), below(1)] | Callable[[Context], float] = 0.5
    window: Annotated[int, at_least(1)] = 2
    current: bool = False
    _memory: dict[str, Any] = memory()

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step; where groups are replayed, the number of fresh ones is random."""
        whole = cost(self.plan, episode)
        return whole if self.share == 0 else Cost(rows=whole.rows)

    def __call__(self, context: Context) -> Trajectories:
        """Sample fresh groups and append old ones."""
        share = float(context.now(self.share))
        kept: list[Trajectories] = self._memory.setdefault("kept", [])
        if share == 0:
            kept.clear()
            return self._judged(_aged(self.plan(context), 0), context)
        old = self._draw(share, kept, context)
        wanted = self.plan.prompts - sum(int(part.group.unique().numel()) for part in old)
        batch = _aged(context.verify(adapted(self.plan, prompts=wanted)(context)), 0)
        kept.insert(0, batch.to("cpu"))
        del kept[self.window :]
        context.record("rollout/replayed", 1 - wanted / self.plan.prompts)
        return self._judged(joined([batch, *(part.to(batch.device) for part in old)]), context)

    def _judged(self, batch: Trajectories, context: Context) -> Trajectories:
        if not self.current:
            return batch
        old = (batch.age > 0).nonzero().squeeze(-1)
        logp = batch.logp_old
        if len(old):
            logp = logp.index_copy(0, old, context.evaluate(batch.select(old)).to(logp.dtype))
        return batch.replace(logp_current=logp)

    def _draw(self, share: float, kept: list[Trajectories], context: Context) -> list[Trajectories]:
        """Choose old groups: from each stored rollout as many distinct ones as were drawn from it."""
        size = self.plan.prompts
        drawn = torch.rand(size, generator=context.generator) < share
        back = torch.randint(self.window, (size,), generator=context.generator)
        if bool(drawn.all()):
            drawn[0] = False
        asked = torch.bincount(back[drawn], minlength=self.window).tolist()
        old = []
        for steps, (snapshot, count) in enumerate(zip(kept, asked, strict=False), start=1):
            index, groups = group_index(snapshot.group)
            chosen = torch.randperm(groups, generator=context.generator)[:count]
            part = snapshot.select(torch.isin(index, chosen))
            if len(part):
                old.append(_aged(part, steps))
        return old

    def state_dict(self) -> dict[str, Any]:
        """Return the stored rollouts, newest first."""
        return {"kept": [to_state(batch) for batch in self._memory.get("kept", [])]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self._memory["kept"] = [from_state(batch) for batch in state["kept"]]


def _aged(batch: Trajectories, steps: int) -> Trajectories:
    return batch.replace(age=torch.full((len(batch),), steps, device=batch.device))
