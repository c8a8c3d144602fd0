"""Nash-MP: mirror prox to the equilibrium of a preference game, against a slow copy of the policy. (S231)

Preferences may be intransitive (rock, paper, scissors) and then no reward represents them; the goal is the policy to which no
other is preferred, max_pi min_pi' P(pi > pi') - beta KL(pi || ref) + beta KL(pi' || ref). Self-play cycles around it; mirror
prox takes the best response first to the present policy and then to that response:

    pi_{k+1/2} = argmax_pi  P(pi > pi_k)       - beta KL(pi || ref) - c KL(pi || pi_k)
    pi_{k+1}   = argmax_pi  P(pi > pi_{k+1/2}) - beta KL(pi || ref) - c KL(pi || pi_k)

On finite actions both are closed forms (`vantage.tasks.preference.game`), and with c = 1/2 KL(pi* || pi_k) falls by 1 + 2 beta a
step. For networks a slow copy of the policy is opponent and anchor pi_k, the policy itself the half step:

    loss = mean stop-gradient( -(P(y > y') - 1/2) + beta (logp - logp_ref) + c (logp - logp_k) ) * logp(y)      y' ~ pi_k
    pi_k <- (1 - kappa) pi_k + kappa pi   after each update

with row sums, and the mean of a prompt's other answers subtracted from the weight where it has several. c = 0 is Nash-MD's form
(TRL's trainer of it weighs each token by its own log-ratio to the reference, which is the same for answers of one token).
P is the task's pair comparison or sigmoid of a score difference. arXiv 2505.19731; c = 1/2 is derived from the stated rate; beta,
kappa and the learning rate for language models are not stated, so their defaults are reconstructions. A later version of the
paper replaces mirror prox by a proximal-point method, which is not implemented here.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from vantage.annotations import at_least
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import leave_one_out_mean
from vantage.functions.rows import row_logp
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.likelihood import NoCredit
from vantage.rewards.mixing import Total
from vantage.rollouts.pairs import Duels
from vantage.rollouts.plans import Shuffled
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam
from vantage.updates.targets import SlowCopy

PAPER = Paper(
    "Accelerating Nash Learning from Human Feedback via Mirror Prox",
    "Daniil Tiapkin and Daniele Calandriello and Denis Belomestny and Eric Moulines and Alexey Naumov and Kashif Rasul and"
    " Michal Valko and Pierre Menard",
    2025,
    arxiv="2505.19731",
)
OPPONENT = "target"


@component
class ProximalDuel:
    """The page's loss, per row [N]; reads `win` [N]. Gradient flows through the factor `logp` alone.

    Attributes:
        beta: weight of the divergence to the reference, at least 0.
        c: weight of the divergence to the slow copy, at least 0.
    """

    beta: Annotated[float, at_least(0)] = 0.1
    c: Annotated[float, at_least(0)] = 0.5
    wants = frozenset({"logp"})
    columns = frozenset({"logp_ref", f"logp_under_{OPPONENT}"})
    unit = "group"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss."""
        logp = row_logp(evaluation.logp, batch.mask)
        with torch.no_grad():
            to_ref = logp - row_logp(batch.logp_ref, batch.mask)
            to_copy = logp - row_logp(batch[f"logp_under_{OPPONENT}"], batch.mask)
            weight = -(batch.win - 0.5) + self.beta * to_ref + self.c * to_copy
            weight = weight - leave_one_out_mean(weight, batch.group)
            context.record("kl/reference", to_ref.mean(), len(logp))
            context.record("kl/target", to_copy.mean(), len(logp))
        return weight * logp


@method(
    id="S231", papers=PAPER, needs="episodes",
    source="none: reviews of the paper; no public code; huggingface/trl@f2cd577 trl/experimental/nash_md/nash_md_trainer.py",
)  # fmt: skip
def nash_mp(
    prompts: int = 64,
    group_size: int = 2,
    lr: float = 1e-6,
    beta: float = 0.1,
    c: float = 0.5,
    kappa: float = 0.05,
    temperature: float = 1.0,
    max_grad_norm: float = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """prompts: a step; group_size: answers to a prompt, each with an opponent's; lr: Adam's; beta: weight of the
    divergence to the reference; c: weight of the divergence to the slow copy, 0 is Nash-MD's form; kappa: share by
    which the slow copy moves a step, at 1 the opponent is the policy of the step before; temperature: divides the
    logits; max_grad_norm: largest norm of the gradient; micro_batch: rows whose graphs are held at once, none for
    all."""
    return Method(
        prompts=Shuffled(),
        rollout=Duels(prompts, group_size, temperature, OPPONENT),
        rewards=(Total(),),
        values=None,
        advantage=NoCredit(),
        objective=ProximalDuel(beta, c),
        controllers=(SlowCopy(OPPONENT, kappa),),
        update=GradientUpdate(optimizer=Adam(lr), max_grad_norm=max_grad_norm, micro_batch=micro_batch),
    )


claim = Claim(
    arena="preference-game",
    against="rebel",
    metric="",
    direction="lower",
    settings={"prompts": 64, "group_size": 4, "beta": 0.05, "lr": 3e-2},
    against_settings={"prompts": 256, "eta": 0.1, "kl_coef": 0.05, "epochs": 2, "temperature": 1.0, "lr": 1e-2},
    note="REBEL on win rates is mirror-descent self-play in the same game. Score: exploitability of the regularised game, exact.",
)
