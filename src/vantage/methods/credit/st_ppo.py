"""ST-PPO: ratios of whole turns, and steps that shrink when clipping has taken much away. (S189)

Token PPO collapses on conversations: a token's ratio does not fit what acts, which is a turn, and on stale data the clip removes
a part of the gradient that grows as the critic errs. ST-PPO shares one ratio among the tokens of a turn, and divides the
policy's gradient by the norm of what the clip removed from it:

    w_k  = exp( mean over the tokens of turn k of (logp - logp_old) )
    g    = gradient of  mean over rows of mean over tokens of min(w A, clip(w, 1 - eps, 1 + eps) A)
    C    = gradient of  mean over rows of mean over tokens of w A  where the clip removed it,   both through w
    policy's step along  g / max(|C|, c0),   the critic's as it is

arXiv 2511.20718, read in reviews and a note: the division (their equations 7 and 8), the ratio, the surrogate with token
advantages, the definition of C. Reconstructed: the floor c0 (what happens at C = 0 is not stated; 1 leaves PPO as it is until the
bias exceeds 1) and C under turn ratios. No default is stated. `level="token"` is S-PPO, `floor=None` Turn-PPO, both are PPO. A
second-hand note that subtracts C contradicts the reviews. One more forward and backward pass, for C. GAE passes over what the
environment says; after an answer that the length limit cut nothing follows. No limit on the gradient's norm is stated, and by
default there is none: the usual one of 1 shortens most the gradients that were not divided, and what the division sets apart comes
out nearly alike (on small conversations mean norms of 0.74 and 1.52, divided or not, became 0.67 and 0.95).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vantage.advantages.critic import Critic
from vantage.advantages.estimators import GAE
from vantage.core.context import Context, Metrics
from vantage.core.errors import UserError
from vantage.core.loss import backward
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import turn_mean
from vantage.functions.ratios import log_ratio
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import recorded_clip
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam

PAPER = Paper(
    "ST-PPO: Stabilized Off-Policy Proximal Policy Optimization for Multi-Turn Agents Training",
    "Chenliang Li and Adel Elmahdy and Alex Boyd and Zhongruo Wang and Alfredo Garcia and Parminder Bhatia and"
    " Taha Kass-Hout and Cao Xiao and Mingyi Hong",
    2025,
    arxiv="2511.20718",
)


@dataclass(frozen=True)
class TurnClip:
    """PPO's clipped surrogate on the ratio of the turn; gradient flows through `logp`.

    Attributes:
        eps: width of the clip, at least 0.
        level: "turn", or "token" for each token's own ratio.
        turn_advantage: the turn's mean advantage takes the place of its tokens': one decision of the clip for a turn.
    """

    eps: float = 0.2
    level: str = "turn"
    turn_advantage: bool = False
    wants = frozenset({"logp"})
    unit = "row"

    def __post_init__(self) -> None:
        if self.level not in ("turn", "token"):
            raise UserError(f"TurnClip.level={self.level!r} is not known: turn or token")
        if not self.eps >= 0:
            raise UserError(f"TurnClip.eps={self.eps} is out of range: at least 0")

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        log, batch = self._terms(evaluation, batch)
        return recorded_clip(log, batch, 1 - self.eps, 1 + self.eps, None, context)

    def removed(self, evaluation: Evaluation, batch: Trajectories) -> Tensor:
        """Return the unclipped loss [N, T] of the decisions whose gradient the clip takes away, 0 elsewhere."""
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


@dataclass(frozen=True)
class _Removed:
    """What the clip of an objective takes away, as an objective."""

    inner: TurnClip

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        return self.inner.removed(evaluation, batch)


@dataclass(frozen=True)
class _Divided:
    """An objective divided by a number."""

    inner: TurnClip
    by: Tensor

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        return self.inner(evaluation, batch, context) / self.by


@dataclass(frozen=True)
class ClippingCorrected(GradientUpdate):
    """The ordinary update, the policy's part of whose gradient is divided by max(|C|, floor) of the page.

    The method's objective must say what its clip `removed`. |C| is recorded as `bias/norm`.

    Attributes:
        floor: c0, above 0.
    """

    floor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.floor > 0:
            raise UserError(f"ClippingCorrected.floor={self.floor} is out of range: above 0")

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
    """The same context with another method."""
    twin = copy.copy(context)
    twin.method = method
    return twin


@method(id="S189", papers=PAPER)
def st_ppo(
    prompts: int = 128,
    group_size: int = 1,
    lr: float = 1e-6,
    level: str = "turn",
    floor: float | None = 1.0,
    turn_advantage: bool = False,
    eps: float = 0.2,
    gamma: float = 1.0,
    lam: float = 0.95,
    value_coefficient: float = 0.5,
    beta: float = 0.0,
    epochs: int = 1,
    minibatches: int = 4,
    max_grad_norm: float | None = None,
    temperature: float = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """Compose ST-PPO; `floor` is c0, None for no correction. `max_grad_norm` limits what the correction left; None does not."""
    settings: dict[str, Any] = {
        "optimizer": Adam(lr),
        "epochs": epochs,
        "minibatches": minibatches,
        "max_grad_norm": max_grad_norm,
        "micro_batch": micro_batch,
    }
    return grpo(prompts, group_size, beta=beta, temperature=temperature).replace(
        values=Critic(value_coefficient, clip=0.2),
        advantage=GAE(gamma, lam, whiten=True),
        objective=TurnClip(eps, level, turn_advantage),
        averaging="seq-mean-token-mean",
        update=GradientUpdate(**settings) if floor is None else ClippingCorrected(**settings, floor=floor),
    )


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
