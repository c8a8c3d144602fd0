"""VinePPO: values from fresh continuations instead of a critic. (S094)

The state of a language environment is its text, so any state can be entered again. VinePPO splits an answer into steps and
estimates the value where each begins by the mean score of K continuations from there; the rest is PPO:

    V[n] = mean score of K continuations of the prompt and the first n steps,  n = 0 .. min(N - 1, most);   V[N] = 0
    A_n  = r_n + V[n] - V[n-1]  for every token of step n,  r_N = R, 0 before;    beyond `most` steps V[n] = R
    A    = (A - mean) rsqrt(var + 1e-8) over all tokens
    loss = token mean of -min(ratio A, clip(ratio) A) + beta * mean over rows of sum_t min(k3(logp, logp_ref), 10)

arXiv 2410.01679; steps and defaults as in the authors' code (MATH and GSM8K). Equal prefixes are continued once. A continuation
that does not end counts `unfinished` (0), and so does an answer. Continuations are never learnt from. A step ends with a token
whose text holds `separator`, so a separator must lie within a token.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch
from torch import Tensor

from vantage.annotations import at_least
from vantage.core.component import component
from vantage.core.context import Context, prefix_engine
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.scoring import scored
from vantage.core.trajectories import Trajectories
from vantage.functions.divergences import divergence
from vantage.functions.whitening import whiten
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.rollouts.segments import StepsByToken, first_places

PAPER = Paper(
    "VinePPO: Unlocking RL Potential For LLM Reasoning Through Refined Credit Assignment",
    "Amirhossein Kazemnejad and Milad Aghajohari and Eva Portelance and Alessandro Sordoni and Siva Reddy and"
    " Aaron Courville and Nicolas Le Roux",
    2024,
    arxiv="2410.01679",
)


@component
class VineValues:
    """Fills `segment`, `value` (of the state before the decision's step) and `next_value` (after it), all [N, T].

    `score` [N] of a row that does not end becomes `unfinished`, as that of a continuation does.

    Attributes:
        count: K, continuations of a state.
        most: states after the first `most` steps are estimated, and the prompt's.
        unfinished: score of an answer or continuation that does not end; None takes what the task says.
        steps: gives each decision the number of its step.
    """

    count: Annotated[int, at_least(1)] = 9
    most: Annotated[int, at_least(0)] = 25
    unfinished: float | None = 0.0
    steps: StepsByToken = field(default_factory=StepsByToken)
    needs = frozenset({"prefixes"})

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill the columns; no gradient."""
        batch = batch.replace(score=self._finished(batch, batch.score.float()))
        segment = self.steps(batch, context)
        start, steps = first_places(segment, batch.length)
        segment = segment.clamp(max=start.shape[1] - 1)
        asked = torch.arange(start.shape[1], device=batch.device)
        row, step = ((asked < steps.unsqueeze(-1)) & (asked <= self.most)).nonzero(as_tuple=True)
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


@component
class StepDifference:
    """Advantage of a decision: its step's reward and gain in value, whitened over the batch; no gradient.

    Attributes:
        whiten: standardise over all decisions (unbiased variance, eps 1e-8 inside the root).
    """

    whiten: bool = True

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage [N, T]."""
        final = batch.segment.gather(1, (batch.length - 1).clamp(min=0).unsqueeze(-1))
        reward = batch.score.float().unsqueeze(-1) * (batch.segment == final)
        advantage = torch.where(batch.mask, reward + batch.next_value - batch.value, 0.0)
        return whiten(advantage, batch.mask) if self.whiten else advantage


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
    prompts=64, group_size=8, epochs=2, minibatches=8, temperature=0.6,
)  # fmt: skip
def vineppo(
    base: Method,
    count: int = 9,
    most: int = 25,
    unfinished: float | None = 0.0,
    separator: str = "\n",
    beta: float = 1e-4,
) -> Method:
    """count: K, continuations of a state; most: steps of an answer that are estimated; unfinished: score of what
    does not end, none takes what the task says; separator: text that ends a step; beta: weight of the divergence to
    the reference."""
    return base.replace(
        values=VineValues(count, most, unfinished, StepsByToken(separator)),
        advantage=StepDifference(),
        averaging="token-mean",
        regularizers=(SequenceKL(beta),) if beta else (),
    )


claim = Claim(
    arena="arithmetic",
    against="grpo",
    direction="no worse",
    margin=0.03,
    settings={"prompts": 8, "count": 4, "separator": "", "temperature": 1.0, "minibatches": 1, "lr": 3e-5},
    against_settings={"beta": 0.0},
    note="Each character is a step. The authors compare at equal updates; here continuations count as samples, so that a step has"
    " 64 answers. Each side's rate is the best of three by pass@1 of one further seed (VinePPO: 0.392 at 3e-5, 0.375 at 1e-4, and"
    " at 3e-4 it unlearns; GRPO: 0.441 at 1e-4, 0.497 at 3e-4, 0.357 at 1e-3).",
)
