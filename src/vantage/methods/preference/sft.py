"""SFT: supervised fine-tuning, which maximises the likelihood of worked solutions.

The policy imitates given texts, token by token; nothing is sampled and nothing is scored. It usually precedes the other
methods, and is a method like any other, whose rollout yields demonstrations:

    loss = -mean over the completion's tokens of log pi(y_t | x, y_<t)

Prompts carry no loss. The first stage of arXiv 2203.02155; the rate follows a cosine, as there, over the whole run and after a
short warm-up.
"""

from __future__ import annotations

from vantage.core.method import Method
from vantage.methods.registry import Paper, method
from vantage.objectives.likelihood import NegativeLogLikelihood, NoCredit
from vantage.rollouts.plans import Shuffled
from vantage.tasks.language.sft import Demonstrations
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam, Cosine

PAPER = Paper(
    "Training language models to follow instructions with human feedback",
    "Long Ouyang and Jeff Wu and Xu Jiang and Diogo Almeida and Carroll L. Wainwright and Pamela Mishkin and others",
    2022,
    arxiv="2203.02155",
)


@method(kind="recipe", papers=PAPER, needs="demonstrations")
def sft(
    batch: int = 32,
    lr: float = 1e-5,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    max_tokens: int = 0,
    max_grad_norm: float = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """batch: demonstrations a step; lr: Adam's, after the warm-up; weight_decay: Adam's; warmup: share of the run
    in which the rate rises, then it falls along a cosine to a tenth; max_tokens: cuts longer completions, 0 cuts
    none; max_grad_norm: largest norm of the gradient; micro_batch: rows whose graphs are held at once, none for
    all."""
    return Method(
        prompts=Shuffled(),
        rollout=Demonstrations(batch, bucket=1, max_tokens=max_tokens),
        rewards=(),
        values=None,
        advantage=NoCredit(),
        objective=NegativeLogLikelihood(),
        averaging="token-mean",
        update=GradientUpdate(
            optimizer=Adam(lr, weight_decay=weight_decay),
            schedule=Cosine(final=0.1, warmup=warmup),
            max_grad_norm=max_grad_norm,
            micro_batch=micro_batch,
        ),
    )
