"""Flow-GRPO: GRPO on the steps of an SDE that has the same marginals as the ODE of a flow model.

A flow model samples deterministically, so it neither explores nor has likelihoods. Noise is added to every step and the drift
is corrected so that the distribution at each time does not change; the steps are then Gaussian decisions, and GRPO applies:

    sigma_t = a sqrt(t / (1 - t))        mu = x + [v + sigma_t^2 / (2 t) (x + (1 - t) v)] dt        x' ~ N(mu, sigma_t^2 (-dt) I)
    A_i  = (R_i - mean of the prompt) / (std of the batch + 1e-4), cut to [-5, 5], the same for all steps
    loss = mean over steps of  max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps)) + beta |mu - mu_ref|^2 / (2 sigma_t^2)

arXiv 2505.05470, equations 9 to 13. Training samples with few steps (10), evaluation with many steps of the ODE (40). From
the authors' repository, whose settings are those of the OCR recipe: log-probabilities and KL are averaged over the sample's
dimensions (eps 1e-4 belongs to that); at t = 1 the second time replaces 1 - t; the std (divisor N) is the batch's; the last of 10
steps is not trained; samples with advantage 0 are dropped; two updates a batch, each on all steps of half of the samples. The KL
of the two normals has 2 sigma_t^2 (-dt) below, as in the paper; the code leaves -dt out, so that with 10 steps its beta weighs a
tenth: `exact_kl=true` is the former.

Differences: there some of the dropped samples stay where their number would not divide into the batches; the times are those of
the model's scheduler (for SD3.5 `shift=3`); LoRA is trained, and an exponential average of it (decay 0.9 every 8 steps) is
evaluated and saved, here the weights themselves.

Our finding: with the replacement at t = 1, sigma^2 (-dt) of the first step is a^2 for any number of steps, so that the variance
after it is too large by a^4 / 4 (6 % at a = 0.7); later steps reduce the error. A constant sigma keeps the marginals to first order
in the step.
"""

from __future__ import annotations

from typing import Annotated

from vantage.advantages.clamped import Clamped
from vantage.advantages.groups import GroupStandardized
from vantage.annotations import at_least
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.denoising import StepClip
from vantage.regularizers.path import PathKL
from vantage.rollouts.denoising import Denoise, Sampler
from vantage.selection.groups import DropZero
from vantage.selection.steps import FirstSteps, NoisySteps

PAPER = Paper(
    "Flow-GRPO: Training Flow Matching Models via Online RL",
    "Jie Liu and Gongye Liu and Jiajun Liang and Yangguang Li and Jiaheng Liu and Xintao Wang and Pengfei Wan and"
    " Di Zhang and Wanli Ouyang",
    2025,
    arxiv="2505.05470",
)


@method(
    papers=PAPER, needs="flow", base=grpo, source="yifan123/flow_grpo@ac4c86e config/grpo.py general_ocr_sd3", without=("beta",
    "dual", "temperature"), prompts=48, group_size=24, lr=3e-4, minibatches=2, weight_decay=1e-4,
)  # fmt: skip
def flow_grpo(
    base: Method,
    beta: float = 0.04,
    eps: float = 1e-4,
    steps: Annotated[int, at_least(1)] = 10,
    noise: float = 0.7,
    shift: float = 1.0,
    trained: float = 0.99,
    limit: float = 5.0,
    exact_kl: bool = False,
) -> Method:
    """beta: coefficient of the KL of a step to the reference's, 0 needs no reference; eps: clip range of the
    ratio of a step; steps: of the sampler; noise: a of the equation, 0 gives the ODE; shift: of the sampler's times,
    above 1 places more of them near the noise; trained: share of the steps, from the first, that is trained on; limit: bound
    of |A|; exact_kl: the KL of the step's normals, not the code's, which is shorter by the step's length."""
    composed = base.replace(
        rollout=Denoise(base.rollout.prompts, base.rollout.size, Sampler(steps, noise, shift=shift)),
        advantage=Clamped(GroupStandardized("batch", ddof=0), limit),
        selection=(FirstSteps(trained), NoisySteps(), DropZero()),
        objective=StepClip(eps),
        averaging="token-mean",
        regularizers=(PathKL(beta, by_length=not exact_kl),) if beta else (),
    )
    # The steps of a sample stay in one minibatch.
    return composed.adapt("update", unit="row")


claim = Claim(
    arena="flow-ring",
    against="grpo",
    direction="no worse",
    margin=0.05,
    note="The baseline is GRPO on the same sampler with the true ratio of a step (the sum over its dimensions).",
)
