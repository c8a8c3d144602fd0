"""TRPO: the largest step that keeps the mean KL to the old policy within a bound. (S013)

An improvement bound penalises the largest KL between old and new policy; the practical form constrains the mean:

    maximise  mean exp(logp - logp_old) * A      subject to   mean KL(old || new) <= max_kl

solved by a natural-gradient direction (conjugate gradients on Fisher-vector products) and a line search that checks both the
surrogate and the KL and may reject the step. The critic is fitted separately to TD(lambda) returns. Constants are those of
openai/baselines for MuJoCo: the accepted KL may reach 1.5 times the bound, the Fisher products use every fifth sample. Started
by its run.py, rewards are divided by the running std of the return and held to +-10, as the task does here, and networks have two
layers of 32, which are the policy's. Both count a time limit as the episode's end; here the value of the last state stands in. The
critic's last minibatch of less than 64, which is left out there, counts here.
"""

from __future__ import annotations

from vantage.advantages.critic import FittedCritic
from vantage.advantages.estimators import GAE
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import Surrogate
from vantage.regularizers.penalties import EntropyBonus
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Shuffled, Steps
from vantage.updates.trust_region import TrustRegion

PAPER = Paper(
    "Trust Region Policy Optimization",
    "John Schulman and Sergey Levine and Philipp Moritz and Michael I. Jordan and Pieter Abbeel",
    2015,
    arxiv="1502.05477",
)


@method(
    id="S013", papers=PAPER, needs=("streams", "divergence", "critic"),
    source="openai/baselines@ea25b9e baselines/trpo_mpi/defaults.py",
)  # fmt: skip
def trpo(
    rows: int = 1,
    length: int = 1024,
    max_kl: float = 0.01,
    cg_iterations: int = 10,
    damping: float = 0.1,
    gamma: float = 0.99,
    lam: float = 0.98,
    value_epochs: int = 5,
    value_lr: float = 1e-3,
    entropy_coefficient: float = 0.0,
) -> Method:
    """rows: parallel environments; length: steps of each before an update; max_kl: radius of the trust region,
    in nats; cg_iterations: of conjugate gradients; damping: added to the Fisher matrix; gamma: discount; lam:
    lambda of GAE; value_epochs: passes of the critic over a batch; value_lr: its learning rate;
    entropy_coefficient: weight of the entropy. The defaults are those of the reference code for continuous control."""
    return Method(
        prompts=Shuffled(),
        rollout=Steps(rows, length),
        rewards=(Total(),),
        values=FittedCritic(value_epochs, lr=value_lr),
        advantage=GAE(gamma, lam),
        objective=Surrogate(),
        averaging="token-mean",
        regularizers=(EntropyBonus(entropy_coefficient),) if entropy_coefficient else (),
        update=TrustRegion(max_kl=max_kl, cg_iterations=cg_iterations, damping=damping),
    )


claim = (
    Claim(
        name="score",
        arena="cartpole",
        against="reinforce",
        against_settings={"lr": 1e-2},
        note="Monotone improvement with little tuning; the plain policy gradient has the best of three learning rates.",
    ),
    Claim(
        name="speed",
        arena="cartpole",
        against="reinforce",
        metric="reach:195",
        direction="lower",
        against_settings={"lr": 1e-2},
        note="Steps until a return of 195, the whole budget where it is not reached.",
    ),
)
