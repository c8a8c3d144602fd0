"""RLOO: REINFORCE with the other answers' mean as baseline.

A whole answer is one action, so neither critic nor clip is needed; the mean score of the k - 1 other answers to the same
prompt is an unbiased baseline. The divergence to the reference is part of the score:

    R_i  = r_i - beta * (logp_old(y_i) - logp_ref(y_i))
    loss = mean over rows of -(R_i - mean_{j != i} R_j) * logp(y_i),      logp(y) summed over the answer's tokens

Where several optimiser steps are taken on a batch (`epochs`, `minibatches`), all but the first are off-policy, and the loss is
that of TRL, with the ratio of whole answers; at ratio 1 its gradient is the one above:

    loss = mean over rows of -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A),     ratio = exp(logp(y_i) - logp_old(y_i))

arXiv 2402.14740, section 3.2 and equation 8; the authors published no code. The paper's k is 2 or 4; beta, rate and batch are
those of its TL;DR runs. TRL has beta 0.05, k = 2 and a rate that falls to 0 (`lr_schedule="linear"`); verl's script has beta 0.001,
k = 5, 1024 prompts in four minibatches, and PPO's clip by token with the mean over tokens. A group of one has no baseline: refused.
"""

from __future__ import annotations

from typing import Annotated

from vantage.advantages.groups import LeaveOneOut
from vantage.core import at_least
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import Clip, PolicyGradient
from vantage.rewards.mixing import DivergencePenalty

PAPER = Paper(
    "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    "Arash Ahmadian and Chris Cremer and Matthias Gallé and Marzieh Fadaee and Julia Kreutzer and Olivier Pietquin and"
    " Ahmet Üstün and Sara Hooker",
    2024,
    arxiv="2402.14740",
)


@method(
    papers=PAPER,
    source="huggingface/trl@v1.16.0 trl/trainer/rloo_trainer.py; volcengine/verl@b178a3c examples/rloo_trainer/run_qwen2-7b.sh",
    base=grpo,
    without=("eps", "beta", "dual"),
    beta=0.0,
    prompts=128,
)
def rloo(
    base: Method,
    group_size: Annotated[int, at_least(2)] = 4,
    beta: Annotated[float, at_least(0)] = 0.03,
    eps: float = 0.2,
) -> Method:
    """group_size: k, answers to each prompt, at least 2; beta: weight of the divergence in the score, 0 needs no reference
    policy; eps: clip range of an answer's ratio, where there is more than one optimiser step a batch."""
    stale = base.update.optimizer_steps > 1
    return base.replace(
        rewards=(*base.rewards, DivergencePenalty(beta)) if beta else base.rewards,
        advantage=LeaveOneOut(),
        objective=Clip(eps, level="product") if stale else PolicyGradient(),
        averaging="seq-mean-token-mean" if stale else "seq-mean-token-sum",
    )


claim = Claim(
    arena="arithmetic",
    against="reinforce",
    note="The authors rank RLOO above REINFORCE with a baseline over the batch; here every answer of REINFORCE has a prompt of"
    " its own.",
)
