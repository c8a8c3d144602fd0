"""GRPO-Guard: Flow-GRPO with step ratios that are centred and scaled alike at every noise level. (S040)

In Flow-GRPO the log-ratio of a step has a negative mean and a spread that depends on the step, so that samples with positive
advantage are hardly ever clipped and the proxy reward is over-optimised. The bias and the scale are removed, and the
loss of a step is divided by its length, which gives the velocity the same gradient at every time:

    s = sigma sqrt(-dt),  bias = mean_D (mu - mu_old)^2 / (2 s^2)
    ratio = exp((logp - logp_old + bias) s) = exp(mean_D (mu - mu_old) eps),   eps = (x' - mu_old) / s
    loss  = mean over samples and their trained steps of  max(-A ratio, -A clip(ratio, 1 - e, 1 + e)) / (-dt)

logp is a mean over the D dimensions. The middle and the right form of the ratio are one function of mu; the right one is
computed, as it has no cancellation. d mu / d v = (1 + a^2 / 2) dt for every t < 1, and dt at t = 1. arXiv 2510.22319, read
in public ports of it (one scales by sqrt(-dt) and sigma averaged over the batch: the same on a shared schedule). Advantages
are standardised in the group (divisor G - 1, 1e-8), no KL. The last of T = 25 steps is never trained; of the others each
sample trains a random int(0.6 (T - 1)) = 14 of its own, and all of a sample's are in one minibatch, as in CodeGoat24/Pref-GRPO.
"""

from __future__ import annotations

from vantage.advantages.clamped import Clamped
from vantage.advantages.groups import GroupStandardized
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.generative.flow_grpo import flow_grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.denoising import GuardedClip
from vantage.selection.steps import NoisySteps, RandomSteps

PAPER = Paper(
    "GRPO-Guard: Mitigating Implicit Over-Optimization in Flow Matching via Regulated Clipping",
    "Jing Wang and Jiajun Liang and Jie Liu and Henglin Liu and Gongye Liu and others",
    2025,
    arxiv="2510.22319",
)


@method(id="S040", papers=PAPER, base=flow_grpo, group_size=16, lr=1e-5, beta=0.0, steps=25)
def grpo_guard(base: Method, eps: float = 1e-4, trained: float = 0.6, limit: float = 5.0) -> Method:
    """trained: share of the steps, the last left out, that a sample trains."""
    guarded = base.replace(
        advantage=Clamped(GroupStandardized("group", eps=1e-8), limit),
        selection=(RandomSteps(trained), NoisySteps()),
        objective=GuardedClip(eps),
    )
    # The steps of a sample stay in one minibatch.
    return guarded.adapt("update", unit="row")


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
