"""BranchGRPO: one tree of denoising paths per prompt, with a separate advantage at every depth. (S125)

Paths share their prefix and split in two at chosen steps, so that shared steps are computed once. The rewards of the leaves
are averaged upward, and every node is compared with the nodes of its depth, so that each step gets its own advantage; pruning
removes edges from the update alone.

    value(node) = mean over its leaves of R          (or, bottom up, sum over children of softmax(child's logp) value(child))
    A(node)     = (value - mean) / (std + 1e-8) over the nodes of this tree at this depth; 0 for one node or equal ones
    loss        = mean over edges parent -> child of  max(-A ratio, -A clip(ratio, 1 - e, 1 + e)),   A(child) cut to [-5, 5]

The sampler has a constant sigma (0.3) and shifted times; a split multiplies the children's noise by 4, which the recorded
logp ignores, as released; the reward is computed on the noise-free prediction of the last step. Pruning, as released and
off by default: a window of depths that slides one shallower every 30 updates; in width, of the edges after the last split,
the better half of each leaf's (mode 1) or the best and worst quarter of all (mode 2). arXiv 2509.06040; constants from the
authors' script.

That script shuffles the edges of two trees on each of 8 GPUs and takes an optimiser step every 12 edges of each: with the
default tree 37 steps of 96 edges a batch, all but the first against log-probabilities of an older policy, for which the clip
is needed. The defaults are these. In one minibatch and one epoch every ratio is 1 and nothing is clipped. The
number of minibatches does not follow the size of the trees: with other trees, or with pruning, it must be set
again. The loss is divided once more by a tree's trained edges (218), which Adam hardly sees, but the norm's clip does: at 1 it
almost never acts. Here the advantages are divided, which is the same.

Differences: minibatches have equal size (94 edges), there the last step of a batch has the 4 edges that remain and is not
clipped; every tree has an initial noise of its own, there the two of a GPU share it; stored states are exact, there they are
rounded to bfloat16 after logp is taken, so that log-ratios begin at -8e-4 to -1e-4, not 0; mode 2 ranks the edges of the whole
batch, there those of two trees. `--ignore_last` and `--timestep_fraction` of the script are read by nothing there (all steps are
trained), and as shipped it does not start: `--pruning_step_ratio` has no value.

In a batch a tree is its leaves' rows: an edge that several leaves share is in each of their rows, and `mask` is True in
the first of them alone, so that it is evaluated and trained on once.
"""

from __future__ import annotations

from dataclasses import field
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from vantage.advantages.clamped import Clamped
from vantage.annotations import above, at_least, at_most
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.costs import Cost
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories, declare
from vantage.functions.groups import group_moments, group_sums
from vantage.functions.whitening import standardize
from vantage.methods.claim import Claim
from vantage.methods.generative.flow_grpo import flow_grpo
from vantage.methods.registry import Paper, method
from vantage.rollouts.denoising import Sampler, denoising_engine
from vantage.selection.steps import NoisySteps

declare("edge", "[N, T]", "number of the tree's edge that the step belongs to", "the recipe's tree")

PAPER = Paper(
    "BranchGRPO: Stable and Efficient GRPO with Structured Branching in Diffusion Models",
    "Yuming Li and Yikai Wang and Yuying Zhu and Zhongyu Zhao and Ming Lu and Qi She and Shanghang Zhang",
    2025,
    arxiv="2509.06040",
)


