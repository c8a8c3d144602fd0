"""DPO: trains the policy on preference pairs by a logistic loss, without a separate reward model.

The optimum of reward maximisation under a KL penalty has reward beta log(pi / ref) up to a term of the prompt, which a
comparison cancels. Fitting Bradley and Terry's model to the pairs is then fitting the policy:

    loss = -mean log sigmoid( beta * [ (logp - logp_ref)(chosen) - (logp - logp_ref)(rejected) ] )

with log-probabilities summed over the answer (arXiv 2305.18290, equation 7). Nothing is sampled and no reward is computed.
The defaults are the paper's (beta 0.1, 64 pairs, learning rate 1e-6 after a warm-up); its optimiser is RMSprop, here it is
Adam, as in the implementations since.
"""

from __future__ import annotations

from vantage.core.method import Method
from vantage.methods.registry import Paper, method
from vantage.objectives.likelihood import NoCredit
from vantage.objectives.preference import PairLogistic
from vantage.rollouts.pairs import StoredPairs
from vantage.rollouts.plans import Shuffled
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam, Constant

PAPER = Paper(
    "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    "Rafael Rafailov and Archit Sharma and Eric Mitchell and Stefano Ermon and Christopher D. Manning and Chelsea Finn",
    2023,
    arxiv="2305.18290",
)


@method(papers=PAPER, needs="pairs")
def dpo(
    prompts: int = 64,
    lr: float = 1e-6,
    beta: float = 0.1,
    smoothing: float = 0.0,
    warmup: float = 0.1,
    max_grad_norm: float = 10.0,
    micro_batch: int | None = None,
) -> Method:
    """prompts: pairs a step; lr: Adam's, after the warm-up; beta: weight of the divergence to the reference;
    smoothing: probability that a label is wrong; warmup: share of the run in which the rate rises; max_grad_norm:
    largest norm of the gradient; micro_batch: rows whose graphs are held at once, none for all."""
    return Method(
        prompts=Shuffled(),
        rollout=StoredPairs(prompts),
        rewards=(),
        values=None,
        advantage=NoCredit(),
        objective=PairLogistic(beta, smoothing=smoothing),
        update=GradientUpdate(
            optimizer=Adam(lr), schedule=Constant(warmup), max_grad_norm=max_grad_norm, micro_batch=micro_batch
        ),
    )
