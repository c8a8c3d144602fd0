"""ST-PPO: PPO with ratios of whole turns, and smaller steps where clipping removed much of the gradient. (S189)

Token PPO collapses on conversations: a token's ratio does not match the action, which is a turn, and on stale data the clip
removes a share of the gradient that grows with the critic's error. ST-PPO shares one ratio among the tokens of a turn, and
divides the policy's gradient by the norm of what the clip removed from it:

    w_k  = exp( mean over the tokens of turn k of (logp - logp_old) )
    g    = gradient of  mean over rows of mean over tokens of min(w A, clip(w, 1 - eps, 1 + eps) A)
    C    = gradient of  mean over rows of mean over tokens of w A  where the clip removed it,   both through w
    policy's step along  g / max(|C|, c0),   the critic's as it is

arXiv 2511.20718, read in reviews and a note: the division (their equations 7 and 8), the ratio, the surrogate with token
advantages, the definition of C. Reconstructed: the floor c0 (what happens at C = 0 is not stated; 1 leaves PPO as it is until the
bias exceeds 1) and C under turn ratios. No default is stated. `level="token"` is S-PPO, `floor=None` Turn-PPO, both are PPO. A
second-hand note that subtracts C contradicts the reviews. One more forward and backward pass, for C. GAE passes over tokens of
the environment; an answer cut by the length limit is not bootstrapped. No limit on the gradient's norm is stated, and by default
there is none: the usual one of 1 clips mostly the gradients that were not divided, so that divided and undivided ones become
nearly alike (on small conversations mean norms of 0.74 and 1.52, divided or not, became 0.67 and 0.95).
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from vantage.advantages.critic import Critic
from vantage.advantages.estimators import GAE
from vantage.annotations import above, at_least
from vantage.core.component import component, extended
from vantage.core.context import Context
from vantage.core.loss import backward
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import turn_mean
from vantage.functions.ratios import log_ratio
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.metrics import Metrics
from vantage.objectives.surrogates import recorded_clip
from vantage.updates.gradient import GradientUpdate

PAPER = Paper(
    "ST-PPO: Stabilized Off-Policy Proximal Policy Optimization for Multi-Turn Agents Training",
    "Chenliang Li and Adel Elmahdy and Alex Boyd and Zhongruo Wang and Alfredo Garcia and Parminder Bhatia and"
    " Taha Kass-Hout and Cao Xiao and Mingyi Hong",
    2025,
    arxiv="2511.20718",
)
Level = Literal["turn", "token"]


@component
class TurnClip:
    """PPO's clipped surrogate on the ratio of the turn; gradient flows through `logp`.

    Attributes:
        eps: width of the clip, at least 0.
        level: "turn", or "token" for each token's own ratio.
        turn_advantage: the turn's mean advantage replaces its tokens', so that the clip decides once per turn.
    """

    eps: Annotated[float, at_least(0)] = 0.2
    level: Level = "turn"
    turn_advantage: bool = False
    wants = frozenset({"logp"})
    unit = "row"
    needs = frozenset({"turns"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        log, batch = self._terms(evaluation, batch)
        return recorded_clip(log, batch, 1 - self.eps, 1 + self.eps, None, context)

    def removed(self, evaluation: Evaluation, batch: Trajectories) -> Tensor:
        """Return the unclipped loss [N, T] of the decisions whose gradient the clip removes, 0 elsewhere."""
        log, batch = self._terms(evaluation, batch)
        ratio = log.exp()
        outside = torch.where(batch.advantage >= 0, ratio > 1 + self.eps, ratio < 1 - self.eps)
        return torch.where(outside, -ratio * batch.advantage, 0.0)

    def _terms(self, evaluation: Evaluation, batch: Trajectories) -> tuple[Tensor, Trajectories]:
        log = log_ratio(evaluation.logp, batch.logp_old, batch.mask)
        if self.level == "turn":
            log = turn_mean(log, batch.turn, batch.mask)
        if self.turn_advantage:
            batch = batch.replace(advantage=turn_mean(batch.advantage, batch.turn, batch.mask))
        return log, batch


@component
class _Removed:
    """The part of an objective that its clip removes, as an objective."""

    inner: TurnClip

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        return self.inner.removed(evaluation, batch)


@component
class _Divided:
    """An objective divided by a number."""

    inner: TurnClip
    by: Tensor

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        return self.inner(evaluation, batch, context) / self.by


@component
class ClippingCorrected(GradientUpdate):
    """Gradient update whose policy gradient is divided by max(|C|, floor), as in the module's text.

    The method's objective must have a method `removed`, the loss that its clip removes. |C| is recorded as `bias/norm`.

    Attributes:
        floor: c0, above 0.
    """

    floor: Annotated[float, above(0)] = 1.0

    def differentiate(self, part: Trajectories, context: Context) -> None:
        """Leave the corrected gradient in `.grad`."""
        parameters: list[torch.nn.Parameter] = self._memory["parameters"]
        whole = context.method
        norm = self._bias(part, context, parameters)
        context.record("bias/norm", norm)
        scaled = _with(context, whole.replace(objective=_Divided(whole.objective, norm.clamp(min=self.floor))))
        backward(part, scaled, self.micro_batch)

    def _bias(self, part: Trajectories, context: Context, parameters: list[torch.nn.Parameter]) -> Tensor:
        """Return |C|; the gradients are None again afterwards."""
        method = context.method.replace(objective=_Removed(context.method.objective), regularizers=(), values=None)
        silent = _with(context, method)
        silent.metrics = Metrics()
        backward(part, silent, self.micro_batch)
        found = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            parameter.grad = None
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(found)))


def _with(context: Context, method: Method) -> Any:
    """Return the same context with another method."""
    twin = copy.copy(context)
    twin.method = method
    return twin


@method(
    id="S189", papers=PAPER, needs=("episodes", "turns", "critic"), base=grpo, without=("dual",), prompts=128, group_size=1,
    beta=0.0, minibatches=4,
    source="none: reviews of the paper and a note; no public code; volcengine/verl@b178a3c verl/trainer/ppo/core_algos.py",
)  # fmt: skip
def st_ppo(
    base: Method,
    level: Level = "turn",
    floor: float | None = 1.0,
    turn_advantage: bool = False,
    eps: Annotated[float, at_least(0)] = 0.2,
    gamma: float = 1.0,
    lam: float = 0.95,
    value_coefficient: float = 0.5,
    max_grad_norm: float | None = None,
) -> Method:
    """level: of the ratio, `turn` or `token`; floor: c0, least divisor of the policy's gradient, none for no
    correction; turn_advantage: the turn's mean advantage replaces its tokens'; gamma: discount; lam:
    lambda of GAE; value_coefficient: weight of half the squared error of values; max_grad_norm: bound of what the
    correction left, none for none."""
    composed = base.replace(
        values=Critic(value_coefficient, clip=0.2),
        advantage=GAE(gamma, lam, whiten=True),
        objective=TurnClip(eps, level, turn_advantage),
        averaging="seq-mean-token-mean",
    )
    if floor is None:
        return composed
    return composed.replace(update=extended(base.update, ClippingCorrected, floor=floor))


_STALE = {"epochs": 2, "minibatches": 2}
_PPO = {**_STALE, "level": "token", "floor": None}
_NOTE = (
    "The authors: no collapse at 7 B, lower clip ratios, higher scores than token PPO. Here four steps are taken on a batch; the"
    " baseline is the same method with token ratios and without the correction, which is PPO."
)
claim = (
    Claim(
        name="accuracy",
        arena="calculator",
        against="st-ppo",
        settings=_STALE,
        against_settings=_PPO,
        note=_NOTE,
    ),
    Claim(
        name="clip",
        arena="calculator",
        against="st-ppo",
        metric="mean:clip_fraction",
        direction="lower",
        settings=_STALE,
        against_settings=_PPO,
        note=_NOTE,
    ),
)
