"""REINFORCE++: PPO's clip without a critic, on advantages standardised over the whole batch.

A baseline taken within a small group overfits to easy prompts and is biased when it divides by the group's own std; the
batch's mean and std are nearly constants. The divergence to the reference is subtracted from the reward of each token:

    G_t  = r - beta * sum_{k >= t} (logp_old_k - logp_ref_k),     A_t = (G_t - mean G) / std G over all tokens
    loss = mean over tokens of -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)

With `baseline=True` the group's mean score is subtracted before (REINFORCE++-baseline, for several answers a prompt).
arXiv 2501.03262, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from vantage.advantages.estimators import RewardToGo
from vantage.core.context import Context
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories, own
from vantage.functions.groups import group_mean
from vantage.functions.rows import at_last
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.rewards.mixing import DivergencePenalty

PAPER = Paper(
    "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization",
    "Jian Hu and Jason Klein Liu and Haotian Xu and Wei Shen",
    2025,
    arxiv="2501.03262",
)


@dataclass(frozen=True)
class GroupCentred:
    """Subtracts the group's mean score from score and reward."""

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the batch with both changed."""
        mean = group_mean(batch.score, batch.group)
        return batch.replace(score=batch.score - mean, reward=batch.reward - at_last(mean, own(batch)))


@method(papers=PAPER, base=grpo, without=("beta",), beta=0.0, prompts=128, group_size=1, lr=5e-7)
def reinforce_plus_plus(base: Method, beta: float = 0.01, baseline: bool = False) -> Method:
    """beta: weight of the divergence in the reward; baseline: subtract the mean score of the group first."""
    centred = (GroupCentred(),) if baseline else ()
    penalty = (DivergencePenalty(beta),) if beta else ()
    return base.replace(
        rewards=(*base.rewards, *centred, *penalty),
        advantage=RewardToGo(1.0, whiten=True),
        averaging="token-mean",
    )


claim = Claim(
    arena="arithmetic",
    against="grpo",
    direction="no worse",
    margin=0.05,
    settings={"prompts": 256, "group_size": 1},
    note="The authors claim a stabler training than GRPO's at comparable accuracy, with one answer a prompt.",
)
