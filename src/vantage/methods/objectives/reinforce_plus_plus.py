"""REINFORCE++: PPO's clip without a critic, on advantages standardised over the whole batch.

A baseline taken within a small group overfits to easy prompts and is biased when it divides by the group's own std; the
batch's mean and std are nearly constants. The divergence to the reference is subtracted from the reward of each token:

    G_t  = r - beta * sum_{k >= t} (logp_old_k - logp_ref_k),     A_t = (G_t - mean G) / std G over all tokens
    loss = mean over tokens of -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)

With `baseline=True` (REINFORCE++-baseline, for several answers a prompt) the group's mean score is subtracted before, groups whose
scores do not differ are drawn again, and the divergence is a term of the loss, its mean over tokens in the k2 form:

    A    = (r - mean_g r - mean) / std over all tokens          loss + beta * mean over tokens of (logp - logp_ref)^2 / 2

arXiv 2501.03262, section 3; two forms of the authors' trainer, with the settings of their scripts. That of the baseline form is
`baseline=true prompts=128 group_size=8 minibatches=1`: one update a batch, so that its clip never acts.

Where this differs: the plain script's rewards come from a reward model, standardised by the moments stored with it and held to
+-10; here rewards are a task's, and `score_limit` holds them only where it is set. The log-ratio to the reference, and its k2, are
not held to +-10, as they are in their code today. The token mean is of the minibatch, that of the plain script of 16 packed rows.
The baseline script drops tokens whose probabilities differ between sampler and policy (IcePop), and refills without end. verl's
forms have the sample std (`advantage.ddof=1`), and its baseline form the divergence in the score, before the mean is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from torch import Tensor

from vantage.advantages.estimators import RewardToGo
from vantage.core import above, at_least, component
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories, own
from vantage.functions.groups import group_mean
from vantage.functions.rows import at_last
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.regularizers.penalties import ReferenceKL
from vantage.rewards.mixing import DivergencePenalty
from vantage.rollouts.plans import Refill
from vantage.updates.optimizers import Constant

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
        return _changed(batch, batch.score - group_mean(batch.score, batch.group))


@component
class Limited:
    """Holds the score to [-limit, limit]; the reward of a row's last token changes with it."""

    limit: Annotated[float, above(0)] = 10.0

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the batch with both changed."""
        return _changed(batch, batch.score.clamp(-self.limit, self.limit))


def _changed(batch: Trajectories, score: Tensor) -> Trajectories:
    return batch.replace(score=score, reward=batch.reward + at_last(score - batch.score, own(batch)))


@method(
    papers=PAPER,
    source="OpenRLHF/OpenRLHF@8f10ce9 examples/scripts/train_reinforce_llama_ray.sh; OpenRLHF/OpenRLHF@3c3be62"
    " examples/scripts/train_reinforce_baseline_hybrid_engine.sh; volcengine/verl@b178a3c verl/trainer/ppo/core_algos.py",
    base=grpo,
    without=("beta",),
    beta=0.0,
    prompts=1024,
    group_size=1,
    minibatches=8,
    lr=5e-7,
    lr_schedule="cosine",
    lr_warmup=0.03,
    adam_betas=(0.9, 0.95),
)
def reinforce_plus_plus(
    base: Method,
    beta: Annotated[float, at_least(0)] | None = None,
    baseline: bool = False,
    rounds: Annotated[int, at_least(0)] = 10,
    score_limit: float | None = None,
    lr_final: Annotated[float, at_least(0)] = 0.1,
) -> Method:
    """beta: weight of the divergence, none for the form's, 1e-4 in the reward and 1e-5 in the loss; baseline: the form with
    the group's mean subtracted, whose groups have at least two answers; rounds: plans drawn at most in that form until the batch is
    full of groups whose scores differ, 0 for no filter; score_limit: bound of the score's size, after the mean is
    subtracted, none for no bound; lr_final: share of the rate at the end of a schedule that falls."""
    plan = base.rollout
    if baseline and plan.size == 1:
        raise UserError(
            "reinforce-plus-plus: baseline=True with group_size=1 leaves every advantage 0, as an answer alone is its group's mean:"
            " set group_size=8 (with prompts=128, minibatches=1 in the authors' script)"
        )
    weight = (1e-5 if baseline else 1e-4) if beta is None else beta
    divergence = (ReferenceKL(weight, "k2") if baseline else DivergencePenalty(weight),) if weight else ()
    limited = (Limited(score_limit),) if score_limit is not None else ()
    schedule = base.update.schedule
    return base.replace(
        rollout=Refill(plan, groups=plan.prompts, rounds=rounds) if baseline and rounds else plan,
        rewards=(*base.rewards, GroupCentred(), *limited) if baseline else (*base.rewards, *limited, *divergence),
        advantage=RewardToGo(1.0, whiten=True, ddof=0),
        averaging="token-mean",
        regularizers=divergence if baseline else (),
        update=replace(
            base.update, schedule=schedule if isinstance(schedule, Constant) else replace(schedule, final=lr_final)
        ),
    )


claim = Claim(
    arena="arithmetic",
    against="grpo",
    direction="no worse",
    margin=0.05,
    settings={
        "prompts": 256,
        "group_size": 1,
        "minibatches": 1,
        "beta": 0.01,
        "lr_schedule": "constant",
        "lr_warmup": 0,
        "adam_betas": [0.9, 0.999],
    },
    note="The authors claim a stabler training than GRPO's at comparable accuracy, with one answer a prompt. One update a batch"
    " and a constant rate on both sides.",
)
