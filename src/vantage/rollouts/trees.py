"""A rollout plan that grows the answers to a prompt as a tree, segment by segment, sharing what they have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.advantages.groups import rank_within
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.protocols import prefix_engine
from vantage.core.trajectories import Trajectories, concatenate
from vantage.rollouts.plans import Groups, at_least


@dataclass(frozen=True)
class Trees(Groups):
    """`size` answers to each of `prompts` prompts, the leaves of a tree whose branches are segments of `segment` tokens.

    From the prompt a random number of branches start. After each segment the branches of a prompt that have not ended are
    continued in as many copies as there is room, at most `branching` for each that was there, shared equally, the rest to the
    last. When all have ended and leaves are missing, leaves are drawn (those that ended by themselves first), cut back to a
    random multiple of `segment`, and continued in `branching` copies; the leaf itself stays. All tokens of a row are learnt from,
    those too that it shares with others.

    Fills `path` [N, K] int64: the numbers of the branches that lead to a row, from 1, 0 where it has fewer than K. Rows of a
    `group` (the prompt) whose paths begin alike grew from one branch. What a leaf is continued as has the leaf's whole path
    before its own number, or with `cut_path` as much of it as text was kept.

    Attributes:
        segment: tokens a branch, at least 1.
        depth: branches in a row at most, by its length; at least 1.
        branching: at least 1.
        first: least and largest number of branches at the prompt; no more than `size`.
        cut_path: see above.
    """

    segment: int = 512
    depth: int = 14
    branching: int = 2
    first: tuple[int, int] = (2, 8)
    cut_path: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("segment", "depth", "branching"):
            at_least(f"Trees.{name}", getattr(self, name), 1)
        if not 1 <= self.first[0] <= self.first[1]:
            raise UserError(f"Trees.first={self.first} is out of range: 1 <= least <= largest")

    def __call__(self, context: Context) -> Trajectories:
        """Grow the trees. Records the tokens that were decoded a row, and their share of those that the rows hold."""
        engine = prefix_engine(context, "Trees")
        prompts = context.next_prompts(self.prompts)
        least, most = (min(count, self.size) for count in self.first)
        starts = torch.randint(least, most + 1, (len(prompts),), generator=context.generator)
        fresh = engine.sample(prompts.repeat(starts), 1, context, limit=self.segment)
        tree = torch.arange(len(prompts)).repeat_interleave(starts).to(fresh.device)
        rows = _numbered(fresh, tree, tree.new_zeros(len(tree), 0), 0)
        decoded, earlier, numbers = fresh.mask.sum(), 0, len(fresh)
        longest = min(engine.max_length, self.segment * self.depth)
        while True:
            over = rows.terminated.any(-1) | (rows.length >= longest)
            copies, place = self._next(rows, over, earlier, len(prompts), context)
            index = torch.arange(len(rows), device=copies.device).repeat_interleave(copies)
            if not len(index):
                break
            place = place[index]
            fresh = engine.resume(rows, index, place, 1, context, limit=self.segment)
            decoded = decoded + fresh.mask.sum()
            path = rows["path"][index]
            if self.cut_path:
                kept = torch.arange(path.shape[1], device=path.device) < (place // self.segment).unsqueeze(-1)
                path = path * kept
            ended = rows.select(over)
            rows = concatenate([ended, _numbered(fresh, rows.group[index], path, numbers)])
            earlier, numbers = len(ended), numbers + len(fresh)
        context.record("tree/decoded", decoded / len(rows))
        context.record("tree/share", decoded / rows.length.sum())
        return rows.select(torch.argsort(rows.group, stable=True))

    def _next(
        self, rows: Trajectories, over: Tensor, earlier: int, trees: int, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Return in how many copies each row is continued [N], and how many of its tokens these keep [N].

        The first `earlier` rows had ended before the last round.
        """
        tree, device = rows.group, rows.device
        ended = torch.bincount(tree[over], minlength=trees)
        alive = torch.bincount(tree[~over], minlength=trees)
        just = torch.bincount(tree[earlier:][over[earlier:]], minlength=trees)
        room = self.size - ended
        # Branches that live share the room of their tree, with what those leave that have just ended.
        total = torch.minimum(room, self.branching * (alive + just))
        live = (~over).nonzero().squeeze(-1)
        each, rest = total // alive.clamp(min=1), total % alive.clamp(min=1)
        last = rank_within(tree[live], trees)[0] == alive[tree[live]] - 1
        copies = torch.zeros_like(tree)
        copies[live] = each[tree[live]] + torch.where(last, rest[tree[live]], 0)
        # Where none lives, leaves are cut back: those that ended by themselves first, among them by lot.
        lot = torch.rand(2, len(rows), generator=context.generator).to(device)
        order = torch.argsort(lot[0] - rows.terminated.any(-1).float())
        rank = torch.empty_like(tree)
        rank[order] = rank_within(tree[order], trees)[0]
        missing = (room[tree] - rank * self.branching).clamp(0, self.branching)
        copies = torch.where(alive[tree] == 0, missing, copies)
        segments = (rows.length + self.segment - 1) // self.segment
        cut = (lot[1] * segments).long().clamp(max=segments - 1) * self.segment
        return copies, torch.where(over, cut, rows.length)


def _numbered(rows: Trajectories, tree: Tensor, path: Tensor, before: int) -> Trajectories:
    """Return rows that have just got a segment: all tokens learnt from, a number above `before` at the end of each path."""
    number = before + 1 + torch.arange(len(rows), device=rows.device)
    path = torch.cat([path, path.new_zeros(len(path), 1)], 1)
    path = path.scatter(1, (path > 0).sum(1, keepdim=True), number.unsqueeze(1))
    inside = torch.arange(rows.steps, device=rows.device) < rows.length.unsqueeze(-1)
    return rows.replace(mask=inside, group=tree, path=path, parent=None)


def path_keys(group: Tensor, path: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return for each depth (key, there): rows [N] that share the branch at this depth share the key, where they have one.

    Depth 0 is the group itself. A row without a branch at a depth has a key of its own there, and `there` [N] False.

    Args:
        group: [N].
        path: [N, K] numbers of branches, 0 for none.
    """
    rows = torch.arange(len(group), device=group.device)
    key = torch.unique(group, return_inverse=True)[1]
    found = [(key, torch.ones_like(group, dtype=torch.bool))]
    for number in path.unbind(1)[:-1]:
        there = number > 0
        pair = torch.stack([key, torch.where(there, number, -1 - rows)], 1)
        key = torch.unique(pair, dim=0, return_inverse=True)[1]
        found.append((key, there))
    return found
