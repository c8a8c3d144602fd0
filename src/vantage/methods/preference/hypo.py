"""HyPO: DPO on offline pairs, plus the KL to the reference estimated on fresh samples. (S062)

DPO controls the KL to its reference only on its pairs, and needs pairs everywhere; elsewhere the policy is unconstrained. HyPO
adds KL(pi || ref) estimated on unlabelled samples y_1 .. y_k of the present policy, for which partial coverage is enough:

    d_j  = stop-gradient( logp(y_j) - logp_ref(y_j) )
    loss = DPO(pairs; beta) + lam * mean_j ( d_j - mean_{i != j} d_i ) * logp(y_j)

a leave-one-out score-function estimate whose expected gradient is that of the KL; the KL itself is recorded as `kl/online`. k = 1
has no baseline. lam = 0 is DPO and samples nothing. `clip` bounds d to [-clip, clip], which biases it and is off. arXiv
2406.01462; the paper's values of k, beta and lam could not be read and no code was to be had: the defaults are starting points,
the optimiser is that of dpo, and the k = 1 form and the clip are reconstructions.
"""

from __future__ import annotations

from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.preference.dpo import dpo
from vantage.methods.registry import Paper, method
from vantage.regularizers.penalties import OnlineKL
from vantage.rollouts.pairs import PairsAndFresh, StoredPairs

PAPER = Paper(
    "The Importance of Online Data: Understanding Preference Fine-tuning via Coverage",
    "Yuda Song and Gokul Swamy and Aarti Singh and J. Andrew Bagnell and Wen Sun",
    2024,
    arxiv="2406.01462",
)


@method(
    id="S062",
    papers=PAPER,
    base=dpo,
    without=("prompts",),
    source="none: the paper's equations; no public code; eric-mitchell/direct-preference-optimization@f8b8c0f README.md;"
    " volcengine/verl@b178a3c verl/trainer/ppo/core_algos.py",
)
def hypo(
    base: Method,
    pairs: int = 64,
    fresh: int = 64,
    samples: int = 2,
    lam: float = 1e-2,
    clip: float | None = None,
) -> Method:
    """pairs: stored pairs a step; fresh: unlabelled prompts a step; samples: k, answers to each; lam: weight of the
    divergence on them, 0 is DPO and samples nothing; clip: bound of the log-ratio in it, none for no bound."""
    if lam == 0:
        return base.replace(rollout=StoredPairs(pairs))
    return base.replace(rollout=PairsAndFresh(pairs, fresh, samples), regularizers=(OnlineKL(lam, clip),))


_ADAM = {"optimizer": "adam", "warmup": 0.1}
claim = Claim(
    arena="preference-coverage",
    against="dpo",
    settings={"pairs": 32, "fresh": 32, "samples": 2, "beta": 0.1, "lam": 0.1, "lr": 1e-2, **_ADAM},
    against_settings={"prompts": 64, "beta": 0.1, "lr": 1e-2, **_ADAM},
    seeds=10,
    note="Pairs cover 5 of 20 arms whose features are shared; equal gradient steps and equal rows a step, so that DPO sees"
    " twice the pairs. The authors: higher reward and lower KL than DPO.",
)
