"""SPO: one answer per prompt, with the prompt's remembered success rate as baseline. (S066)

Groups are wasted on prompts that are always or never solved. SPO keeps a Beta distribution of each prompt's success, whose
memory shrinks as the policy moves away from the one that gave the evidence; its mean is the baseline, advantages are
standardised over the batch, and prompts with uncertain outcomes are drawn more often:

    v = alpha / (alpha + beta),  before this answer          draw weight of a prompt  sqrt(v (1 - v)) + 0.05
    A = (a - mean a) / std a  over the batch,  a = r - v
    after the update:  rho = clip(2^(-D / D_half), rho_min, rho_max),  alpha <- rho alpha + r,  beta <- rho beta + 1 - r

D is the mean over the tokens of the answer from the prompt's last visit, a tool's output included, of |logp then - logp now|,
both under the policy just updated at that visit and now; at a first visit rho is rho_max. A prompt starts from n0 answers of the
start policy, k with a score above 0: N0 = 1 / (1 - rho_min), alpha = N0 (k + 1/2) / (n0 + 1), beta = N0 (n0 - k + 1/2) / (n0 + 1);
with n0 = 0 both are 1/2. These are drawn at temperature 0.6 and top-p 0.95, where the engine can; a missing score counts as wrong.
Afterwards scores must lie in [0, 1]: one between counts as part of a success.
arXiv 2509.13232; constants and order as in the authors' recipe (which measures D by absolute differences, where the paper says
KL). Prompts are drawn from all of the task (14000 for a batch of 1024 there), or with `pool` from so many batches of them. The
authors' token mean is over a micro-batch of a device. Not SPO-segment.
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated

import torch
from torch import Tensor

from vantage.advantages.groups import ScoreLessBaseline
from vantage.annotations import above, at_least, at_most, below
from vantage.core.component import component, memory
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.protocols import Prompts
from vantage.core.scoring import scored
from vantage.core.trajectories import Trajectories, declare, exists
from vantage.functions.groups import group_sums
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import Clip
from vantage.rollouts.plans import Shuffled
from vantage.rollouts.records import Records, per_prompt
from vantage.rollouts.replay import PromptQueues

declare("logp_then", "[N, T]", "log-probability under the policy after the row's update", "the recipe's tracker")

PAPER = Paper("Single-stream Policy Optimization", "Zhongwen Xu and Zihan Ding", 2025, arxiv="2509.13232")
JUDGED = ("observation", "action", "mask", "length", "prompt", "turn")
"""Columns that a policy needs to evaluate a row again."""
LARGEST = 100_000
"""Prompts that are answered before the first step, at most."""
_ROUNDING = 1e-5
"""Tolerance by which a sum of weighted rewards may leave the range of a score."""


@component
class SuccessTracker:
    """Fills `value` [N, T] with the prompt's v; after the update adds the batch's scores to the tracker.

    Several answers to a prompt in one batch count as one visit. Scores outside of [0, 1] are refused: they are shares of a
    success, and others would make alpha or beta negative.

    Attributes:
        half: D_half, drift in nats a token at which memory halves; above 0.
        least, most: bounds of rho, in (0, 1).
        samples: n0, answers to each prompt of the task before the first step; they are scored by the method's rewards, and above
            0 is a success. 0 for none.
        temperature, top_p: those answers are drawn so, by an engine with `sampling`.
        constant: rho is this instead, and nothing is stored; above 0; at 1 nothing is forgotten.
    """

    half: Annotated[float, above(0)] = 0.06
    least: Annotated[float, above(0), below(1)] = 0.875
    most: Annotated[float, above(0), below(1)] = 0.96
    samples: Annotated[int, at_least(0)] = 8
    temperature: Annotated[float, above(0)] = 0.6
    top_p: Annotated[float, above(0), at_most(1)] = 0.95
    constant: Annotated[float, above(0), at_most(1)] | None = None
    _records: Records = memory(lambda: Records(alpha=0.5, beta=0.5))
    _last: PromptQueues = memory(lambda: PromptQueues(1))

    @property
    def needs(self) -> frozenset[str]:
        """Scores in [0, 1], and prompts that can be answered before the first step."""
        return frozenset({"unit-scores", "finite-prompts"} if self.samples else {"unit-scores"})

    def __post_init__(self) -> None:
        if not self.least <= self.most:
            raise UserError(f"SuccessTracker: least={self.least} and most={self.most} must have least <= most")

    def estimate(self, prompts: Tensor) -> Tensor:
        """Return v [B] of these prompts [B]."""
        held = self._records.read(prompts)
        return held["alpha"] / (held["alpha"] + held["beta"])

    def start(self, context: Context, chunk: int = 256) -> None:
        """Estimate every prompt of the task by `samples` answers, unless that is done."""
        if len(self._records) or not self.samples:
            return
        size = context.task.size
        if not 0 < size <= LARGEST:
            raise UserError(
                f"SuccessTracker.samples={self.samples}: {size or 'endless'} prompts are too many to answer before the first"
                f" step (at most {LARGEST}); samples=0 starts every prompt at 1/2"
            )
        scale = 1 / (1 - self.least) / (self.samples + 1)
        # These answers and their scores are not the first step's.
        beside, drawn = context.under("start"), {}
        if hasattr(context.engine, "sampling"):
            drawn["sampling"] = replace(context.engine.sampling, temperature=self.temperature, top_p=self.top_p)
        for ids in torch.arange(size).split(chunk):
            batch = context.engine.sample(context.task.prompts(ids), self.samples, beside, **drawn)
            score = scored(batch, beside).score.view(len(ids), self.samples)
            right = (score > 0).sum(1)
            wrong = self.samples - right
            self._records.write(ids.to(right.device), alpha=scale * (right + 0.5), beta=scale * (wrong + 0.5))

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill `value`, the same for all decisions of a row.

        Raises:
            UserError: a score is outside of [0, 1].
        """
        _successes(batch.score)
        value = self.estimate(batch.prompt).unsqueeze(-1).expand(batch.mask.shape)
        return batch.replace(value=value)

    def fit(self, batch: Trajectories, context: Context) -> None:
        """Discount by the drift since each prompt's last visit, add the scores, and store the answers."""
        batch = batch.select(~torch.isnan(batch.score))
        if not len(batch):
            return
        ids, index, count = per_prompt(batch.prompt)
        right, size = group_sums(_successes(batch.score), batch.prompt)
        zeros = torch.zeros(count, device=batch.device)
        right, size = zeros.scatter(0, index, right), zeros.scatter(0, index, size)
        rho = torch.full_like(zeros, self.constant) if self.constant is not None else self._rho(ids, context)
        held = self._records.read(ids)
        self._records.write(ids, alpha=rho * held["alpha"] + right, beta=rho * held["beta"] + size - right)
        context.record("tracker/rho", rho.mean())
        if self.constant is None:
            kept = Trajectories({name: batch[name] for name in JUDGED if name in batch}, rows=len(batch))
            newest = torch.zeros_like(ids).scatter_reduce(0, index, torch.arange(len(index), device=ids.device), "amax")
            kept = kept.replace(mask=exists(kept)).select(newest)
            self._last.push(kept.replace(logp_then=context.evaluate(kept)))

    def _rho(self, ids: Tensor, context: Context) -> Tensor:
        slots, there = self._last.slots(ids)
        drift = torch.zeros(len(ids), device=ids.device)
        if there.any():
            stored = self._last.table.get(slots[there]).to(ids.device)
            moved = torch.where(stored.mask, (stored.logp_then - context.evaluate(stored)).abs(), 0.0)
            drift[there[:, 0].to(ids.device)] = moved.sum(-1) / stored.mask.sum(-1).clamp(min=1)
        context.record("tracker/drift", drift.mean())
        return torch.exp2(-drift / self.half).clamp(self.least, self.most)


