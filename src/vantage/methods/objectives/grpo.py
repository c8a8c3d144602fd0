"""GRPO: policy gradient whose baseline is the mean score of a group of answers to one prompt.

The critic is replaced by the other answers to the same prompt: the score is standardised within the group, and every
token of an answer gets it. The rest is PPO's clip, with the divergence to the reference in the loss:

    A_i   = (r_i - mean_g r) / (std_g r + eps_std)
    loss  = mean over rows of mean over tokens of  -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A) + beta * k3(logp, logp_ref)

arXiv 2402.03300, equations 3 and 4. Defaults are that paper's (64 answers, beta 0.04, learning rate 1e-6, one update a
batch), whose training code is not public. The std has divisor G - 1 and eps_std is 1e-4, as in TRL; the paper states neither.

Who says GRPO in a library gets something else unless it is set: in TRL the mean over tokens (`loss_type="dapo"`, the one above is
"grpo"), 8 answers, beta 0 and a rate that falls to 0 (`lr_schedule="linear"`); in verl the mean over tokens, dual clip at 3
(`dual=3`), beta 0.001, weight decay 0.01, eps_std 1e-6, and in its script 1024 prompts with 5 answers in 4 minibatches. The mean
over tokens is the averaging "token-mean". Log-ratios are held to +-20 and k3 to 10, as in verl (TRL: no bounds). A group of one
has advantage 0 as in TRL (verl: its score), a row without tokens counts in no mean as in verl, and a group whose std is at most
1e-6 has advantage 0. Minibatches are of shuffled rows as in TRL.
"""

from __future__ import annotations

from typing import Literal

from vantage.advantages.groups import GroupStandardized
from vantage.core.method import Method
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import Clip
from vantage.regularizers.penalties import ReferenceKL
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Groups, Shuffled
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam, schedule

PAPER = Paper(
    "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    "Zhihong Shao and Peiyi Wang and Qihao Zhu and Runxin Xu and Junxiao Song and Xiao Bi and Haowei Zhang and"
    " Mingchuan Zhang and Y. K. Li and Y. Wu and Daya Guo",
    2024,
    arxiv="2402.03300",
)


@method(
    papers=PAPER,
    source="huggingface/trl@v1.16.0 trl/trainer/grpo_config.py; volcengine/verl@b178a3c"
    " examples/grpo_trainer/run_deepseek7b_llm_math.sh",
    needs="episodes",
)
def grpo(
    prompts: int = 16,
    group_size: int = 64,
    lr: float = 1e-6,
    beta: float = 0.04,
    eps: float = 0.2,
    epochs: int = 1,
    minibatches: int = 1,
    temperature: float = 1.0,
    dual: float | None = None,
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant",
    lr_warmup: float = 0.0,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """Compose GRPO. prompts: prompts a step; group_size: answers to each; lr: learning rate; beta: weight of the
    divergence to the reference policy, 0 needs no reference policy; eps: clip range of the ratio; epochs:
    passes over a batch; minibatches: optimiser steps a pass; temperature: of sampling, and of the policy that
    learns; dual: c above 1 of the dual clip, the ratio's bound where the advantage is negative, none for no bound;
    lr_schedule: of the rate after the warm-up, "linear" and "cosine" fall to 0 at the end of the run; lr_warmup: steps
    over which the rate rises, below 1 the share of the run; adam_betas: decay of Adam's two moments; weight_decay: decoupled
    from the gradient, as in AdamW; max_grad_norm: largest norm of a gradient, none for no bound;
    micro_batch: rows evaluated at once, none for all of a minibatch; it affects memory, not the gradient."""
    return Method(
        prompts=Shuffled(),
        rollout=Groups(prompts, group_size, temperature),
        rewards=(Total(),),
        values=None,
        advantage=GroupStandardized(),
        objective=Clip(eps, dual=dual),
        averaging="seq-mean-token-mean",
        regularizers=(ReferenceKL(beta),) if beta else (),
        update=GradientUpdate(
            optimizer=Adam(lr, adam_betas, weight_decay=weight_decay),
            schedule=schedule(lr_schedule, lr_warmup),
            epochs=epochs,
            minibatches=minibatches,
            max_grad_norm=max_grad_norm,
            micro_batch=micro_batch,
        ),
    )
