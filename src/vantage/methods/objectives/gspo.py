"""GSPO: GRPO with one importance ratio per answer instead of per token.

A token's ratio is one sample of a next-token distribution and corrects nothing; it only adds noise that grows with
length. GSPO clips the answer's ratio to the power 1 / length, the same for all of its tokens:

    s_i  = exp( mean_t (logp_it - logp_old_it) )
    loss = mean over rows of -min(s A, clip(s, 1 - eps_low, 1 + eps_high) A)

arXiv 2507.18071, equations 5 and 7, with that paper's bounds (3e-4 and 4e-4) and four minibatches a batch. The authors published
no code; the other defaults are those of verl's script, which was written with that paper. The mean log-ratio is at most 10, as in
verl (TRL, whose script trains a low-rank adapter at 1e-5, has no bound). A row without tokens counts in no mean, as in verl.
"""

from __future__ import annotations

from dataclasses import replace

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


@method(
    papers=PAPER,
    source="volcengine/verl@b178a3c examples/gspo_trainer/test_gspo_3b_math.sh;"
    " huggingface/trl@v1.16.0 trl/trainer/grpo_trainer.py",
    base=grpo,
    without=("eps", "beta", "dual"),
    beta=0.0,
    prompts=512,
    group_size=16,
    minibatches=4,
    lr_warmup=0.05,
    weight_decay=0.1,
)
def gspo(base: Method, eps_low: float = 3e-4, eps_high: float = 4e-4) -> Method:
    """eps_low, eps_high: clip range of the answer's ratio."""
    return base.replace(
        advantage=replace(base.advantage, eps=1e-6), objective=Clip(eps_low, eps_high, level="sequence")
    )


claim = Claim(
    arena="arithmetic",
    against="grpo",
    settings={"minibatches": 4, "lr_warmup": 0, "weight_decay": 0},
    against_settings={"minibatches": 4},
    note="The authors claim more stable and more efficient training than GRPO; both sides take four minibatches a batch,"
    " and neither a warm-up or weight decay.",
)
