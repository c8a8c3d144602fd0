"""Dr. GRPO: GRPO without its two biases.

Dividing by the group's standard deviation weighs prompts by their difficulty, and dividing by an answer's own length
rewards short right answers and long wrong ones. Both divisions are removed:

    A_i  = r_i - mean_g r                                   r_i = 0 where the answer was cut at the length limit
    loss = 1 / (N * T_max) * sum over rows and tokens of  -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)

with T_max a constant, the longest answer allowed. arXiv 2503.20783, section 3.2; no divergence term, eight minibatches a batch.
Defaults are those of the authors' scripts, where T_max is 3000. Later versions of their trainer weigh tokens by the ratio of policy
to sampler, cut at 2; the scripts pin one that does not. N counts rows with tokens; a row of theirs has at least one.
In TRL `loss_type="dr_grpo"` alone still divides by the std: `scale_rewards="none"` belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.advantages.groups import GroupStandardized
from vantage.core import at_least, component, memory
from vantage.core.context import Context
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories, own
from vantage.functions.rows import at_last
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.rewards.mixing import row_limit

PAPER = Paper(
    "Understanding R1-Zero-Like Training: A Critical Perspective",
    "Zichen Liu and Changyu Chen and Wenjun Li and Penghui Qi and Tianyu Pang and Chao Du and Wee Sun Lee and Min Lin",
    2025,
    arxiv="2503.20783",
)


@component
class FixedLength:
    """Averaging: every decision weighs 1 / (N * length), whatever its row's length.

    Attributes:
        length: T_max, in decisions; None takes the engine's limit, or the width of the minibatch where it has none.
    """

    length: Annotated[int, at_least(1)] | None = None
    _memory: dict[str, Any] = memory()

    def prepare(self, context: Context) -> None:
        """Read the engine's limit."""
        self._memory["limit"] = row_limit(context.engine)

    def __call__(self, mask: Tensor, group: Tensor | None = None) -> Tensor:
        """Return the weights [N, T]."""
        return mask / (mask.shape[0] * (self.length or self._memory.get("limit") or mask.shape[1]))


@dataclass(frozen=True)
class TruncatedScore:
    """The score of an answer that was cut at the length limit, whatever the verifiers say of it.

    Rewards that came with the decisions stay: the time limit of an environment is no failure.
    """

    value: float = 0.0

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Change `score` and `reward`."""
        if "rewards" not in batch:
            return batch
        score = torch.where(batch.truncated.any(-1), self.value, batch.score)
        change = at_last(score - torch.nan_to_num(batch.score), own(batch))
        return batch.replace(score=score, reward=batch.reward + change)


@method(
    papers=PAPER,
    source="sail-sg/understand-r1-zero@dfca49d examples/qwen2.5-math-7b.sh; sail-sg/oat@c1a074c oat/algorithms/ppo.py",
    base=grpo,
    without=("beta",),
    beta=0.0,
    prompts=128,
    group_size=8,
    minibatches=8,
    adam_betas=(0.9, 0.95),
)
def dr_grpo(
    base: Method, max_length: Annotated[int, at_least(1)] | None = None, truncated_score: float | None = 0.0
) -> Method:
    """max_length: T_max in tokens, none takes the engine's limit; truncated_score: score of an answer that was cut there,
    none leaves it its own."""
    cut = (TruncatedScore(truncated_score),) if truncated_score is not None else ()
    return base.replace(
        rewards=(*base.rewards, *cut),
        advantage=GroupStandardized(scale="none"),
        averaging=FixedLength(max_length),
    )


claim = Claim(
    arena="arithmetic",
    against="grpo",
    direction="no worse",
    margin=0.05,
    settings={"minibatches": 1, "adam_betas": [0.9, 0.999], "truncated_score": None},
    note="The authors claim the same accuracy with shorter wrong answers; here all answers are short, so that the accuracy alone"
    " is tested, with one update a batch and the same optimiser on both sides.",
)
