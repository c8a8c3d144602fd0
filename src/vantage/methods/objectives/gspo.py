"""GSPO: GRPO with one importance ratio per answer instead of per token.

A token's ratio is one sample of a next-token distribution and corrects nothing; it only adds noise that grows with
length. GSPO clips the answer's ratio to the power 1 / length, the same for all of its tokens:

    s_i  = exp( mean_t (logp_it - logp_old_it) )
    loss = mean over rows of -min(s A, clip(s, 1 - eps_low, 1 + eps_high) A)

arXiv 2507.18071, equations 5 and 7, with that paper's bounds (3e-4 and 4e-4) and four minibatches a batch.
"""

from __future__ import annotations

from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import Clip

PAPER = Paper(
    "Group Sequence Policy Optimization",
    "Chujie Zheng and Shixuan Liu and Mingze Li and Xiong-Hui Chen and Bowen Yu and Chang Gao and Kai Dang and others",
    2025,
    arxiv="2507.18071",
)


@method(papers=PAPER, base=grpo, without=("eps", "beta", "dual"), beta=0.0, minibatches=4)
def gspo(base: Method, eps_low: float = 3e-4, eps_high: float = 4e-4) -> Method:
    """eps_low, eps_high: clip range of the answer's ratio."""
    return base.replace(objective=Clip(eps_low, eps_high, level="sequence"))


claim = Claim(
    arena="arithmetic",
    against="grpo",
    settings={"minibatches": 4},
    against_settings={"minibatches": 4},
    note="The authors claim more stable and more efficient training than GRPO; both sides take four minibatches a batch.",
)