@component
class Tree:
    """Rollout: a binary tree of samples for each of `prompts` prompts; 2^(number of splits) rows a tree.

    Fills `edge` [N, T], the number of the edge that a row's step is: rows of one tree that share a step share its number.

    Attributes:
        prompts: trees a step, at least 1.
        splits: steps (from 0) at which every node has two children, ascending.
        noise_scale: factor on the noise of the children, above 0.
        sampler: times and noise.
    """

    prompts: Annotated[int, at_least(1)] = 16
    splits: tuple[int, ...] = (0, 3, 6, 9)
    noise_scale: Annotated[float, above(0)] = 4.0
    sampler: Sampler = field(default_factory=lambda: Sampler(20, 0.3, "constant", 3.0, outcome="prediction"))
    needs = frozenset({"flow"})

    def __post_init__(self) -> None:
        steps = self.sampler.steps
        if list(self.splits) != sorted(set(self.splits)) or any(not 0 <= split < steps for split in self.splits):
            raise UserError(f"Tree.splits={self.splits} is out of range: ascending steps from 0 to {steps - 1}")

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step; each split counts its branches as further samples."""
        return Cost(self.prompts * 2 ** len(self.splits))

    def __call__(self, context: Context) -> Trajectories:
        """Sample the trees of the next prompts."""
        engine: Any = denoising_engine(context, "Tree")
        sampler, bounds = self.sampler, [*self.splits, self.sampler.steps]
        batch: Trajectories = engine.sample(
            context.next_prompts(self.prompts), 1, context, sampler=sampler, limit=bounds[0]
        )
        tree, first = batch.group, batch.mask
        for split, end in pairwise(bounds):
            rows = torch.arange(len(batch), device=batch.device)
            batch = engine.resume(
                batch,
                rows,
                torch.full_like(rows, split),
                2,
                context,
                limit=end - split,
                sampler=sampler,
                noise_scale=self.noise_scale,
            )
            tree = tree.repeat_interleave(2)
            older = (torch.arange(len(batch), device=batch.device) % 2 == 0).unsqueeze(-1)
            first = (first.repeat_interleave(2, 0) & older) | batch.mask
        # Rows that share a step are adjacent; `first` is the first of them.
        edge = first.cumsum(0) - 1
        edge = edge + len(batch) * torch.arange(sampler.steps, device=batch.device)
        context.record("rollout/edges", first.sum() / len(batch))
        return batch.replace(group=tree, mask=first, edge=edge, parent=None)


@component
class DepthStandardized:
    """Advantage [N, T] of an edge: its child's fused value among the nodes of the same tree and depth.

    Attributes:
        weighted: children count by the softmax of their steps' mean log-density per dimension, at temperature 1, not equally.
        eps: added to the std (divisor: nodes - 1).
    """

    weighted: bool = False
    eps: float = 1e-8

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage; an edge in several rows has it in each."""
        values = node_values(batch, self.weighted)
        rows, steps = values.shape
        tree = torch.unique(batch.group, return_inverse=True)[1]
        depth = (tree.unsqueeze(-1) * steps + torch.arange(steps, device=tree.device)).flatten()
        # An edge counts once: its other rows are missing scores.
        once = torch.where(first_rows(batch["edge"]), values, torch.nan).flatten()
        mean, std = group_moments(once, depth)
        return standardize(values - mean.reshape(rows, steps), std.reshape(rows, steps), self.eps)


def first_rows(edge: Tensor) -> Tensor:
    """Return [N, T], True in the first row of each edge; rows of an edge are adjacent."""
    return torch.cat([torch.ones_like(edge[:1], dtype=torch.bool), edge[1:] != edge[:-1]])


def node_values(batch: Trajectories, weighted: bool) -> Tensor:
    """Return the fused reward [N, T] of the node that each row has reached after each step."""
    edge = batch["edge"]
    rows, steps = edge.shape
    # The share of a leaf in a node is the product, over the splits below the node, of its branch's share among siblings.
    share = branch_shares(batch, weighted)
    below = torch.cat([share[:, 1:], torch.ones_like(share[:, :1])], 1).flip(1).cumprod(1).flip(1)
    score = batch.score.float().unsqueeze(-1)
    weighed = group_sums((score * below).flatten(), edge.flatten())[0].reshape(rows, steps)
    if not bool(torch.isnan(score).any()):
        return weighed
    # A leaf without a score is left out: the shares of the others are rescaled to sum to 1.
    there = below.masked_fill(torch.isnan(score), torch.nan)
    return weighed / group_sums(there.flatten(), edge.flatten())[0].reshape(rows, steps)


def branch_shares(batch: Trajectories, weighted: bool) -> Tensor:
    """Return [N, T]: the share of the row's child among the children of its parent at each step, 1 where there is one child."""
    edge = batch["edge"]
    parent = torch.cat([edge.amax() + 1 + batch.group.unsqueeze(-1), edge[:, :-1]], 1).flatten()
    once = first_rows(edge).flatten()
    if not weighted:
        return 1 / group_sums(torch.where(once, 1.0, 0.0), parent)[0].reshape(edge.shape)
    size = batch.action[0, 0].numel()
    logp = batch.logp_old.float().flatten() / size
    index = torch.unique(parent, return_inverse=True)[1]
    top = logp.new_full((int(index.max()) + 1,), -torch.inf).scatter_reduce(0, index, logp, "amax")
    weight = (logp - top[index]).exp()
    total = group_sums(torch.where(once, weight, 0.0), parent)[0]
    return (weight / total).reshape(edge.shape)


