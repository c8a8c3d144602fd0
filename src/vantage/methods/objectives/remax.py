"""ReMax: REINFORCE with the score of the greedy answer as baseline. (S239)

Language-model alignment has cheap simulation, deterministic transitions and one reward an answer, so a critic is
unnecessary: one extra, greedy answer to the same prompt gives a baseline that does not depend on the sampled one.

    R    = clip(r(x, y) - r(x, y_greedy), -c, c)
    G_t  = gamma^(n - t) * R - kl_coef * (logp_old_t - logp_ref_t)          t = 0 .. n-1, n the answer's length
    loss = -mean over rows of mean over tokens of G_t * logp_t

arXiv 2310.10505. This is the released code's form, with the settings of its Llama-2-7B script: the terminal reward is discounted
once already at the last token, and each token gets only its own divergence, not the sum of later ones. The greedy answer is scored
and never trained on; there is one update a batch. Theirs is one row a device, so that every row counts the same and their number is
that of the devices; here it is `prompts`. They sample with top-p 0.9, the task's option `top_p`; logp is of the whole
distribution. In verl gamma is 1, nothing is clipped, and a token's divergence is summed with that of later ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.costs import Cost, episodes
from vantage.core.method import Method
from vantage.core.scoring import scored
from vantage.core.trajectories import Trajectories, own
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import PolicyGradient
from vantage.rollouts.plans import Groups

PAPER = Paper(
    "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models",
    "Ziniu Li and Tian Xu and Yushun Zhang and Zhihang Lin and Yang Yu and Ruoyu Sun and Zhi-Quan Luo",
    2023,
    arxiv="2310.10505",
)


@dataclass(frozen=True)
class GreedyCompanion(Groups):
    """Groups, and for each prompt one greedy answer, whose score is the column `baseline` [N]."""

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step, greedy answers included."""
        return episodes(self.prompts * (self.size + 1), episode, rows=self.prompts * self.size)

    def __call__(self, context: Context) -> Trajectories:
        """Sample, score both, keep the sampled ones."""
        prompts = context.next_prompts(self.prompts)
        sampled = context.verify(context.engine.sample(prompts, self.size, context))
        # The step's metrics are those of the answers that are trained on.
        aside = context.under("greedy")
        score = scored(context.engine.sample(prompts, 1, aside, greedy=True), aside).score
        return sampled.replace(baseline=score.repeat_interleave(self.size))


@dataclass(frozen=True)
class GreedyBaseline:
    """The advantage G_t of the page; no gradient.

    Attributes:
        gamma: discount of the terminal reward towards the answer's beginning.
        limit: c, the bound on |R|.
        kl_coefficient: weight of a token's log-ratio to the reference; 0 needs no reference.
    """

    gamma: float = 0.99
    limit: float = 5.0
    kl_coefficient: float = 0.05

    @property
    def columns(self) -> frozenset[str]:
        """The reference's log-probabilities, where the divergence has a weight."""
        return frozenset({"logp_ref"} if self.kl_coefficient else ())

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return G [N, T]."""
        # An answer whose greedy answer has no score is missing.
        difference = torch.nan_to_num(batch.score - batch.baseline, nan=0.0).clamp(-self.limit, self.limit)
        # The discount counts decisions of the policy, not inserted tokens.
        left = own(batch).flip(1).cumsum(1).flip(1)
        discount = self.gamma**left
        returns = difference.unsqueeze(-1) * discount
        if self.kl_coefficient:
            returns = returns - self.kl_coefficient * (batch.logp_old - batch.logp_ref)
        context.record("baseline/greedy", batch.baseline.mean())
        return torch.where(batch.mask, returns, 0.0)


@method(
    id="S239",
    papers=PAPER,
    source="liziniu/ReMax@536ba49 step3_rlhf_finetuning/training_scripts/llama2/run_llama2_7b.sh",
    base=grpo,
    without=("eps", "beta", "dual", "epochs", "minibatches"),
    beta=0.0,
    group_size=1,
    lr_schedule="cosine",
    adam_betas=(0.9, 0.95),
    weight_decay=0.1,
)
def remax(base: Method, gamma: float = 0.99, limit: float = 5.0, kl_coefficient: float = 0.05) -> Method:
    """Compose ReMax; with `group_size` above 1 the answers to a prompt share its greedy baseline. gamma: discount
    of the terminal reward towards the beginning of the answer; limit: c, bound on |R|; kl_coefficient: weight of
    the divergence, 0 needs no reference policy."""
    plan = base.rollout
    return base.replace(
        rollout=GreedyCompanion(plan.prompts, plan.size, plan.temperature),
        advantage=GreedyBaseline(gamma, limit, kl_coefficient),
        objective=PolicyGradient(),
        averaging="seq-mean-token-mean",
    )


claim = Claim(
    arena="arithmetic",
    against="reinforce",
    settings={"lr_schedule": "constant", "adam_betas": [0.9, 0.999]},
    against_settings={"baseline": "none"},
    note="Against REINFORCE without a baseline, as in the paper, by the same optimiser; the greedy answers count as generated.",
)
