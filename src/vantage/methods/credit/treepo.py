"""TreePO: the answers to a prompt grow as a tree, and each is compared with those that it shares a branch with. (S162)

Independent answers decode the same beginnings again and again. TreePO grows them segment by segment, forks what has not ended, and
cuts answers back where leaves are missing; the advantage averages comparisons with all groups that share more and more of
the path, so that it sees the choice at each fork:

    a_ik = r_i - mean of r over the rows that share the first k branches with i,   k = 0 (the prompt), 1, .., those of > 1 row
    A_i  = mean over k of a_ik,   or weighted by the size of the groups;   whitened over all tokens of the batch
    loss = mean over tokens of -min(ratio A, clip(ratio, 1 - 0.2, 1 + 0.28) A),  for A < 0 at most -10 A

arXiv 2508.17445; defaults are those of the authors' launch script, functions those that it calls (recipe/treepo holds an
earlier copy of the tree, in which a leaf that is cut back keeps its whole path: `cut_path=False`). Scores are -1 and 1, the
overlong penalty of up to 1 acts on the last 512 tokens, and prompts whose unshaped scores are all the same are dropped and
sampled again, unless `rounds` is 1. A single answer to a prompt has a = r. Not the segment advantage of SPO, which is in that
code too.

Where their script fails we take what it means: it sets the first division's 2 to 8 under a key that nothing reads, so that each
prompt begins with 2 branches (`first_most=2`); and its window of -1 makes the first cut raise an error, for which the
code's default, multiples of the segment, is taken. Other than there: an answer ends with its end token alone (theirs also by
repetition), 512 prompts are drawn a round (1536), the mean is over the minibatch's tokens (a micro-batch's), and after the last
round the step goes on with what there is. Cuts at other places than multiples of the segment keep whole branches (theirs also the
one that is cut).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from vantage.advantages.groups import record_groups
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_moments, group_sums
from vantage.functions.rows import per_decision
from vantage.functions.whitening import whiten
from vantage.methods.claim import Claim
from vantage.methods.objectives.dapo import dapo
from vantage.methods.registry import Paper, method
from vantage.rollouts.trees import Trees, path_keys

PAPER = Paper(
    "TreePO: Bridging the Gap of Policy Optimization and Efficacy and Inference Efficiency with Heuristic Tree-based Modeling",
    "Yizhi Li and Qingshui Gu and Zhoufutu Wen and Ziniu Li and Tianshun Xing and Shuyue Guo and Tianyu Zheng and others",
    2025,
    arxiv="2508.17445",
)


@component
class TreeAdvantage:
    """The advantage of the page, from `score`, `group` and `path`; no gradient.

    Attributes:
        weights: "average" of the comparisons, or "group_size": each weighs as its group has rows.
        differing: a group below the prompt counts only where its scores differ.
        whiten: standardise over all decisions (unbiased variance, eps 1e-8 inside the root).
    """

    weights: Literal["average", "group_size"] = "average"
    differing: bool = False
    whiten: bool = True

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage [N, T]."""
        score = batch.score.float()
        record_groups(group_moments(score, batch.group)[1], batch.group, context)
        credit = per_decision(self.compare(score, batch.group, batch["path"], context), batch.mask)
        return whiten(credit, batch.mask) if self.whiten else credit

    def compare(self, score: Tensor, group: Tensor, path: Tensor, context: Context) -> Tensor:
        """Return the (weighted) mean of a row's comparisons [N]."""
        total, norm = torch.zeros_like(score), torch.zeros_like(score)
        for depth, (key, there) in enumerate(path_keys(group, path)):
            mean, std = group_moments(score, key)
            size = group_sums(score, key)[1]
            counts = there & (size > 1)
            if self.differing:
                counts &= std > 1e-6
            if depth == 0:  # the prompt always counts
                counts, mean = torch.ones_like(there), torch.where(size > 1, mean, 0.0)
            else:
                context.record("tree/compared", counts.float().mean())
            weight = counts * (size if self.weights == "group_size" else 1.0)
            total += weight * (score - mean)
            norm += weight
        return total / norm


@method(
    id="S162", papers=PAPER, needs="prefixes", base=dapo, without=("rounds", "epochs"), metric="total", overlong_buffer=512,
    source="multimodal-art-projection/TreePO@f055523 recipe/treepo/run_treepo_train.sh",
)  # fmt: skip
def treepo(
    base: Method,
    segment: int = 512,
    depth: int = 14,
    branching: int = 2,
    first_least: int = 2,
    first_most: int = 8,
    weights: Literal["average", "group_size"] = "average",
    differing: bool = False,
    cut_path: bool = True,
    share: str = "equal",
    share_temperature: float = 1.0,
    cut: str = "random",
    block: int = 128,
    rounds: int = 10,
) -> Method:
    """segment: tokens between branchings; depth: segments of the longest path; branching: children of a node at
    most; first_least, first_most: children of a prompt; weights: of the comparisons, `average` or `group_size`;
    differing: a group below the prompt counts only where its scores differ; cut_path: a leaf that was cut back
    loses the branches of its path whose text it lost; share: how the room for leaves is shared, see `Trees`;
    share_temperature: of that share; cut: where leaves are cut back, see `Trees`; block: tokens of a block of that cut;
    rounds: how often a step samples at most to have prompts whose answers differ in score, 1 samples once and drops
    none."""
    plan = base.rollout.plan
    trees = Trees(
        plan.prompts, plan.size, plan.temperature, segment, depth, branching, (first_least, first_most),
        cut_path, share, share_temperature, cut, block,
    )  # fmt: skip
    return base.replace(
        rollout=replace(base.rollout, plan=trees, rounds=rounds) if rounds > 1 else trees,
        advantage=TreeAdvantage(weights, differing),
    )


_PLAIN = {"segment": 1, "rounds": 1, "overlong_buffer": 0, "lr_warmup": 0}
_SHORT = {**_PLAIN, "first_most": 4}
_ROOT = {**_PLAIN, "first_least": 8, "first_most": 8}
_NOTE = (
    "The authors: 22 to 43 % fewer GPU hours, up to 35 % fewer tokens. The baseline is the same method with all branches at the"
    " prompt, which is independent sampling. Each character is a segment; both sides decode as many, the trees in more steps."
)
claim = (
    Claim(
        name="accuracy",
        arena="arithmetic-tokens",
        against="treepo",
        direction="no worse",
        margin=0.03,
        settings=_SHORT,
        against_settings=_ROOT,
        note=_NOTE,
    ),
    Claim(
        name="tokens",
        arena="arithmetic-tokens",
        against="treepo",
        metric="mean:tree/share",
        direction="lower",
        margin=0.2,
        settings=_SHORT,
        against_settings=_ROOT,
        note=_NOTE,
    ),
)