@component
class PruneDepths:
    """Selection: masks the edges into the nodes of some depths.

    Attributes:
        depths: of the child nodes, 1 to T; none prunes nothing.
        interval: updates after which the window slides one depth shallower; 0 never moves it.
        stop: the shallowest depth of the window at which it stops.
    """

    depths: tuple[int, ...] = ()
    interval: int = 30
    stop: int = 9

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Mask these edges."""
        if not self.depths:
            return batch
        slid = min(context.step // self.interval, max(min(self.depths) - self.stop, 0)) if self.interval else 0
        pruned = torch.zeros(batch.steps, dtype=torch.bool, device=batch.device)
        pruned[[depth - slid - 1 for depth in self.depths if 0 < depth - slid <= batch.steps]] = True
        return batch.replace(mask=batch.mask & ~pruned)


@component
class PruneWidth:
    """Selection: masks some of the edges after the last split.

    Attributes:
        last: step of the last split.
        mode: 1 keeps the max(1, int(share n)) best of the n of each leaf's path, the earlier on ties; 2 the
            K // 2 best and K - K // 2 worst of all n, K = max(2, int(share n)); 0 keeps all.
        share: in (0, 1].
    """

    last: int
    mode: Literal[0, 1, 2] = 0
    share: Annotated[float, above(0), at_most(1)] = 0.5

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Mask the others."""
        late = batch.mask & (torch.arange(batch.steps, device=batch.device) > self.last)
        if not self.mode or not bool(late.any()):
            return batch
        credit = torch.where(late, batch.advantage, -torch.inf)
        if self.mode == 1:
            best = (self.share * late.sum(-1)).long().clamp(min=1).unsqueeze(-1)
            rank = torch.argsort(torch.argsort(credit, dim=-1, descending=True, stable=True), dim=-1)
            kept = late & (rank < best)
        else:
            total = int(late.sum())
            wanted = max(2, int(self.share * total))
            rank = torch.argsort(torch.argsort(credit.flatten(), descending=True, stable=True)).reshape(late.shape)
            kept = late & ((rank < wanted // 2) | (rank >= total - (wanted - wanted // 2)))
        return batch.replace(mask=(batch.mask & ~late) | kept)


def share_of_tree(batch: Trajectories, context: Context) -> Trajectories:
    """Selection: divides the advantages by the edges that a tree trains on, on average and rounded down."""
    edges = int(batch.mask.sum()) // len(torch.unique(batch.group))
    return batch.replace(advantage=batch.advantage / max(edges, 1))


@method(
    id="S125", papers=PAPER, base=flow_grpo, without=("group_size", "beta", "exact_kl", "trained"), group_size=1, beta=0.0,
    prompts=16, lr=1e-5, steps=20, noise=0.3, shift=3.0, minibatches=37,
    source="Fredreic1849/BranchGRPO@19fbb9f scripts/finetune/finetune_flux_branchgrpo_8gpus.sh",
)  # fmt: skip
def branchgrpo(
    base: Method,
    splits: tuple[int, ...] = (0, 3, 6, 9),
    eps: float = 1e-3,
    noise_scale: float = 4.0,
    weighted: bool = False,
    pruned_depths: tuple[int, ...] = (),
    prune_width: Literal[0, 1, 2] = 0,
    mixed: bool = False,
    window: int = 4,
    interval: int = 30,
    limit: float = 5.0,
) -> Method:
    """splits: steps (from 0) at which every node has two children; eps: clip range of the ratio of a step;
    noise_scale: factor on the children's noise; weighted: children count by the softmax of their log-density; pruned_depths:
    depths that are not trained on; prune_width: 1 or 2 prunes edges after the last split, see `PruneWidth`; mixed: noise only at
    the splits and in windows of steps, the other steps are the ODE's and not trained on; window: steps of such a window;
    interval: steps between their starts, and updates after which the pruned depths slide; limit: bound of |A|."""
    splits, plain = tuple(splits), base.rollout.sampler
    steps = plain.steps
    noisy = None
    if mixed:
        noisy = tuple(step for step in range(steps) if step in splits or step % max(interval, 1) < window)
    sampler = Sampler(steps, plain.noise, "constant", plain.shift, noisy, "prediction")
    grown = base.replace(
        rollout=Tree(base.rollout.prompts, splits, noise_scale, sampler),
        advantage=Clamped(DepthStandardized(weighted), limit),
        selection=(
            NoisySteps(),
            PruneDepths(tuple(pruned_depths), interval),
            PruneWidth(max(splits, default=steps), prune_width),
            share_of_tree,
        ),
    )
    # Edges are shuffled apart.
    return grown.adapt("update", unit="auto")


claim = Claim(
    arena="flow-ring",
    against="flow-grpo",
    settings={"steps": 10, "splits": [0, 1, 3, 5], "shift": 1.0},
    note="Both have the same budget of sampler steps and trees or groups of 16 leaves; the authors report up to 16 % over"
    " independent paths. Splits at 0, 3, 6, 9 of 20 steps become 0, 1, 3, 5 of 10.",
)
