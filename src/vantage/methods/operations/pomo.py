"""POMO: REINFORCE on one tour from every start, with the mean of the tours as baseline.

An optimal round trip can start at any of its nodes, so a policy should be equally good from every start. POMO builds one
tour from each of the M starts of an instance and takes their mean as the baseline of all:

    loss = -mean over instances and starts of (R_m - mean_m' R_m') * sum_t logp_t          R = minus the tour's length

The first node is forced and not part of the likelihood; greedy tours from all starts, of the 8 symmetries of the unit square
too, compete at test time (`symmetric=true` of the task). arXiv 2010.16011; from the authors' script for 100 nodes: 64 instances a
step, Adam at 1e-4 with weight decay 1e-6 in the gradient (not decoupled), no gradient clipping, and a tenth of the rate in the
last 100 of 3100 epochs. Its encoder has 6 layers of width 128, the task's has 3 unless asked for (`--option layers=6`); an
epoch is 100,000 instances there. A population of decoders (see `poppy`) has a baseline per decoder, and becomes as many
independent policies.
"""

from __future__ import annotations

from vantage.advantages.groups import GroupStandardized
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import PolicyGradient
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Shuffled
from vantage.rollouts.routing import MultiStart
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam, CoupledAdam, Drop

PAPER = Paper(
    "POMO: Policy Optimization with Multiple Optima for Reinforcement Learning",
    "Yeong-Dae Kwon and Jinho Choo and Byoungjip Kim and Iljoo Yoon and Youngjune Gwon and Seungjai Min",
    2020,
    arxiv="2010.16011",
)


@method(papers=PAPER, needs="tours", source="yd-kwon/POMO@d7c3d6e NEW_py_ver/TSP/POMO/train_n100.py")
def pomo(
    prompts: int = 64,
    starts: int = 0,
    lr: float = 1e-4,
    weight_decay: float = 1e-6,
    drop: float = 0.1,
    max_grad_norm: float | None = None,
    temperature: float = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """prompts: instances a step; starts: tours of an instance, 0 takes every possible start; lr: Adam's; weight_decay:
    Adam's, added to the gradient; drop: factor of the rate in the last 1/31 of the run; max_grad_norm: largest norm of
    the gradient, none for no limit; temperature: divides the logits; micro_batch: rows whose graphs are held at once, none
    for all."""
    return Method(
        prompts=Shuffled(),
        rollout=MultiStart(prompts, starts, temperature),
        rewards=(Total(),),
        values=None,
        advantage=GroupStandardized(scale="none"),
        objective=PolicyGradient(),
        averaging="seq-mean-token-sum",
        update=GradientUpdate(
            optimizer=CoupledAdam(lr, weight_decay) if weight_decay else Adam(lr),
            schedule=Drop(30 / 31, drop),
            max_grad_norm=max_grad_norm,
            micro_batch=micro_batch,
        ),
    )


claim = Claim(
    arena="tsp20",
    against="remax",
    direction="lower",
    settings={"prompts": 64, "drop": 1.0},
    against_settings={
        "prompts": 64, "group_size": 19, "gamma": 1.0, "limit": 1e9, "kl_coefficient": 0.0, "weight_decay": 0.0,
        "lr_schedule": "constant", "adam_betas": [0.9, 0.999],
    },
    note="Against REINFORCE with the greedy tour as baseline (Kool et al. 2019), as in the paper: 19 drawn tours of an instance"
    " and its greedy one, so that a step costs the same 20. Both have the arena's learning rate.",
)  # fmt: skip
