"""OTC: a right answer earns more the fewer tool calls it took. (S041)

A score that knows right and wrong alone is blind to what an answer cost. OTC multiplies it by a factor in [0, 1] that is largest
at the least number of calls that the question needs: an answer must be right to earn anything, and economical to earn
everything. With m calls, and n the least among the right answers of the group:

    OTC-GRPO  factor = sin(pi m / (m + n)),   with n = 0  cos(pi m / (2 m + c))
    OTC-PPO   factor = cos(pi m / (2 m + c))                                         (no group, so no estimate of n)
    r = alpha * factor * score

arXiv 2504.14870. The cosine was read in a review, the sine and the product are from general knowledge of the paper; alpha and c
are not stated. alpha is 1; c is 4, where four calls halve a reward without a group (the turns that a conversation may have
are another natural choice, and the task's to know). A score below 0 keeps the factor 1: made smaller, a failure would be
the less bad the more calls it took. Whether n is kept from step to step is a doubt, so `persist`
(the least ever seen for the prompt, this step included) is off. A call is an answer of the environment: the number of the last
turn. The PPO form shares its trunk with the critic; its trace passes over what the tool says, and nothing follows a
conversation that was cut at its limit: it has been judged and never goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vantage.advantages.critic import Critic
from vantage.advantages.estimators import GAE
from vantage.advantages.turns import AcrossTurns
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_index
from vantage.functions.rows import at_last
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.rewards.mixing import Total
from vantage.rollouts.language import last_turn
from vantage.rollouts.records import Records, per_prompt

PAPER = Paper(
    "OTC: Optimal Tool Calls via Reinforcement Learning",
    "Hongru Wang and Cheng Qian and Wanjun Zhong and Xiusi Chen and Jiahao Qiu and Shijue Huang and Bowen Jin and"
    " Mengdi Wang and Kam-Fai Wong and Heng Ji",
    2025,
    arxiv="2504.14870",
)


def economy(calls: Tensor, least: Tensor | None, c: float) -> Tensor:
    """Return the page's factor in [0, 1], shapes as `calls`; `least` None is the form without a group. No gradient."""
    plain = torch.cos(math.pi * calls / (2 * calls + c))
    if least is None:
        return plain
    known = torch.sin(math.pi * calls / (calls + least).clamp(min=1))
    return torch.where(least == 0, plain, known)


def least_of(calls: Tensor, right: Tensor, key: Tensor, count: int) -> Tensor:
    """Return the least calls [count] among the right rows [N] bool of each key [N]; infinite where there is none."""
    held = torch.where(right, calls, torch.inf)
    return calls.new_full((count,), torch.inf).scatter_reduce(0, key, held, "amin")


@dataclass(frozen=True)
class CallEconomy:
    """Multiplies `score` and the reward at the last decision by the page's factor; fills `calls` [N]. No gradient.

    A score below 0 is multiplied by `alpha` alone.

    Attributes:
        form: "grpo" or "ppo".
        alpha: scale of the reward, above 0.
        c: smoothing of the cosine, above 0.
        persist: the least number of calls of a prompt is remembered.
    """

    form: str = "grpo"
    alpha: float = 1.0
    c: float = 4.0
    persist: bool = False
    _records: Records = field(default_factory=lambda: Records(least=math.inf), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.form not in ("grpo", "ppo"):
            raise UserError(f"CallEconomy.form={self.form!r} is not known: grpo or ppo")
        for name in ("alpha", "c"):
            if not getattr(self, name) > 0:
                raise UserError(f"CallEconomy.{name}={getattr(self, name)} is out of range: above 0")

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the batch with `score`, `reward` and `calls`."""
        calls, right = last_turn(batch).float(), batch.score > 0
        least = None if self.form == "ppo" else self._least(calls, right, batch)
        # Without a right answer there is no least number of calls, and no score to multiply.
        factor = economy(calls, None if least is None else least.nan_to_num(posinf=0.0), self.c)
        factor = torch.where(batch.score < 0, 1.0, factor)
        score = self.alpha * factor * batch.score
        context.record("score/economical", score.mean())
        return batch.replace(score=score, reward=at_last(score, batch.length, batch.steps), calls=calls)

    def _least(self, calls: Tensor, right: Tensor, batch: Trajectories) -> Tensor:
        """Return n for each row [N]."""
        if not self.persist:
            index, count = group_index(batch.group)
            return least_of(calls, right, index, count)[index]
        ids, index, count = per_prompt(batch.prompt)
        least = torch.minimum(least_of(calls, right, index, count), self._records.read(ids)["least"])
        self._records.write(ids, least=least)
        return least[index]

    def state_dict(self) -> dict[str, Any]:
        """The least calls of the prompts, where they are kept."""
        return self._records.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._records.load_state_dict(state)


@method(id="S041", papers=PAPER)
def otc(
    prompts: int = 16,
    group_size: int = 8,
    lr: float = 1e-6,
    form: str = "grpo",
    alpha: float = 1.0,
    c: float = 4.0,
    persist: bool = False,
    beta: float = 0.0,
    eps: float = 0.2,
    lam: float = 1.0,
    epochs: int = 1,
    minibatches: int = 1,
    temperature: float = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """Compose OTC-GRPO, or with `form="ppo"` OTC-PPO, whose trace has decay `lam`."""
    made = grpo(
        prompts,
        group_size,
        lr=lr,
        beta=beta,
        eps=eps,
        epochs=epochs,
        minibatches=minibatches,
        temperature=temperature,
        micro_batch=micro_batch,
    ).replace(rewards=(Total(), CallEconomy(form, alpha, c, persist)))
    if form == "grpo":
        return made
    return made.replace(values=Critic(), advantage=AcrossTurns(GAE(1.0, lam, whiten=True)), averaging="token-mean")


_NOTE = (
    "The authors: up to 73 % fewer calls and 229 % more right answers a call at comparable accuracy. Here most right answers"
    " of the start policy need the calculator, so that frugality and accuracy pull apart more than in the paper."
)
claim = (
    Claim(
        name="calls",
        arena="calculator",
        against="grpo",
        metric="calls",
        direction="lower",
        against_settings={"beta": 0.0},
        note=_NOTE,
    ),
    Claim(
        name="accuracy",
        arena="calculator",
        against="grpo",
        direction="no worse",
        margin=0.03,
        against_settings={"beta": 0.0},
        note=_NOTE,
    ),
)