def _successes(score: Tensor) -> Tensor:
    """Return the scores [N], none of which may be outside of [0, 1] by more than rounding; missing ones stay NaN."""
    outside = (score < -_ROUNDING) | (score > 1 + _ROUNDING)
    if bool(outside.any()):
        raise UserError(
            f"SuccessTracker: a row has the score {float(score[outside][0])}, and v is the share of successes: scores must"
            " lie in the range 0 to 1 (mix or scale the rewards so)"
        )
    return score.clamp(0, 1)


@component
class OpenPrompts:
    """Prompts drawn from a chunk of the shuffled data with weight sqrt(v (1 - v)) + `explore`, v of the method's tracker.

    No position of the chunk is drawn twice where it has enough of them. A chunk in which an epoch ends can contain a prompt
    twice, and then both may be drawn.

    Attributes:
        pool: prompts a chunk, in batches, at least 1; None for all prompts of the task.
        explore: added to each weight, above 0: v may come to be 0 or 1, and weights must not vanish.
        source: yields the chunks.
    """

    pool: Annotated[int, at_least(1)] | None = None
    explore: Annotated[float, above(0)] = 0.05
    source: Shuffled = field(default_factory=Shuffled)

    @property
    def needs(self) -> frozenset[str]:
        """All prompts of the task, where the chunk has them."""
        return frozenset({"finite-prompts"} if self.pool is None else ())

    def __call__(self, count: int, context: Context) -> Prompts:
        """Return `count` prompts."""
        tracker = context.method.values
        if not isinstance(tracker, SuccessTracker):
            raise UserError(
                "OpenPrompts draws by the estimates of values=SuccessTracker(), which the method does not have"
            )
        tracker.start(context)
        every = context.task.size
        if self.pool is None and not every:
            raise UserError(
                "OpenPrompts.pool=None draws from all prompts, which the task has no end of; give pool in batches"
            )
        size = every if self.pool is None else self.pool * count
        found = self.source(min(size, every) if every else size, context)
        value = tracker.estimate(found.ids)
        weight = (value * (1 - value)).sqrt() + self.explore
        chosen = torch.multinomial(weight.cpu(), count, len(found) < count, generator=context.generator)
        return Prompts(found.ids[chosen], [found.items[i] for i in chosen.tolist()])


