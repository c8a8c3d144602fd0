"""BGPO: a linear lower bound lets the Monte Carlo samples of an ELBO be differentiated one by one. (S078)

For masked diffusion language models the likelihood inside the ratio is a Monte Carlo ELBO, whose gradient needs the graphs
of all samples at once. BGPO maximises a lower bound that is a plain sum over samples, equal in value and gradient on-policy,
so that memory is that of one sample and many can be used:

    e_j = (L / l_j) sum_{i in M_j} log p(y_i | x, y with M_j masked)        d_j = e_j(theta) - sg[e_j(theta_old)], the same M_j
    A >= 0:  B = A (1/n) sum_j (1 + d_j)                                     exp(u) >= 1 + u
    A <  0:  B = A (1/n) sum_j exp(d_j)                                      exp(mean d) <= mean exp(d)
    loss = -mean over answers of B

Every (answer, sample) is a row of the batch and its bound a loss per row, which the road differentiates in micro-batches: by
default as many rows at once as there are answers in a minibatch, whatever n. arXiv 2510.11683. Ours: the fixed count l_j ~
U{1..L} of masked positions (`kind="bernoulli"` is the paper's independent one), the divisor G - 1 and 1e-6 of the advantage,
`by_length` and `limit` (off). The paper's two updates a batch off-policy are `minibatches=2`; the old policy's e_j are then
stored.
"""

from __future__ import annotations

from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.generative.elbo_grpo import PAPER as BGPO_PAPER
from vantage.methods.generative.elbo_grpo import elbo_grpo
from vantage.methods.registry import method
from vantage.objectives.elbo import LinearBound


@method(id="S078", family="generative", papers=BGPO_PAPER)
def bgpo_boundary(
    prompts: int = 16,
    group_size: int = 8,
    samples: int = 16,
    lr: float = 5e-7,
    kind: str = "fixed",
    minibatches: int = 1,
    temperature: float = 1.0,
    by_length: bool = False,
    limit: float | None = None,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """Compose BGPO; `samples` is n, `micro_batch` the rows (answer, sample) whose graphs are held at once."""
    return elbo_grpo(
        prompts,
        group_size,
        samples,
        lr=lr,
        kind=kind,
        minibatches=minibatches,
        temperature=temperature,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        micro_batch=micro_batch or max(prompts * group_size // minibatches, 1),
    ).replace(objective=LinearBound(by_length, limit))


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
