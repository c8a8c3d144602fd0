"""OTC-PPO: PPO with a higher reward for right answers that took fewer tool calls. (S041)

OTC multiplies the score of an answer with m tool calls by a factor in [0, 1]. Without a group there is no estimate of how many
calls the question needs, so the factor falls from the first call on (see otc for the form with one):

    factor = cos(pi m / (2 m + c))          r = alpha * factor * score          A by GAE, whitened over the batch

arXiv 2504.14870; the page otc lists what was read in the paper. The policy shares its trunk with the critic; the trace
passes over the tool's tokens, and a conversation that was cut at its limit is not bootstrapped: it has been scored and is
not continued.
"""

from __future__ import annotations

from vantage.advantages.critic import Critic
from vantage.advantages.estimators import GAE
from vantage.core.method import Method
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import method
from vantage.methods.rewards.otc import PAPER
from vantage.rewards.economy import CallEconomy


@method(
    id="S041", papers=PAPER, needs=("episodes", "turns", "critic"), base=grpo, group_size=8, beta=0.0,
    source="none: a review of the paper, whose code is not public; volcengine/verl@b178a3c verl/trainer/ppo/core_algos.py",
)  # fmt: skip
def otc_ppo(base: Method, alpha: float = 1.0, c: float = 4.0, lam: float = 1.0) -> Method:
    """alpha: scale of the reward; c: calls that halve a reward; lam: lambda of GAE, 0 to 1."""
    return base.replace(
        rewards=(*base.rewards, CallEconomy(alpha, c)),
        values=Critic(),
        advantage=GAE(1.0, lam, whiten=True),
        averaging="token-mean",
    )
