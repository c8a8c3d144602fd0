"""POISE: the baseline is a ridge regression of success on the policy's own hidden states. (S246)

A critic costs a second model and a large group many answers. The policy's hidden states and entropies already contain an
estimate of the prompt's success rate. A linear probe reads it from another answer to the same prompt, so that the
baseline is independent of the answer and the gradient stays unbiased:

    phi_i = [state that has read the prompt ; mean of the last 10 states of the answer ; mean, std, max of its entropies]
    A_i   = r_i - mean over j != i of g(phi_j)                       g from before this step, clipped to [0, 1]
    loss  = mean over rows of mean over tokens of -min(ratio A, clip(ratio, 1 - 0.2, 1 + 0.28) A)
    after the update:  g = ridge regression of mean_{j != i} r_j on phi_i over the last steps' answers;   penalty 0.01

X is standardised, the intercept is not penalised: w = (X'X + 0.01 I)^-1 X'y. arXiv 2605.07579, with two answers to a prompt;
for more, baseline and target are means over the others. Ours: before the first fit g(phi_j) is r_j (RLOO); which statistics of
the entropy, and how many steps are stored, is not stated. The states are those that the output layer reads: the paper's are
of a middle layer (19), and for the prompt a mean over its last ten tokens. One forward pass, read at these positions alone,
gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.advantages.groups import ScoreLessBaseline
from vantage.annotations import above, at_least
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import leave_one_out_mean
from vantage.functions.rows import per_decision
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import Clip

PAPER = Paper(
    "Your Language Model is Its Own Critic: Reinforcement Learning with Value Estimation from Actor's Internal States",
    "Yunho Choi and Jongwon Lim and Woojin Ahn and Minjae Oh and Jeonghoon Shim and Yohan Jo",
    2026,
    arxiv="2605.07579",
)


CHUNK = 32
"""Rows evaluated at once where no micro-batch is set: the states of a whole batch are larger than a model."""


NOISE = 1e-6
"""Spread of a feature, relative to its largest value, up to which it is the rounding of float32."""


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression.

    Attributes:
        mean, std: of the features [F]; a feature that is constant up to rounding has std 1.
        weight: [F], of standardised features.
        intercept: mean of the targets, a scalar.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    intercept: Tensor

    @classmethod
    def fit(cls, features: Tensor, target: Tensor, penalty: float) -> Ridge:
        """Fit to features [M, F] and targets [M], in float64, by whichever of the two closed forms is smaller."""
        features, target = features.double(), target.double()
        low = features.amin(0)  # measured from the smallest value, a constant feature has exactly zero spread
        std, mean = torch.std_mean(features - low, 0, correction=0)
        mean = low + mean
        std = torch.where(std <= NOISE * features.abs().amax(0), 1.0, std)
        x, y = (features - mean) / std, target - target.mean()
        few = len(x) < x.shape[1]
        gram = x @ x.T if few else x.T @ x
        gram.diagonal().add_(penalty)
        weight = x.T @ torch.linalg.solve(gram, y) if few else torch.linalg.solve(gram, x.T @ y)
        return cls(mean, std, weight, target.mean())

    def __call__(self, features: Tensor) -> Tensor:
        """Return the predictions [N] for features [N, F]."""
        held = [part.to(features.device) for part in (self.mean, self.std, self.weight, self.intercept)]
        mean, std, weight, intercept = held
        return intercept + ((features.double() - mean) / std) @ weight

    def parts(self) -> list[Tensor]:
        """Return the four tensors."""
        return [self.mean, self.std, self.weight, self.intercept]


@component
class HiddenProbe:
    """Fills `value` [N, T] with the page's baseline, and `features` [N, F]; after the update it is fitted. No gradient.

    Scores are taken to lie in [0, 1].

    Attributes:
        pool: last states of an answer that are averaged.
        penalty: of the ridge regression, above 0.
        memory: steps whose answers it is fitted to, the last included; 0 never fits, which leaves RLOO.
    """

    pool: Annotated[int, at_least(1)] = 10
    penalty: Annotated[float, above(0)] = 0.01
    memory: Annotated[int, at_least(0)] = 8
    columns = frozenset({"entropy_old"})
    _memory: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def needs(self) -> frozenset[str]:
        """Hidden states, where there is a probe."""
        return frozenset({"hidden"} if self.memory else ())

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill the columns, and `target` [N], the mean score of the other answers."""
        target = leave_one_out_mean(batch.score, batch.group)
        if not self.memory:
            return batch.replace(value=per_decision(target, batch.mask))
        features = self.features(batch, context)
        probe: Ridge | None = self._memory.get("probe")
        baseline = target
        if probe is not None:
            found = probe(features).clamp(0, 1).to(target.dtype)
            context.record("probe/mae", (found - target).abs().mean())
            context.record("probe/correlation", torch.corrcoef(torch.stack([found, target]))[0, 1].nan_to_num(0.0))
            baseline = leave_one_out_mean(found, batch.group)
        return batch.replace(value=per_decision(baseline, batch.mask), features=features, target=target)

    def features(self, batch: Trajectories, context: Context) -> Tensor:
        """Return phi [N, 2 D + 3] in float32."""
        size = context.rows_at_once or CHUNK
        states = [self._states(batch[start : start + size], context) for start in range(0, len(batch), size)]
        count = batch.mask.sum(-1).clamp(min=1)
        entropy = torch.where(batch.mask, batch.entropy_old.float(), 0.0)
        mean = entropy.sum(-1) / count
        spread = torch.where(batch.mask, (entropy - mean.unsqueeze(-1)).square(), 0.0).sum(-1) / count
        return torch.cat([*torch.cat(states).unbind(1), torch.stack([mean, spread.sqrt(), entropy.amax(-1)], 1)], 1)

    def _states(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the first state and the mean of the last ones [n, 2, D] of rows that are evaluated at once."""
        mask = batch.mask
        rank = mask.cumsum(1)
        count = rank[:, -1:]
        # Indices of the decisions that are read: the first, then the last ones; and their positions in the row.
        wanted = torch.cat([torch.zeros_like(count), count - 1 - torch.arange(self.pool, device=count.device)], 1)
        there = (wanted >= 0) & (count > 0)
        place = torch.argsort(~mask, dim=1, stable=True).gather(1, wanted.clamp(min=0))
        needed = batch.replace(mask=mask & ((rank == 1) | (rank > count - self.pool)))
        rows = torch.arange(len(batch), device=count.device).unsqueeze(1)
        # The policy's other outputs, [n, T, D], are freed before the next rows are evaluated.
        found = context.evaluate(needed, "hidden", read=lambda judged, _: judged.hidden[rows, place]).float()
        found = torch.where(there.unsqueeze(-1), found, 0.0)
        mean = found[:, 1:].sum(1) / there[:, 1:].sum(1, keepdim=True).clamp(min=1)
        return torch.stack([found[:, 0], mean], 1)

    def fit(self, batch: Trajectories, context: Context) -> None:
        """Store this step's answers, and fit to all that are stored."""
        if not self.memory:
            return
        held: list[Any] = self._memory.setdefault("held", [])
        held.append({"features": batch["features"], "target": batch["target"]})
        del held[: -self.memory]
        features = torch.cat([one["features"].to(batch.device) for one in held])
        target = torch.cat([one["target"].to(batch.device) for one in held])
        self._memory["probe"] = Ridge.fit(features, target, self.penalty)

    def state_dict(self) -> dict[str, Any]:
        """Return the stored answers and the probe."""
        probe: Ridge | None = self._memory.get("probe")
        return {"held": list(self._memory.get("held", [])), "probe": probe.parts() if probe is not None else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self._memory["held"] = [dict(one) for one in state["held"]]
        self._memory["probe"] = Ridge(*state["probe"]) if state["probe"] is not None else None


@method(
    id="S246",
    papers=PAPER,
    needs=("episodes", "hidden"),
    base=grpo,
    without=("eps", "beta", "dual"),
    beta=0.0,
    prompts=1024,
    minibatches=64,
    source="none: the paper's text and tables; scikit-learn/scikit-learn@1.9.1 sklearn/linear_model/_ridge.py",
)
def poise(
    base: Method,
    group_size: Annotated[int, at_least(2)] = 2,
    pool: int = 10,
    penalty: float = 0.01,
    memory: int = 8,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
) -> Method:
    """group_size: answers to a prompt; pool: last states of an answer whose mean is a feature; penalty: of the ridge
    regression; memory: steps whose answers the probe is fitted to, 0 for no probe; eps_low, eps_high: clip range."""
    return base.replace(
        values=HiddenProbe(pool, penalty, memory),
        advantage=ScoreLessBaseline(),
        objective=Clip(eps_low, eps_high),
    )


claim = (
    Claim(
        name="accuracy",
        arena="calculator",
        against="grpo",
        direction="no worse",
        margin=0.03,
        settings={"prompts": 128, "group_size": 2},
        against_settings={"beta": 0.0},
        note="The authors: within a point of DAPO with eight answers to a prompt, in less time a step. Two answers to 128 prompts"
        " against eight to 32.",
    ),
    Claim(
        name="probe",
        arena="calculator",
        against="poise",
        metric="area",
        settings={"prompts": 128, "group_size": 2},
        against_settings={"prompts": 128, "group_size": 2, "memory": 0},
        note="What the probe adds: the same with the other answer's score for a baseline, which is RLOO with two answers.",
    ),
)
