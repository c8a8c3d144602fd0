"""RePO: GRPO on fresh answers and on replayed answers to the same prompts, standardised separately. (S080)

GRPO discards an answer after one update. RePO keeps the last M answers of each prompt with their log-probabilities, replays
some of them by a strategy when the prompt is drawn again, and adds their clipped surrogate, whose ratio is to the policy
that generated them:

    take K = min(held, k) of a queue that holds at least m_min, before the fresh ones are pushed:
      highest, recent, random, all, variance (the K-subset of largest population variance, then of largest sum)
    A_i within the fresh answers to a prompt, A_j within the replayed ones ("split"), or one standardisation of both ("mixed")
    loss = (1 / B) [ sum over fresh rows of the row's mean of -min(ratio A, clip(ratio) A) + c_off * the same over replayed rows ]
           + beta * token mean over fresh rows of k3,           B = all rows of the batch

arXiv 2506.09340; all steps and defaults as in the authors' code and launch script, with one rule added: one replayed answer alone
has A = 0. Of equal scores the oldest are replayed, by "variance" too. With the defaults a prompt's third visit is the first that
replays; they visit it three times. Their B is the rows of a device, one prompt, and devices are averaged: the same where all
prompts of the batch replay. They also truncate sampling to the 50 likeliest tokens, which is the engine's setting here, and bound
no divergence, which is cut at 10 a token here. `score` and `reward/..` of the log are the fresh answers', `batch/score` that of
all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.core import at_least, component, memory, one_of
from vantage.core.context import Context
from vantage.core.costs import Cost, cost
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.scoring import memory_kept, scored
from vantage.core.trajectories import Trajectories, concatenate
from vantage.functions.divergences import divergence
from vantage.functions.groups import group_index
from vantage.functions.whitening import masked_mean
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Groups
from vantage.rollouts.replay import PromptQueues

PAPER = Paper(
    "RePO: Replay-Enhanced Policy Optimization",
    "Siheng Li and Zhanhui Zhou and Wai Lam and Chao Yang and Chaochao Lu",
    2025,
    arxiv="2506.09340",
)
STRATEGIES = ("highest", "recent", "random", "all", "variance")


def choose(score: Tensor, there: Tensor, take: int, strategy: str, generator: torch.Generator) -> Tensor:
    """Return which records [P, M] of each queue are replayed.

    Args:
        score: [P, M], oldest first.
        there: [P, M], which places hold a record (the first ones).
        take: k; at most that many of each queue.
        strategy: one of `STRATEGIES`.
        generator: for "random".
    """
    if strategy == "all":
        return there
    held = there.sum(1, keepdim=True)
    count = held.clamp(max=take)
    if strategy == "variance":
        return _largest_variance(score.double(), there, held, count, take)
    key = {
        "highest": lambda: score.float(),
        "recent": lambda: torch.arange(score.shape[1]).expand(score.shape).float(),
        "random": lambda: torch.rand(score.shape, generator=generator),
    }[strategy]()
    order = key.masked_fill(~there, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return _placed(order, torch.arange(score.shape[1]) < count)


def _largest_variance(score: Tensor, there: Tensor, held: Tensor, count: Tensor, take: int) -> Tensor:
    # Variance is convex in each member, so the best subset is the h largest and the K - h smallest scores, for some h.
    order = score.masked_fill(~there, torch.inf).argsort(dim=1, stable=True)
    ranked = torch.where(there, score, 0.0).gather(1, order)
    below = torch.nn.functional.pad(torch.stack([ranked, ranked.square()]).cumsum(2), (1, 0))
    high = torch.arange(take + 1).expand(len(score), -1)
    possible = high <= count

    def sums(part: Tensor) -> Tensor:
        low = part.gather(1, (count - high).clamp(min=0))
        return low + part.gather(1, held) - part.gather(1, (held - high).clamp(min=0))

    total, squares = sums(below[0]), sums(below[1])
    size = count.clamp(min=1)
    variance = (squares / size - (total / size).square()).masked_fill(~possible, -torch.inf)
    best = variance >= variance.max(1, keepdim=True).values - 1e-9
    # On ties the largest sum: the most of the largest scores.
    top = torch.where(best, high, -1).max(1, keepdim=True).values
    rank = torch.arange(score.shape[1])
    chosen = _placed(order, (rank < count - top) | ((rank >= held - top) & (rank < held)))
    # Of equal scores the oldest, which the first of equally good subsets has.
    equal = (score.unsqueeze(2) == score.unsqueeze(1)) & there.unsqueeze(1)
    return there & (equal.tril(-1).sum(2) < (equal & chosen.unsqueeze(1)).sum(2))


def _placed(order: Tensor, ranks: Tensor) -> Tensor:
    return torch.zeros_like(ranks.expand(order.shape)).scatter(1, order, ranks.expand(order.shape))


@component
class PromptReplay:
    """Rollout plan: fresh groups, then the replayed answers to their prompts; `source` [N] is 1 for replayed rows.

    The strategies use the score that the method's rewards gave an answer when it was fresh; unscored answers are not stored.

    Attributes:
        plan: gathers fresh groups.
        capacity: M, answers that are kept of a prompt.
        least: m_min, answers that a queue must hold to be replayed from; at most `capacity`.
        take: k, answers replayed at most.
        strategy: one of `STRATEGIES`.
        mixed: replayed answers join their prompt's group instead of making a separate one.
        weight: c_off, of replayed rows in the loss.
    """

    plan: Any = field(default_factory=Groups)
    capacity: Annotated[int, at_least(1)] = 16
    least: Annotated[int, at_least(1)] = 16
    take: Annotated[int, at_least(1)] = 8
    strategy: Annotated[str, one_of(STRATEGIES)] = "highest"
    mixed: bool = False
    weight: float = 1.0
    _memory: dict[str, PromptQueues] = memory()

    def __post_init__(self) -> None:
        if self.least > self.capacity:
            raise UserError(
                f"PromptReplay.least={self.least} is more than capacity={self.capacity}: no queue can hold so many answers,"
                " and nothing would be replayed; lower least or raise capacity"
            )
        self._memory["queues"] = PromptQueues(self.capacity)

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step's fresh answers; the number of replayed ones depends on the queues."""
        return replace(cost(self.plan, episode), rows=None)

    def __call__(self, context: Context) -> Trajectories:
        """Sample fresh groups and append replayed rows."""
        fresh = context.verify(self.plan(context))
        index, groups = group_index(fresh.group)
        zeros = torch.zeros(len(fresh), device=fresh.device)
        fresh = fresh.replace(group=index, source=zeros.long(), weight=zeros + 1)
        # Only for the choice: the training loop scores these rows, and records it.
        fresh = fresh.replace(score=scored(fresh, context.under("")).score)
        queues = self._memory["queues"]
        prompts, first = _distinct(fresh.prompt, index)
        slots, there = queues.slots(prompts)
        there &= there.sum(1, keepdim=True) >= self.least
        rows = queues.table.rows
        if rows is None or not bool(there.any()):
            old = None
        else:
            score = torch.where(there, rows.score[slots.clamp(max=len(rows) - 1)], 0.0)
            chosen = choose(score, there, self.take, self.strategy, context.generator)
            owner = chosen.nonzero()[:, 0].to(fresh.device)
            old = queues.table.get(slots[chosen]).to(fresh.device)
            ones = torch.ones(len(old), device=fresh.device)
            group = first[owner] if self.mixed else groups + owner
            old = old.replace(group=group, source=ones.long(), weight=self.weight * ones)
        queues.push(fresh.select(~torch.isnan(fresh.score)))
        context.record("rollout/replayed", 0.0 if old is None else len(old) / (len(fresh) + len(old)))
        return fresh if old is None else concatenate([fresh, old])

    def state_dict(self) -> dict[str, Any]:
        """Return the queues."""
        return self._memory["queues"].state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self._memory["queues"].load_state_dict(state)


