"""VinePPO: values from fresh continuations instead of a critic. (S094)

The state of a language environment is its text, so any state can be entered again. VinePPO splits an answer into steps and
estimates the value where each begins by the mean score of K continuations from there; the rest is PPO:

    V[n] = mean score of K continuations of the prompt and the first n steps,  n = 0 .. min(N - 1, most);   V[N] = 0
    A_n  = r_n + V[n] - V[n-1]  for every token of step n,  r_N = R, 0 before;    beyond `most` steps V[n] = R
    A    = (A - mean) rsqrt(var + 1e-8) over the tokens of a minibatch (64 rows)
    loss = token mean of -min(ratio A, clip(ratio) A) + beta * mean over rows of sum_t min(k3(logp, logp_ref), 10)

arXiv 2410.01679. Defaults are those of the authors' GSM8K run: the line break begins the next step, and the final answer (`####`)
joins the last. MATH: `steps="sentences"`, `most=None`, 1000 steps in place of 650. Equal prefixes are continued once. A
continuation that does not end counts `unfinished` (0), and so does an answer. Continuations are never learnt from. A minibatch
whose mean ratio is above 10 gives no gradient; the optimiser takes its step. The rate rises over 3 % of the run and falls
linearly to 0.

Other than there: a step begins with a token, which a token with text of two steps belongs to whole (theirs continue from its
first characters, tokenised again); an answer with two `####` is divided at the first (dropped there); the warm-up is linear
(logarithmic there); the ratio is held to e^20. They sample with top-p 0.9, also the continuations: the task's option `top_p`.
They draw prompts with replacement, here each comes once an epoch.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

import torch
from torch import Tensor

from vantage.annotations import above, at_least
from vantage.core.component import component, extended
from vantage.core.context import Context, prefix_engine
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.scoring import scored
from vantage.core.trajectories import Trajectories
from vantage.functions.divergences import divergence
from vantage.functions.ratios import log_ratio
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import Clip
from vantage.rollouts.segments import Steps, first_places
from vantage.updates.gradient import GradientUpdate

PAPER = Paper(
    "VinePPO: Unlocking RL Potential For LLM Reasoning Through Refined Credit Assignment",
    "Amirhossein Kazemnejad and Milad Aghajohari and Eva Portelance and Alessandro Sordoni and Siva Reddy and"
    " Aaron Courville and Nicolas Le Roux",
    2024,
    arxiv="2410.01679",
)


RATIO = "ratio"
"""The metric that `SkipLargeRatios` reads."""


@component
class VineValues:
    """Fills `segment`, `value` (of the state before the decision's step) and `next_value` (after it), all [N, T].

    `score` [N] of a row that does not end becomes `unfinished`, as that of a continuation does.

    Attributes:
        count: K, continuations of a state.
        most: states after the first `most` steps are estimated, and the prompt's; None estimates all.
        unfinished: score of an answer or continuation that does not end; None takes what the task says.
        steps: gives each decision the number of its step.
    """

    count: Annotated[int, at_least(1)] = 9
    most: Annotated[int, at_least(0)] | None = 25
    unfinished: float | None = 0.0
    steps: Steps = field(default_factory=Steps)
    needs = frozenset({"prefixes"})

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill the columns; no gradient."""
        batch = batch.replace(score=self._finished(batch, batch.score.float()))
        segment = self.steps(batch, context)
        start, steps = first_places(segment, batch.length)
        segment = segment.clamp(max=start.shape[1] - 1)
        asked = torch.arange(start.shape[1], device=batch.device)
        most = batch.steps if self.most is None else self.most
        row, step = ((asked < steps.unsqueeze(-1)) & (asked <= most)).nonzero(as_tuple=True)
        one, same = _distinct(batch, row, start[row, step])
        found = self._scores(batch, row[one], start[row[one], step[one]], context)
        context.record("vine/states", float(len(one)))
        context.record("vine/shared", 1 - len(one) / max(len(row), 1))
        # What is not estimated has the row's score, and the state after the last step 0.
        value = batch.score.float().unsqueeze(-1).repeat(1, start.shape[1] + 1)
        value[row, step] = torch.where(torch.isnan(found[same]), value[row, step], found[same])
        value.scatter_(1, steps.unsqueeze(-1), 0.0)
        return batch.replace(segment=segment, value=value.gather(1, segment), next_value=value.gather(1, segment + 1))

    def _scores(self, batch: Trajectories, rows: Tensor, places: Tensor, context: Context) -> Tensor:
        """Return the mean score of continuations from these states [K]; their own metrics stand under `vine/`."""
        aside = context.under("vine")
        tails = prefix_engine(context, "VineValues").resume(batch, rows, places, self.count, aside)
        score = self._finished(tails, scored(tails, aside).score)
        return score.view(len(rows), self.count).nanmean(1)

    def _finished(self, batch: Trajectories, score: Tensor) -> Tensor:
        return score if self.unfinished is None else torch.where(batch.terminated.any(-1), score, self.unfinished)


def _distinct(batch: Trajectories, row: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Return (one, same): places in `row` [K] of one state of each kind [U], and the kind of each state [K]."""
    inside = torch.arange(batch.steps, device=row.device) < place.unsqueeze(-1)
    prefix = torch.where(inside, batch.action[row], -1)
    keys = torch.cat([batch.prompt[row].unsqueeze(-1), prefix[:, : max(int(place.max()), 1)]], 1)
    kinds, same = torch.unique(keys, dim=0, return_inverse=True)
    one = same.new_full((len(kinds),), len(row)).scatter_reduce(
        0, same, torch.arange(len(row), device=row.device), "amin"
    )
    return one, same


def step_difference(batch: Trajectories, context: Context) -> Tensor:
    """Return the advantage of each decision [N, T]: its step's reward and gain in value; no gradient."""
    final = batch.segment.gather(1, (batch.length - 1).clamp(min=0).unsqueeze(-1))
    reward = batch.score.float().unsqueeze(-1) * (batch.segment == final)
    return torch.where(batch.mask, reward + batch.next_value - batch.value, 0.0)


@component
class RatioClip(Clip):
    """PPO's clipped surrogate; records the mean ratio of the decisions, `ratio`."""

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        ratio = log_ratio(evaluation.logp.detach(), batch.logp_old, batch.mask).exp()
        context.record_mean(RATIO, ratio, batch.mask)
        return super().__call__(evaluation, batch, context)


@component
class SkipLargeRatios(GradientUpdate):
    """Gradient update in which a minibatch whose mean ratio is too large has the gradient 0.

    Attributes:
        largest: mean ratio up to which a minibatch counts, above 0; None skips none.
    """

    largest: Annotated[float, above(0)] | None = 10.0

    def differentiate(self, part: Trajectories, context: Context) -> None:
        """Leave the gradient in `.grad`."""
        before = context.metrics.recorded(RATIO)
        super().differentiate(part, context)
        skipped = self.largest is not None and context.metrics.mean(RATIO, since=before) > self.largest
        if skipped:
            for parameter in self._memory["parameters"]:
                if parameter.grad is not None:
                    parameter.grad.zero_()
        context.record("update/skipped", float(skipped))


@component
class SequenceKL:
    """coefficient * k3 estimate to the reference, summed over a row's decisions, mean over rows; gradient through `logp`.

    Attributes:
        coefficient: beta.
        limit: of a decision's estimate.
    """

    coefficient: float = 1e-4
    limit: float = 10.0
    wants = frozenset({"logp"})
    columns = frozenset({"logp_ref"})
    unit = "row"
    label = "kl"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term per row [N]."""
        reference = torch.where(batch.mask, batch.logp_ref, evaluation.logp.detach())
        estimate = torch.where(batch.mask, divergence(evaluation.logp, reference, "k3", self.limit), 0.0)
        context.record_mean("kl/reference", estimate, batch.mask)
        return self.coefficient * estimate.sum(-1)


@method(
    id="S094", papers=PAPER, needs=("episodes", "prefixes", "text"), base=grpo, without=("beta",), beta=0.0,
    prompts=64, group_size=8, epochs=2, minibatches=8, temperature=0.6, lr_schedule="linear", lr_warmup=0.03,
    source="McGill-NLP/VinePPO@efe7228 configs/polIter_rho1bSft2_vineppo_GSM8K.jsonnet",
)  # fmt: skip
def vineppo(
    base: Method,
    count: int = 9,
    most: int | None = 25,
    unfinished: float | None = 0.0,
    steps: Literal["lines", "sentences", "tokens"] = "lines",
    separator: str = "\n",
    answer: str = "\n#### ",
    beta: float = 1e-4,
    ratio_limit: float | None = 10.0,
) -> Method:
    """count: K, continuations of a state; most: steps of an answer that are estimated, none for all; unfinished: score
    of what does not end, none takes what the task says; steps: of an answer, `lines`, `sentences` (MATH) or
    `tokens`; separator: text that begins the next line; answer: text that begins the final answer, which joins the
    last line; beta: weight of the divergence to the reference; ratio_limit: a minibatch with a larger mean ratio
    gives no gradient, none for no limit."""
    return base.replace(
        values=VineValues(count, most, unfinished, Steps(steps, separator, answer)),
        advantage=step_difference,
        objective=extended(base.objective, RatioClip),
        averaging="token-mean",
        regularizers=(SequenceKL(beta),) if beta else (),
        update=extended(base.update, SkipLargeRatios, largest=ratio_limit, normalize_advantage=True),
    )


claim = Claim(
    arena="arithmetic",
    against="grpo",
    direction="no worse",
    margin=0.03,
    settings={"prompts": 8, "count": 4, "steps": "tokens", "temperature": 1.0, "minibatches": 1, "lr": 3e-5},
    against_settings={"beta": 0.0},
    note="Each character is a step. The authors compare at equal updates; here continuations count as samples, so that a step has"
    " 64 answers. Each side's rate is the best of three by pass@1 of one further seed (VinePPO: 0.392 at 3e-5, 0.375 at 1e-4, and"
    " at 3e-4 it unlearns; GRPO: 0.441 at 1e-4, 0.497 at 3e-4, 0.357 at 1e-3).",
)
