"""Rollout plan that samples the answers to a prompt as a tree of segments with shared prefixes."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from vantage.core import at_least, checked_by, component, one_of
from vantage.core.context import Context, prefix_engine
from vantage.core.costs import Cost
from vantage.core.trajectories import Trajectories, concatenate, declare
from vantage.functions.groups import rank_within
from vantage.rollouts.plans import Groups

declare("reach", "[N, D]", "decisions up to the end of the node at each of D depths", "a tree rollout")

SHARES = ("equal", "logp", "mean_logp")
CUTS = ("random", "least_likely", "block", "inverse_block")


def _ascending(bounds: tuple[int, int]) -> None:
    if bounds[0] > bounds[1]:
        raise ValueError("the smaller comes first")


def _not_zero(value: float) -> None:
    if not abs(value) > 0:
        raise ValueError("any number but 0")


@component
class Trees(Groups):
    """Rollout of `size` answers to each of `prompts` prompts, the leaves of a tree whose branches are segments of `segment` tokens.

    A random number of branches start at the prompt. After each segment the unfinished branches of a prompt are continued in as
    many copies as remain, at most `branching` per branch, divided equally, with the remainder for the last. When all have ended
    and leaves are missing, those that ended by themselves are taken once each in random order, cut back to a random multiple of
    `segment` and continued in `branching` copies, until there are `size`; the leaf itself remains. Truncated leaves are not taken;
    where a prompt has no others, the prompt itself is continued. Where leaves are still missing, the next round does the same.
    All tokens of a row are in its mask, including those that it shares with others.

    Fills `path` [N, K] int64: the numbers of the branches from the root to a row, from 1, padded with 0. Rows of a
    `group` (the prompt) whose paths have a common beginning share a branch. A continuation of a leaf that was cut back has the
    branches whose text was kept before its own number, or without `cut_path` the leaf's whole path.

    Copies and cuts may depend on the log-probabilities `logp_old` with which the rows were sampled:

        share "logp"        weights softmax(-s / share_temperature) over the branches of a prompt, s the log-probability of all
                              of a branch's tokens: unlikely branches get more copies; a temperature below 0 favours likely ones
        share "mean_logp"   the same with the mean over its tokens
        cut "least_likely"  before a leaf's least likely token, which is then sampled again
        cut "block"         before a block of `block` tokens, sampled by softmax of minus the blocks' mean log-probability, so that
                              an unlikely block is cut more often; "inverse_block" by softmax of plus that

    Each branch has one copy; the remaining copies are divided in proportion to the weights, by largest remainder.

    Attributes:
        segment: tokens per branch, at least 1.
        depth: largest number of branches in a row, at least 1. A row that was cut elsewhere than at a multiple of `segment`
            may be longer by less than a segment.
        branching: largest number of copies of a branch, at least 1.
        first: smallest and largest number of branches at the prompt; at most `size`.
        cut_path: see above.
        share: "equal", "logp" or "mean_logp".
        share_temperature: not 0.
        cut: "random" (a multiple of `segment`), "least_likely", "block" or "inverse_block".
        block: tokens per block, at least 1.
    """

    segment: Annotated[int, at_least(1)] = 512
    depth: Annotated[int, at_least(1)] = 14
    branching: Annotated[int, at_least(1)] = 2
    first: Annotated[tuple[Annotated[int, at_least(1)], Annotated[int, at_least(1)]], checked_by(_ascending)] = (2, 8)
    cut_path: bool = True
    share: Annotated[str, one_of(SHARES)] = "equal"
    share_temperature: Annotated[float, checked_by(_not_zero)] = 1.0
    cut: Annotated[str, one_of(CUTS)] = "random"
    block: Annotated[int, at_least(1)] = 128
    needs = frozenset({"prefixes"})

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step; how often a branch is continued depends on where answers end."""
        return Cost(self.prompts * self.size)

    def __call__(self, context: Context) -> Trajectories:
        """Sample the trees. Records the decoded tokens per row, and their share of the rows' tokens."""
        engine = prefix_engine(context, "Trees")
        prompts = context.next_prompts(self.prompts)
        least, most = (min(count, self.size) for count in self.first)
        starts = torch.randint(least, most + 1, (len(prompts),), generator=context.generator)
        fresh = engine.sample(prompts.repeat(starts), 1, context, limit=self.segment)
        tree = torch.arange(len(prompts)).repeat_interleave(starts).to(fresh.device)
        nothing = tree.new_zeros(len(tree), 0)
        rows = _numbered(fresh, tree, nothing, nothing, 0)
        decoded, earlier, numbers = fresh.mask.sum(), 0, len(fresh)
        longest = min(engine.max_length, self.segment * self.depth)
        while True:
            over = rows.terminated.any(-1) | (rows.length >= longest)
            copies, place = self._next(rows, over, earlier, len(prompts), context)
            index = torch.arange(len(rows), device=copies.device).repeat_interleave(copies)
            if not len(index):
                break
            # A prompt that is continued itself, in the place of a leaf, has no branch yet.
            anew = (over & ~rows.terminated.any(-1))[index]
            place = place[index]
            fresh = engine.resume(rows, index, place, 1, context, limit=self.segment)
            decoded = decoded + fresh.mask.sum()
            path, reach = rows["path"][index], rows["reach"][index]
            kept = branches_kept(reach, place) | ~(anew | self.cut_path).unsqueeze(-1)
            path, reach = path * kept, reach * kept
            ended = rows.select(over)
            rows = concatenate([ended, _numbered(fresh, rows.group[index], path, reach, numbers)])
            earlier, numbers = len(ended), numbers + len(fresh)
        context.record("tree/decoded", decoded / len(rows))
        context.record("tree/share", decoded / rows.length.sum())
        return rows.select(torch.argsort(rows.group, stable=True)).replace(reach=None)

    def _next(
        self, rows: Trajectories, over: Tensor, earlier: int, trees: int, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Return the number of copies in which each row is continued [N], and the number of tokens that these keep [N].

        The first `earlier` rows had ended before the last round.
        """
        tree, device = rows.group, rows.device
        ended = torch.bincount(tree[over], minlength=trees)
        alive = torch.bincount(tree[~over], minlength=trees)
        just = torch.bincount(tree[earlier:][over[earlier:]], minlength=trees)
        room = self.size - ended
        # Active branches share the copies of their tree, including those of branches that have just ended.
        total = torch.minimum(room, self.branching * (alive + just))
        live = (~over).nonzero().squeeze(-1)
        copies = torch.zeros_like(tree)
        copies[live] = self._shared(rows.select(live), total, alive)
        # Where no branch is active, leaves that ended by themselves are cut back, in random order; without any, the prompt.
        lot = torch.rand(2, len(rows), generator=context.generator).to(device)
        itself = rows.terminated.any(-1)
        order = torch.argsort(lot[0] - itself.float())
        rank = torch.empty_like(tree)
        rank[order] = rank_within(tree[order], trees)[0]
        missing = (room[tree] - rank * self.branching).clamp(0, self.branching)
        taken = (alive[tree] == 0) & (itself | (rank == 0))
        copies = torch.where(taken, missing, copies)
        return copies, torch.where(over, torch.where(itself, self._cut(rows, lot[1]), 0), rows.length)

    def _shared(self, rows: Trajectories, total: Tensor, alive: Tensor) -> Tensor:
        """Return the number of copies of each row [N], where each tree divides `total` [trees] among its `alive` rows."""
        tree, trees = rows.group, len(total)
        if self.share == "equal":
            each, rest = total // alive.clamp(min=1), total % alive.clamp(min=1)
            last = rank_within(tree, trees)[0] == alive[tree] - 1
            return each[tree] + torch.where(last, rest[tree], 0)
        logp = torch.where(_inside(rows), rows.logp_old, 0.0).sum(-1).double()
        if self.share == "mean_logp":
            logp = logp / rows.length.clamp(min=1)
        return 1 + largest_remainder(-logp / self.share_temperature, tree, total - alive)

    def _cut(self, rows: Trajectories, lot: Tensor) -> Tensor:
        """Return the number of tokens of each row [N] that are kept when it is cut back; `lot` [N] is uniform in [0, 1)."""
        if self.cut == "least_likely":
            return rows.logp_old.masked_fill(~_inside(rows), torch.inf).argmin(-1)
        size = self.segment if self.cut == "random" else self.block
        blocks = (rows.length + size - 1) // size
        if self.cut == "random":
            drawn = (lot * blocks).long()
        else:
            chance = block_chances(rows.logp_old, rows.length, size, -1.0 if self.cut == "block" else 1.0)
            drawn = (lot.unsqueeze(-1) >= chance.cumsum(-1)).sum(-1)
        return drawn.clamp(max=blocks - 1) * size


def largest_remainder(score: Tensor, group: Tensor, total: Tensor) -> Tensor:
    """Divide `total` [K] copies of each group among its rows by the softmax of their scores; return the number for each row [N].

    A row gets its exact share rounded down; the rest is given one each to the largest remainders, on ties to the first.

    Args:
        score: [N] float.
        group: [N] in [0, K).
        total: [K], at least 0.
    """
    top = torch.full((len(total),), -torch.inf, dtype=score.dtype, device=score.device)
    weight = (score - top.scatter_reduce(0, group, score, "amax")[group]).exp()
    sums = torch.zeros_like(top).index_add_(0, group, weight)
    exact = weight / sums[group] * total[group]
    # A share that is a whole number up to rounding counts as whole.
    whole = (exact + 1e-9).floor().long()
    left = total - torch.zeros_like(total).index_add_(0, group, whole)
    order = torch.argsort(whole - exact, stable=True)
    rank = torch.empty_like(group)
    rank[order] = rank_within(group[order], len(total))[0]
    return whole + (rank < left[group])


def branches_kept(reach: Tensor, place: Tensor) -> Tensor:
    """Return whether each branch of a path [N, K], which ends at `reach` [N, K], is complete in the first `place` [N] tokens."""
    return reach <= place.unsqueeze(-1)


def block_chances(logp: Tensor, length: Tensor, size: int, sign: float) -> Tensor:
    """Return the softmax of `sign` times the blocks' mean log-probabilities [N, B]: the probability of a cut before a block."""
    mean = block_means(logp, length, size)
    return (sign * mean).masked_fill(mean.isinf(), -torch.inf).softmax(-1)


def block_means(values: Tensor, length: Tensor, size: int) -> Tensor:
    """Return the means of `values` [N, T] over blocks of `size` positions within each row's `length` [N]: [N, ceil(T / size)].

    The last block of a row may be shorter; blocks after it are -inf.
    """
    rows, steps = values.shape
    inside = torch.arange(steps, device=values.device) < length.unsqueeze(-1)
    padded = (0, -steps % size)
    sums = F.pad(torch.where(inside, values, 0.0), padded).view(rows, -1, size).sum(-1)
    counts = F.pad(inside, padded).view(rows, -1, size).sum(-1)
    return torch.where(counts > 0, sums / counts.clamp(min=1), -torch.inf)


def _inside(rows: Trajectories) -> Tensor:
    """Return the mask of positions [N, T] within the rows' lengths."""
    return torch.arange(rows.steps, device=rows.device) < rows.length.unsqueeze(-1)


def _numbered(rows: Trajectories, tree: Tensor, path: Tensor, reach: Tensor, before: int) -> Trajectories:
    """Return rows with a new segment: all tokens in the mask, and a number above `before` at the end of each path.

    `reach` [N, K] is the length of the row at the end of each branch of its path.
    """
    number = before + 1 + torch.arange(len(rows), device=rows.device)
    end = (path > 0).sum(1, keepdim=True)
    path, reach = (
        torch.cat([held, held.new_zeros(len(held), 1)], 1).scatter(1, end, new.unsqueeze(1))
        for held, new in ((path, number), (reach, rows.length))
    )
    return rows.replace(mask=_inside(rows), group=tree, path=path, reach=reach, parent=None)


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
