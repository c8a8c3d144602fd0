"""Masked diffusion: a bidirectional model learns to fill in masked tokens of worked answers.

A random number of an answer's positions is masked, and the model predicts them all at once from the prompt and the rest; the
weight of a mask makes the loss a bound on the likelihood, so that the same model can answer from a fully masked start:

    l ~ U{1..L}, M = l random positions of y     loss = -mean over answers of (1 / l) sum_{i in M} log p(y_i | x, y with M masked)

LLaDA, arXiv 2502.09992, algorithm 2, with the fixed count of positions in place of independent ones (the same expectation), as the
authors estimate likelihoods; `kind="bernoulli"` is their training, whose share of masks is at least 0.001 there, so that 1 / t is
bounded. Answers have one length here; there the padding after the end belongs to an answer and counts in its length. It is the
training before reinforcement learning, and a method like any other, whose rollout yields worked answers. The settings are ours.
"""

from __future__ import annotations

from typing import Literal

from vantage.core.method import Method
from vantage.methods.registry import Paper, method
from vantage.objectives.likelihood import NegativeLogLikelihood, NoCredit
from vantage.rollouts.plans import Shuffled
from vantage.rollouts.unmasking import WorkedAnswers
from vantage.selection.masks import MonteCarloMasks
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam, Cosine

PAPER = Paper(
    "Large Language Diffusion Models",
    "Shen Nie and Fengqi Zhu and Zebin You and Xiaolu Zhang and Jingyang Ou and Jun Hu and Jun Zhou and Yankai Lin and"
    " Ji-Rong Wen and Chongxuan Li",
    2025,
    arxiv="2502.09992",
)


@method(kind="recipe", papers=PAPER, needs="masked", source="ML-GSAI/LLaDA@b7e6c35 GUIDELINES.md")
def masked_diffusion(
    batch: int = 64,
    lr: float = 2e-3,
    samples: int = 1,
    kind: Literal["fixed", "bernoulli"] = "fixed",
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    max_grad_norm: float = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """batch: problems a step; lr: Adam's, after the warm-up; samples: sets of masked positions an answer; kind:
    `fixed` draws how many positions are masked, `bernoulli` each position independently; weight_decay: Adam's;
    warmup: share of the run in which the rate rises; max_grad_norm: largest norm of the gradient; micro_batch: rows
    whose graphs are held at once, none for all."""
    return Method(
        prompts=Shuffled(),
        rollout=WorkedAnswers(batch),
        rewards=(),
        values=None,
        advantage=NoCredit(),
        selection=(MonteCarloMasks(samples, kind),),
        objective=NegativeLogLikelihood(),
        averaging="token-mean",
        update=GradientUpdate(
            optimizer=Adam(lr, weight_decay=weight_decay),
            schedule=Cosine(final=0.1, warmup=warmup),
            max_grad_norm=max_grad_norm,
            micro_batch=micro_batch,
        ),
    )
