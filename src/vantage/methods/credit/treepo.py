"""TreePO: the answers to a prompt grow as a tree, and each is compared with those that it shares a branch with. (S162)

Independent answers decode the same beginnings again and again. TreePO grows them segment by segment, forks what has not ended, and
cuts answers back where leaves are missing; the advantage averages comparisons with all groups that share more and more of
the path, so that it sees the choice at each fork:

    a_ik = r_i - mean of r over the rows that share the first k branches with i,   k = 0 (the prompt), 1, .., those of > 1 row
    A_i  = mean over k of a_ik,   or weighted by the size of the groups;   whitened over all tokens of the batch
    loss = mean over tokens of -min(ratio A, clip(ratio, 1 - 0.2, 1 + 0.28) A),  for A < 0 at most -10 A

arXiv 2508.17445, as in the authors' code: segments, forks, cut back leaves with their whole path, eps 1e-8 inside the root. Prompts
whose answers all score the same are dropped and sampled again, unless `rounds` is 1. A single answer to a prompt has a = r. Here
an answer ends with its end token alone (theirs also at a boxed answer or repetition). Room is shared equally and cuts are
uniform, as in their runs; their options by log-probability are `share` and `cut` (`Trees` defines them). Not the segment
advantage of SPO, which is in that code too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.advantages.groups import record_groups
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_moments, group_sums
from vantage.functions.rows import per_decision
from vantage.methods.claim import Claim
from vantage.methods.objectives.dapo import dapo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import Clip
from vantage.rollouts.plans import Refill
from vantage.rollouts.trees import Trees, path_keys

PAPER = Paper(
    "TreePO: Bridging the Gap of Policy Optimization and Efficacy and Inference Efficiency with Heuristic Tree-based Modeling",
    "Yizhi Li and Qingshui Gu and Zhoufutu Wen and Ziniu Li and Tianshun Xing and Shuyue Guo and Tianyu Zheng and others",
    2025,
    arxiv="2508.17445",
)


@dataclass(frozen=True)
class TreeAdvantage:
    """The advantage of the page, from `score`, `group` and `path`; no gradient.

    Attributes:
        weights: "average" of the comparisons, or "group_size": each weighs as its group has rows.
        differing: a group below the prompt counts only where its scores differ.
        whiten: standardise over all decisions (unbiased variance, eps 1e-8 inside the root).
    """

    weights: str = "average"
    differing: bool = False
    whiten: bool = True

    def __post_init__(self) -> None:
        if self.weights not in ("average", "group_size"):
            raise UserError(f"TreeAdvantage.weights={self.weights!r} is not known: average or group_size")

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage [N, T]."""
        score = batch.score.float()
        record_groups(group_moments(score, batch.group)[1], batch.group, context)
        credit = per_decision(self.compare(score, batch.group, batch["path"], context), batch.mask)
        if not self.whiten:
            return credit
        count = batch.mask.sum()
        centred = torch.where(batch.mask, credit - credit.sum() / count.clamp(min=1), 0.0)
        return centred * torch.rsqrt(centred.square().sum() / (count - 1).clamp(min=1) + 1e-8)

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


@method(id="S162", papers=PAPER)
def treepo(
    prompts: int = 512,
    group_size: int = 16,
    lr: float = 1e-6,
    segment: int = 512,
    depth: int = 14,
    branching: int = 2,
    first_least: int = 2,
    first_most: int = 8,
    weights: str = "average",
    differing: bool = False,
    cut_path: bool = False,
    share: str = "equal",
    share_temperature: float = 1.0,
    cut: str = "random",
    block: int = 128,
    rounds: int = 3,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
    dual: float = 10.0,
    minibatches: int = 16,
    overlong_buffer: int = 0,
    weight_decay: float = 0.1,
    temperature: float = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """Compose TreePO; `overlong_buffer` is in tokens (512 in the paper).

    `rounds` is how often a step samples at most to have `prompts` prompts whose answers differ in score; with 1 it samples once and
    drops none, so that prompts whose answers all score the same stay in the batch and in its averages.
    """
    trees = Trees(
        prompts,
        group_size,
        temperature,
        segment,
        depth,
        branching,
        (first_least, first_most),
        cut_path,
        share,
        share_temperature,
        cut,
        block,
    )
    return dapo(
        prompts,
        group_size,
        lr=lr,
        minibatches=minibatches,
        overlong_buffer=overlong_buffer,
        weight_decay=weight_decay,
        micro_batch=micro_batch,
    ).replace(
        rollout=Refill(trees, groups=prompts, rounds=rounds) if rounds > 1 else trees,
        advantage=TreeAdvantage(weights, differing),
        objective=Clip(eps_low, eps_high, dual),
    )


_SHORT = {"segment": 1, "first_most": 4, "rounds": 1}
_ROOT = {"segment": 1, "first_least": 8, "first_most": 8, "rounds": 1}
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