def _distinct(prompt: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct prompts [P] and the first group of each [P]."""
    ids, index = torch.unique(prompt, return_inverse=True)
    first = torch.full_like(ids, len(prompt)).scatter_reduce(0, index, group, "amin")
    return ids, first


@dataclass(frozen=True)
class FreshRecorded:
    """A reward of all rows, which records that of the fresh ones under its own names, and that of all under `batch/`.

    Replayed answers were chosen by their score, so that a mean over them does not measure the policy.

    Attributes:
        reward: fills `score` and `reward`.
    """

    reward: Any = field(default_factory=Total)

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill `score` and `reward`."""
        with memory_kept(self.reward):
            self.reward(batch.select(batch.source == 0), context)
        found: Trajectories = self.reward(batch, context.under("batch"))
        return found


@dataclass(frozen=True)
class FreshKL:
    """coefficient * token mean of the k3 estimate over fresh rows alone, whatever the averaging of the loss.

    Attributes:
        coefficient: beta.
    """

    coefficient: float = 0.04
    wants = frozenset({"logp"})
    columns = frozenset({"logp_ref"})
    unit = "batch"
    label = "kl"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term, a scalar."""
        fresh = batch.mask & (batch.source == 0).unsqueeze(-1)
        reference = torch.where(fresh, batch.logp_ref, evaluation.logp.detach())
        estimate = masked_mean(divergence(evaluation.logp, reference, "k3"), fresh)
        context.record_total("kl/reference", estimate * fresh.sum(), fresh.sum())
        return self.coefficient * estimate


@method(
    id="S080",
    papers=PAPER,
    source="SihengLi99/RePO@119fef6 scripts/train_replay_grpo.slurm",
    base=grpo,
    without=("beta",),
    beta=0.0,
    prompts=4,
    group_size=8,
    lr_schedule="cosine",
    lr_warmup=0.1,
)
def repo_replay(
    base: Method,
    capacity: int = 16,
    least: int = 16,
    take: int = 8,
    strategy: str = "highest",
    mixed: bool = False,
    weight: float = 1.0,
    beta: float = 0.0,
) -> Method:
    """capacity: M, answers that are kept of a prompt; least: m_min, least answers to replay from; take:
    k, of them a step; strategy: which ones, see `PromptReplay`; mixed: they join their prompt's group; weight:
    c_off, of replayed rows in the loss; beta: weight of the divergence to the reference, on fresh rows."""
    return base.replace(
        rollout=PromptReplay(base.rollout, capacity, least, take, strategy, mixed, weight),
        rewards=(FreshRecorded(),),
        regularizers=(FreshKL(beta),) if beta else (),
    )


# Half of the paper's sizes, as answers come in groups of 4; replay begins at the third visit of a prompt.
_HALF = {"take": 4, "capacity": 8, "least": 8, "lr_schedule": "constant", "lr_warmup": 0.0}

claim = (
    Claim(
        name="faster",
        arena="arithmetic-few",
        against="grpo",
        metric="area",
        settings={**_HALF, "strategy": "variance"},
        against_settings={"beta": 0.0},
        note="Accuracy on the 64 prompts over the run, at equal fresh answers; the strategy was chosen after one look at seed 0."
        " The authors report higher final accuracy on held-out benchmarks; a model as small as this memorises the 64.",
    ),
    Claim(
        name="signal",
        arena="arithmetic-few",
        against="grpo",
        metric="mean:zero_advantage_groups",
        direction="lower",
        settings={**_HALF, "strategy": "variance"},
        against_settings={"beta": 0.0},
        note="Chosen after one look at seed 0. Groups without gradient, replayed ones included. The authors count"
        " optimisation steps that have an effect; here every step of 32 prompts has one.",
    ),
    Claim(
        name="highest",
        arena="arithmetic-few",
        against="grpo",
        metric="area",
        direction="no worse",
        margin=0.03,
        settings=_HALF,
        against_settings={"beta": 0.0},
        note="The authors' strategy replays right answers alone once a prompt has enough of them, and these have advantage 0.",
    ),
)
