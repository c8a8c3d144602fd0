"""Dr. GRPO: GRPO without its two biases.

Dividing by the group's standard deviation weighs prompts by their difficulty, and dividing by an answer's own length
rewards short right answers and long wrong ones. Both divisions are removed:

    A_i  = r_i - mean_g r
    loss = 1 / (N * T_max) * sum over rows and tokens of  -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)

with T_max a constant, the longest answer allowed. arXiv 2503.20783, section 3.2; no divergence term.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vantage.advantages.groups import GroupStandardized
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method

PAPER = Paper(
    "Understanding R1-Zero-Like Training: A Critical Perspective",
    "Zichen Liu and Changyu Chen and Wenjun Li and Penghui Qi and Tianyu Pang and Chao Du and Wee Sun Lee and Min Lin",
    2025,
    arxiv="2503.20783",
)


@dataclass(frozen=True)
class FixedLength:
    """Averaging: every decision weighs 1 / (N * length), whatever its row's length."""

    length: int

    def __call__(self, mask: Tensor, group: Tensor | None = None) -> Tensor:
        """Return the weights [N, T]."""
        return mask / (mask.shape[0] * self.length)


@method(papers=PAPER, base=grpo, without=("beta",), beta=0.0, prompts=128, group_size=8)
def dr_grpo(base: Method, max_length: int | None = None) -> Method:
    """max_length: T_max in tokens, none takes the batch's longest row."""
    return base.replace(
        advantage=GroupStandardized(scale="none"),
        averaging=FixedLength(max_length) if max_length else "seq-mean-token-sum-norm",
    )


claim = Claim(
    arena="arithmetic",
    against="grpo",
    direction="no worse",
    margin=0.05,
    note="The authors claim the same accuracy with shorter wrong answers; here all answers are short, so that the accuracy alone"
    " is tested.",
)