@method(
    id="S066", papers=PAPER, needs=("episodes", "finite-prompts", "unit-scores"), base=grpo,
    without=("group_size", "eps", "beta", "epochs"), group_size=1, beta=0.0, prompts=1024, minibatches=8, dual=10.0,
    weight_decay=0.01,
    source="verl-project/verl-recipe@48ea0a7 spo/train.sh; volcengine/verl@b178a3c verl/trainer/config/actor/actor.yaml",
)  # fmt: skip
def spo_single_stream(
    base: Method,
    half: float = 0.06,
    least: float = 0.875,
    most: float = 0.96,
    samples: int = 8,
    start_temperature: float = 0.6,
    start_top_p: float = 0.95,
    constant: float | None = None,
    pool: int | None = None,
    explore: float = 0.05,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
) -> Method:
    """half: D_half, drift in nats a token at which memory halves; least, most: bounds of rho; samples: n0, answers
    to each prompt of the task before the first step, 0 for none; start_temperature, start_top_p: by which these are
    drawn; constant: rho is this instead, none measures the drift; pool: prompts that are drawn from, in batches, none
    for all; explore: added to the weight of each prompt; eps_low, eps_high: clip range."""
    return base.replace(
        prompts=OpenPrompts(pool, explore),
        values=SuccessTracker(half, least, most, samples, start_temperature, start_top_p, constant),
        advantage=ScoreLessBaseline(whiten=True),
        objective=Clip(eps_low, eps_high, base.objective.dual),
        averaging="token-mean",
    )


claim = Claim(
    arena="arithmetic",
    against="grpo",
    direction="no worse",
    margin=0.03,
    settings={"prompts": 256, "samples": 0, "pool": 4, "minibatches": 1, "weight_decay": 0.0},
    against_settings={"beta": 0.0},
    note="One answer to 256 prompts against 8 to 32. Without the answers before the first step; prompts come about ten times.",
)
