"""OTC-GRPO: GRPO with a higher reward for right answers that took fewer tool calls. (S041)

A score of correctness alone ignores the cost of an answer. OTC multiplies it by a factor in [0, 1] that is largest
at the least number of calls that the question needs: an answer must be right to get any reward, and economical to get
all of it. With m calls, and n the least among the right answers of the group:

    factor = sin(pi m / (m + n)),   with n = 0  cos(pi m / (2 m + c))          r = alpha * factor * score

arXiv 2504.14870. The cosine was read in a review, the sine and the product are from general knowledge of the paper; alpha and c
are not stated. alpha is 1; c is 4, where four calls halve a reward without a group (the largest number of turns of a
conversation, which the task sets, is another natural choice). A score below 0 keeps the factor 1: scaled, a failure would be
penalised less the more calls it took. Whether n is kept from step to step is uncertain, so `persist` is off. A call is an
answer of the environment: the number of the last turn. The form with a critic is otc-ppo.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vantage.core.component import component, memory
from vantage.core.context import Context
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_index
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.rewards.economy import CallEconomy
from vantage.rollouts.records import Records, per_prompt

PAPER = Paper(
    "OTC: Optimal Tool Calls via Reinforcement Learning",
    "Hongru Wang and Cheng Qian and Wanjun Zhong and Xiusi Chen and Jiahao Qiu and Shijue Huang and Bowen Jin and"
    " Mengdi Wang and Kam-Fai Wong and Heng Ji",
    2025,
    arxiv="2504.14870",
)


def least_of(calls: Tensor, right: Tensor, key: Tensor, count: int) -> Tensor:
    """Return the least calls [count] among the right rows [N] bool of each key [N]; infinite where there is none."""
    held = torch.where(right, calls, torch.inf)
    return calls.new_full((count,), torch.inf).scatter_reduce(0, key, held, "amin")


@component
class LeastCalls:
    """Least number of calls [N] among the right rows of each row's group, infinite where none is right. No gradient.

    Attributes:
        persist: count the right rows of the same prompt in earlier steps too.
    """

    persist: bool = False
    _records: Records = memory(lambda: Records(least=math.inf))

    def __call__(self, batch: Trajectories, calls: Tensor, context: Context) -> Tensor:
        """Return n."""
        right = batch.score > 0
        if not self.persist:
            index, count = group_index(batch.group)
            return least_of(calls, right, index, count)[index]
        ids, index, count = per_prompt(batch.prompt)
        least = torch.minimum(least_of(calls, right, index, count), self._records.read(ids)["least"])
        self._records.write(ids, least=least)
        return least[index]


@method(
    id="S041", papers=PAPER, needs=("episodes", "turns"), base=grpo, group_size=8, beta=0.0,
    source="none: a review of the paper, whose code is not public",
)  # fmt: skip
def otc(base: Method, alpha: float = 1.0, c: float = 4.0, persist: bool = False) -> Method:
    """alpha: scale of the reward; c: calls that halve a reward where n is 0; persist: n is the least ever seen for the
    prompt, this step included, instead of the group's."""
    return base.replace(rewards=(*base.rewards, CallEconomy(alpha, c, LeastCalls(persist))))


_NOTE = (
    "The authors: up to 73 % fewer calls and 229 % more right answers a call at comparable accuracy. Here most right answers"
    " of the start policy need the calculator, so that fewer calls and accuracy conflict more than in the paper."
)
claim = (
    Claim("calculator", "grpo", "calls", "lower", name="calls", against_settings={"beta": 0.0}, note=_NOTE),
    Claim("calculator", "grpo", "", "no worse", 0.03, name="accuracy", against_settings={"beta": 0.0}, note=_NOTE),
)
