"""SFT: supervised fine-tuning, which maximises the likelihood of worked solutions.

The policy imitates given texts, token by token; nothing is sampled and nothing is scored. It usually precedes the other
methods, and is a method like any other, whose rollout yields demonstrations:

    loss = -mean over the completion's tokens of log pi(y_t | x, y_<t)

Prompts carry no loss. The first stage of arXiv 2203.02155, whose code is not public (from memory: 9.65e-6, batch 32, cosine to
a tenth without warm-up, 16 epochs, dropout 0.2). The defaults are those of OpenRLHF's script: 256 demonstrations, 5e-6, Adam's
betas 0.9 and 0.95, a warm-up over 3 % of the run, then a cosine to a tenth. TRL: 2e-5 falling linearly to 0 without
warm-up, betas 0.9 and 0.999, 8 demonstrations a device. DPO's repository sums a row's tokens and averages rows, so that long
answers weigh more. Both libraries cut long texts (2048 and 1024 tokens); here `max_tokens` cuts answers where it is set.
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


@method(
    kind="recipe", papers=PAPER, needs="demonstrations",
    source="OpenRLHF/OpenRLHF@3c3be62 examples/scripts/train_sft.sh",
)  # fmt: skip
def sft(
    batch: int = 256,
    lr: float = 5e-6,
    weight_decay: float = 0.0,
    warmup: float = 0.03,
    adam_betas: tuple[float, float] = (0.9, 0.95),
    max_tokens: int = 0,
    max_grad_norm: float = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """batch: demonstrations a step; lr: Adam's, after the warm-up; weight_decay: Adam's; warmup: steps
    over which the rate rises, below 1 the share of the run; then it falls along a cosine to a tenth; adam_betas: decay of
    Adam's two moments; max_tokens: cuts longer completions, 0 cuts
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
            optimizer=Adam(lr, adam_betas, weight_decay=weight_decay),
            schedule=Cosine(final=0.1, warmup=warmup, after=True),
            max_grad_norm=max_grad_norm,
            micro_batch=micro_batch,
        ),
    )
