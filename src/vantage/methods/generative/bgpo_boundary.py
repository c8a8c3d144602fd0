"""BGPO: a linear lower bound by which the Monte Carlo samples of an ELBO are differentiated one by one. (S078)

For masked diffusion language models the likelihood inside the ratio is a Monte Carlo ELBO, whose gradient needs the graphs
of all samples at once. BGPO maximises a lower bound that is a plain sum over samples, equal in value and gradient on-policy,
so that memory is that of one sample and many can be used:

    e_j = (L / l_j) sum_{i in M_j} log p(y_i | x, y with M_j masked)        d_j = e_j(theta) - sg[e_j(theta_old)], the same M_j
    A >= 0:  B = A (1/n) sum_j (1 + d_j)                                     exp(u) >= 1 + u
    A <  0:  B = A (1/n) sum_j exp(d_j)                                      exp(mean d) <= mean exp(d)
    loss = -mean over answers of B

Every (answer, sample) is a row of the batch and its bound a loss per row, which the training loop differentiates in
micro-batches: by default as many rows at once as there are answers in a minibatch, whatever n. arXiv 2510.11683. Ours: the fixed
count l_j ~ U{1..L} of masked positions (`kind="bernoulli"` is the paper's independent one), the divisor G - 1 and 1e-6 of the
advantage, `by_length` and `limit` (off). The paper's two updates a batch off-policy are `minibatches=2`; the old policy's e_j are
then stored.

The paper has no KL term; `beta` above 0 adds ours, which keeps the benefit of the bound. A divergence to a reference is estimated
from the gap u of the two policies' bounds on an answer, over the same sets M_j,

    u = (1/n) sum_j ( e_j(theta_old) - e_j(reference) )          K = u^2 / 2   (`estimator`: k1, k2, k3 of log p = u, log p_ref = 0)

and K of the present policy, which would join all n graphs, is replaced by its tangent at the old one, linear in each sample:

    beta ( K(u) + K'(u) (1/n) sum_j d_j )

On-policy value and gradient are those of K; off-policy it lies below K, which is convex. u costs a pass of the reference (and,
on-policy, one of the policy) without a graph. K' and the d_j are of the same sets: for a model of independent tokens the expected
on-policy gradient of k2 is 1 + (H_L - 1) / n times that of KL(policy || reference), H_L = 1 + 1/2 + .. + 1/L; that of k1 is 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from vantage.annotations import at_least
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.divergences import divergence
from vantage.functions.groups import group_mean
from vantage.methods.claim import Claim
from vantage.methods.generative.elbo_grpo import PAPER as BGPO_PAPER
from vantage.methods.generative.elbo_grpo import elbo_grpo
from vantage.methods.registry import method
from vantage.objectives.elbo import LinearBound, sample_difference


@component
class ReferenceGap:
    """Selection: fills `reference_gap` [N], in nats, the page's u of each row's answer. No gradient.

    The rows are samples (columns `answer` [N] and `masked_weight` [N, T], on which both policies are evaluated). The old policy is
    read from `logp_old` where that exists, and is the present one otherwise.
    """

    policies = frozenset({"reference"})

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the batch with the column."""
        old = batch.get("logp_old")
        old = context.evaluate(batch) if old is None else old
        reference = context.evaluate(batch, "logp", context.named("reference"))
        gap = torch.where(batch.mask, old - reference, 0.0).sum(-1)
        return batch.replace(reference_gap=group_mean(gap, batch["answer"]))


@component
class LinearKL:
    """coefficient * (K(u) + K'(u) d_j), a loss per row [N]: the page's KL; gradient flows through d_j alone.

    Attributes:
        coefficient: beta, at least 0.
        estimator: "k1", "k2" or "k3" of the bounds' gap; see `vantage.regularizers.penalties.divergence`.
        by_length: u / T and d_j / T in place of u and d_j.
    """

    coefficient: Annotated[float, at_least(0)] = 0.04
    estimator: Literal["k1", "k2", "k3"] = "k2"
    by_length: bool = False
    wants = frozenset({"logp"})
    unit = "row"
    label = "kl"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term per sample; records the estimate at the old policy."""
        scale = batch.steps if self.by_length else 1
        value, slope = tangent(batch["reference_gap"] / scale, self.estimator)
        context.record("kl/reference", value.mean(), len(value))
        return self.coefficient * (value + slope * sample_difference(evaluation, batch) / scale)


def tangent(gap: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """Return (K, K') of a divergence estimate at gaps logp - logp_ref, both of the gaps' shape, without gradient."""
    with torch.enable_grad():
        at = gap.detach().requires_grad_()
        value = divergence(at, torch.zeros_like(at), estimator)
        (slope,) = torch.autograd.grad(value.sum(), at)
    return value.detach(), slope


@method(
    id="S078", papers=BGPO_PAPER, base=elbo_grpo, samples=16,
    source="none: the paper, whose repository could not be had",
)  # fmt: skip
def bgpo_boundary(
    base: Method,
    by_length: bool = False,
    limit: float | None = None,
    beta: float = 0.0,
    estimator: Literal["k1", "k2", "k3"] = "k2",
) -> Method:
    """by_length: d_j / T in place of d_j; limit: bound of d_j, none for no bound; beta: coefficient of the page's KL, 0
    needs no reference; estimator: of that KL, k1, k2 or k3."""
    penalty = LinearKL(beta, estimator, by_length)
    rows = base.rollout.prompts * base.rollout.size // base.update.minibatches
    composed = base.replace(objective=LinearBound(by_length, limit))
    composed = composed.adapt("update", micro_batch=base.update.micro_batch or max(rows, 1))
    if not beta:
        return composed
    return composed.replace(selection=(*composed.selection, ReferenceGap()), regularizers=(penalty,))


claim = (
    Claim(
        name="many-samples",
        arena="masked-addition",
        against="elbo-grpo",
        settings={"samples": 16},
        against_settings={"samples": 2},
        note="The joint objective limited to n = 2.",
    ),
    Claim(
        name="one-sample",
        arena="masked-addition",
        against="bgpo-boundary",
        settings={"samples": 16},
        against_settings={"samples": 1},
        note="The authors: MATH500 43.5 with n = 1, 45.7 with n = 16.",
    ),
)
