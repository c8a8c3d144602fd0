"""DAPO: GRPO with four components replaced, for long chains of thought.

Clip-higher lets unlikely tokens become likelier; dynamic sampling refills the batch until every group has both right
and wrong answers; the loss is a mean over tokens, so that long answers are not diluted; and answers near the length limit
are penalised softly. There is no divergence term:

    loss = mean over tokens of -min(ratio A, clip(ratio, 1 - 0.2, 1 + 0.28) A)

arXiv 2503.14476, equations 8 to 13; defaults are those of the authors' script, with dual clip and warm-up, which the paper does
not mention (its warm-up is 20 steps). Not to be confused with control/dapo-delayed.

Where this differs from the script: overlong_buffer is 0, as it goes with the length limit (theirs: 4096 of 20480). The token
mean is of the minibatch, theirs of each worker's micro-batch, weighted by rows. A round draws `prompts` prompts, theirs three
times as many; after `rounds` rounds a step goes on with the groups that it has, theirs stops the run; theirs keeps groups of one.
Neither has the overlong filtering of the paper's table 1 (cut answers are not learnt from).
"""

from __future__ import annotations

from dataclasses import replace

from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import Clip
from vantage.rewards.mixing import Overlong, Signed
from vantage.rollouts.plans import Refill

PAPER = Paper(
    "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
    "Qiying Yu and Zheng Zhang and Ruofei Zhu and Yufeng Yuan and Xiaochen Zuo and Yu Yue and others",
    2025,
    arxiv="2503.14476",
)


@method(
    papers=PAPER,
    source="verl-project/verl-recipe@48ea0a7 dapo/run_dapo_qwen2.5_32b.sh; volcengine/verl@b178a3c verl/trainer/ppo/core_algos.py",
    base=grpo,
    without=("eps", "beta"),
    beta=0.0,
    prompts=512,
    group_size=16,
    minibatches=16,
    dual=10.0,
    lr_warmup=10.0,
    weight_decay=0.1,
)
def dapo(
    base: Method,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
    rounds: int = 10,
    metric: str = "score",
    overlong_buffer: int = 0,
    signed: bool = True,
) -> Method:
    """Compose DAPO. eps_low, eps_high: clip range; rounds: plans drawn at most until the batch is full of
    informative groups; metric: what must differ within such a group, a named reward of the task or "score" (the
    authors filter by accuracy, not by the shaped score); overlong_buffer: tokens before the limit in which length is
    penalised, 0 for none; signed: there, scores of 0 to 1 count from -1 to 1, as the authors' do, so that a right answer with
    the full penalty is worth more than a wrong short one; false for a task whose scores are signed already."""
    shaped = (*((Signed(),) if signed else ()), Overlong(overlong_buffer)) if overlong_buffer else ()
    return base.replace(
        rollout=Refill(base.rollout, groups=base.rollout.prompts, rounds=rounds, metric=metric),
        rewards=(*base.rewards, *shaped),
        advantage=replace(base.advantage, eps=1e-6),
        objective=Clip(eps_low, eps_high, base.objective.dual),
        averaging="token-mean",
    )


claim = Claim(
    arena="arithmetic",
    against="grpo",
    settings={"minibatches": 4, "lr_warmup": 0},
    against_settings={"minibatches": 4},
    note="The authors: 50 against GRPO's 30 points on AIME 2024 with a model of 32 B. Four minibatches a batch on both sides, so"
    " that there is something to clip, and no warm-up on either; the number of generated answers is equal, those that dynamic"
    " sampling drops included.",
)
