"""DPO: trains the policy on preference pairs by a logistic loss, without a separate reward model.

The optimum of reward maximisation under a KL penalty has reward beta log(pi / ref) up to a term of the prompt, which a
comparison cancels. Fitting Bradley and Terry's model to the pairs is then fitting the policy:

    loss = -mean log sigmoid( beta * [ (logp - logp_ref)(chosen) - (logp - logp_ref)(rejected) ] )

with log-probabilities summed over the answer (arXiv 2305.18290, equation 7). Nothing is sampled and no reward is computed.
The defaults are those of the authors' code: beta 0.1, 64 pairs, RMSprop at 5e-7, which is reached after 151 steps (their
`warmup_steps` is 150) and then constant. The paper says 1e-6; TRL (1e-6) and OpenRLHF (5e-7) take Adam, which is
`optimizer="adam"`, and clip the gradient at 1. The authors cut prompt and answer at 512 tokens, the prompt at 256, and switch
dropout off; here the task's data are taken as they are.
"""

from __future__ import annotations

from typing import Literal

from vantage.core.method import Method
from vantage.methods.registry import Paper, method
from vantage.objectives.likelihood import NoCredit
from vantage.objectives.preference import PairLogistic
from vantage.rollouts.pairs import StoredPairs
from vantage.rollouts.plans import Shuffled
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam, Constant, RMSprop

PAPER = Paper(
    "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    "Rafael Rafailov and Archit Sharma and Eric Mitchell and Stefano Ermon and Christopher D. Manning and Chelsea Finn",
    2023,
    arxiv="2305.18290",
)


@method(
    papers=PAPER, needs="pairs",
    source="eric-mitchell/direct-preference-optimization@f8b8c0f README.md; huggingface/trl@f2cd577 trl/trainer/dpo_trainer.py",
)  # fmt: skip
def dpo(
    prompts: int = 64,
    lr: float = 5e-7,
    beta: float = 0.1,
    smoothing: float = 0.0,
    warmup: float = 151,
    optimizer: Literal["rmsprop", "adam"] = "rmsprop",
    max_grad_norm: float | None = 10.0,
    micro_batch: int | None = None,
) -> Method:
    """prompts: pairs a step; lr: learning rate, after the warm-up; beta: weight of the divergence to the reference;
    smoothing: probability that a label is wrong; warmup: steps over which the rate rises, below 1 the share of the run;
    optimizer: `rmsprop` or `adam`; max_grad_norm: largest norm of the gradient, none for no limit; micro_batch: rows whose
    graphs are held at once, none for all."""
    made = RMSprop(lr, eps=1e-8) if optimizer == "rmsprop" else Adam(lr)
    return Method(
        prompts=Shuffled(),
        rollout=StoredPairs(prompts),
        rewards=(),
        values=None,
        advantage=NoCredit(),
        objective=PairLogistic(beta, smoothing=smoothing),
        update=GradientUpdate(
            optimizer=made, schedule=Constant(warmup), max_grad_norm=max_grad_norm, micro_batch=micro_batch
        ),
    )
