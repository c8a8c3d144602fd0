"""RLOO: REINFORCE with the other answers' mean as baseline.

A whole answer is one action, so neither critic nor clip is needed; the mean score of the k - 1 other answers to the same
prompt is an unbiased baseline. The divergence to the reference is part of the score:

    R_i  = r_i - beta * (logp_old(y_i) - logp_ref(y_i))
    loss = mean over rows of -(R_i - mean_{j != i} R_j) * logp(y_i),      logp(y) summed over the answer's tokens

arXiv 2402.14740, section 3.2 and equation 8. The paper's k is 2 or 4; beta, rate and batch are those of its TL;DR runs.
"""

from __future__ import annotations

from vantage.advantages.groups import LeaveOneOut
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import PolicyGradient
from vantage.rewards.mixing import DivergencePenalty

PAPER = Paper(
    "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    "Arash Ahmadian and Chris Cremer and Matthias Gallé and Marzieh Fadaee and Julia Kreutzer and Olivier Pietquin and"
    " Ahmet Üstün and Sara Hooker",
    2024,
    arxiv="2402.14740",
)


@method(papers=PAPER, base=grpo, without=("eps", "beta", "dual"), beta=0.0, prompts=128, group_size=4)
def rloo(base: Method, beta: float = 0.03) -> Method:
    """beta: weight of the divergence in the score, 0 needs no reference policy."""
    return base.replace(
        rewards=(*base.rewards, DivergencePenalty(beta)) if beta else base.rewards,
        advantage=LeaveOneOut(),
        objective=PolicyGradient(),
        averaging="seq-mean-token-sum",
    )


claim = Claim(
    arena="arithmetic",
    against="reinforce",
    note="The authors rank RLOO above REINFORCE with a baseline over the batch; here every answer of REINFORCE has a prompt of"
    " its own.",
)
