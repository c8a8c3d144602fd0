"""GRPO-Guard: Flow-GRPO with step ratios that are centred and scaled alike at every noise level. (S040)

In Flow-GRPO the log-ratio of a step has a negative mean and a spread that depends on the step, so that samples with positive
advantage are hardly ever clipped and the proxy reward is over-optimised. The bias and the scale are removed, and the
loss of a step is divided by its length, which gives the velocity the same gradient at every time:

    s = sigma sqrt(-dt),  bias = mean_D (mu - mu_old)^2 / (2 s^2)
    ratio = exp((logp - logp_old + bias) s) = exp(mean_D (mu - mu_old) eps),   eps = (x' - mu_old) / s
    loss  = mean over samples and their trained steps of  max(-A ratio, -A clip(ratio, 1 - e, 1 + e)) / (-dt)

logp is a mean over the D dimensions. The middle and the right form of the ratio are one function of mu; the right one is
computed, as it has no cancellation (the authors' code averages sqrt(-dt) and sigma over the batch: the same on a shared schedule).
d mu / d v = (1 + a^2 / 2) dt for every t < 1, and dt at t = 1. arXiv 2510.22319. Settings are those of the authors' OCR run: the
first 9 of 10 steps in order, advantages standardised in the group (divisor G, 1e-4), samples with advantage 0 dropped, no KL.
Differences are those of `flow-grpo` (scheduler's times, LoRA and its exponential average), and the bias: their code averages it
over all samples of a micro-batch (`dim=()` names no dimension, and torch then takes all), where the paper's is each sample's own;
`shared_bias=true` is the code's. The KL with `beta` above 0 is theirs, over 2 sigma^2. The port in CodeGoat24/Pref-GRPO has other
settings (eps 1e-4, T 25, G 16, a random 14 of the first 24 steps of each sample).
"""

from __future__ import annotations

from vantage.advantages.clamped import Clamped
from vantage.advantages.groups import GroupStandardized
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.generative.flow_grpo import flow_grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.denoising import GuardedClip

PAPER = Paper(
    "GRPO-Guard: Mitigating Implicit Over-Optimization in Flow Matching via Regulated Clipping",
    "Jing Wang and Jiajun Liang and Jie Liu and Henglin Liu and Gongye Liu and others",
    2025,
    arxiv="2510.22319",
)


@method(
    id="S040", papers=PAPER, base=flow_grpo, lr=1e-4, beta=0.0,
    source="zhtmike/flow_grpo@9745241 scripts/multi_node/sd3_grpo_guard.sh",
)  # fmt: skip
def grpo_guard(base: Method, eps: float = 2e-6, limit: float = 5.0, shared_bias: bool = False) -> Method:
    """eps: clip range of the ratio of a step, which the scale makes much smaller than Flow-GRPO's; limit: bound of |A|;
    shared_bias: the bias is averaged over the samples that are evaluated together, as in the released code."""
    return base.replace(
        advantage=Clamped(GroupStandardized("group", ddof=0), limit),
        objective=GuardedClip(eps, shared_bias=shared_bias),
    )


claim = (
    Claim(
        name="gold",
        arena="flow-proxy",
        against="flow-grpo",
        metric="gold",
        note="Mean log-density under the data at the end of equal training on a flawed reward; the authors report markedly less"
        " over-optimisation at no loss of the proxy, which the claim `proxy` tests.",
    ),
    Claim(name="proxy", arena="flow-proxy", against="flow-grpo", direction="no worse", margin=0.1),
    Claim(
        name="clipped-positives",
        arena="flow-digits",
        against="flow-grpo",
        metric="mean:clip_balance",
        note="Share of clipped decisions with positive advantage less that of those with negative, which centring brings near 0.",
    ),
)
