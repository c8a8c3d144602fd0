"""OBLR-PO: policy gradient with the baseline and step size that are optimal for its variance. (S210)

Written as an unbiased estimator with a known variance, the group policy gradient has a best baseline, the mean score weighted
by squared gradient norms, and a best step size, proportional to signal / (signal + noise). Both are computed each step:

    A_i   = R_i - sum_{j != i} |S_j|^2 R_j / sum_{j != i} |S_j|^2           S_i = gradient of logp of row i, within the group
    |S_i|^2 ~ sum_t |onehot(y_t) - pi_t|^2 = sum_t (1 - 2 pi_t(y_t) + sum_v pi_t(v)^2)       (gradient in the logits)
    loss  = -(1 / n) sum_i A_i logp_i
    M parts with gradients g_m of mean g:  noise = sum_m |g_m - g|^2 / (M (M - 1)),   signal = max(|g|^2 - noise, 0)
    s, v  = running means of signal and noise;     step size = lr * max(s / (s + v), floor)

arXiv 2511.23310, reconstructed from its abstract (the estimator, its variance, the rate governed by signal to noise, the
gradient-weighted baseline), as no code of the authors is public; the baseline is the classical one, the estimators and constants
of the step size are ours. `lr` stands for 1 / L. `leave_one_out=False` takes the group's own weighted mean, which is biased: it
is what verl's optimal token baseline has at the last token of rows of one length, with the same |S|^2. Parts keep their groups
whole, so a minibatch of one group is one part and gives no estimate of the noise: its step has the rate of the running means so
far (lr before there are any), and `gradient/unmeasured` counts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.advantages.groups import record_groups
from vantage.annotations import at_least, below, between
from vantage.core.component import component, extended
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.loss import backward
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_lowest, group_moments, group_sums, leave_one_out_mean
from vantage.functions.rows import per_decision
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import PolicyGradient
from vantage.updates.gradient import GradientUpdate, minibatches

PAPER = Paper(
    "OBLR-PO: A Theoretical Framework for Stable Reinforcement Learning",
    "Zixun Huang and Jiayi Sheng and Zeyu Zheng",
    2025,
    arxiv="2511.23310",
)


def weighted_baseline(score: Tensor, weight: Tensor, group: Tensor, leave_one_out: bool = True) -> Tensor:
    """Return the weighted mean score of each row's group, without the row itself where `leave_one_out`; all [N].

    Where the weights of the others are all 0 it is their plain mean; a group of one has 0.
    """
    weight = weight.masked_fill(torch.isnan(score), 0.0)
    low = group_lowest(score, group)  # measured from it, equal scores have exactly their value as baseline
    above = score - low
    total, _ = group_sums(weight, group)
    scored, _ = group_sums(weight * above, group)
    if not leave_one_out:
        return low + scored / total.clamp(min=1e-12)
    others = total - weight
    plain = leave_one_out_mean(score, group)
    empty = others <= 1e-6 * total
    rest = scored - torch.nan_to_num(weight * above, nan=0.0)
    return torch.where(empty, plain, low + rest / others.masked_fill(empty, 1.0))


@component
class NormWeighted:
    """Advantage: score less the norm-weighted baseline of the page; no gradient. One more forward pass, for sum_v pi^2.

    That pass holds the probabilities [rows, T, V] of as many rows at once as the update differentiates (its `micro_batch`).

    Attributes:
        leave_one_out: leave the row out of its own baseline.
    """

    leave_one_out: bool = True

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        """Return the advantage [N, T]."""
        score = batch.score.float()
        norm = self.squared_norms(batch, context)
        baseline = weighted_baseline(score, norm, batch.group, self.leave_one_out)
        record_groups(group_moments(score, batch.group)[1], batch.group, context)
        context.record("baseline/norm", norm.mean())
        return per_decision(score - baseline, batch.mask)

    def squared_norms(self, batch: Trajectories, context: Context) -> Tensor:
        """Return |S|^2 of each row [N] in the logits of its decisions."""
        collision = context.evaluate(
            batch, "distribution", read=lambda found, _: _logits(found).float().softmax(-1).square().sum(-1)
        )
        squares = 1 - 2 * batch.logp_old.float().exp() + collision
        return torch.where(batch.mask, squares, 0.0).sum(-1)


@component
class SignalToNoise(GradientUpdate):
    """Gradient update whose learning rate is scaled in each step by s / (s + v) of the page.

    Attributes:
        pieces: M, at least 2; groups stay whole.
        decay: of the running means, 0 to below 1.
        floor: least factor on the learning rate, 0 to 1.
    """

    pieces: Annotated[int, at_least(2)] = 4
    decay: Annotated[float, at_least(0), below(1)] = 0.9
    floor: Annotated[float, between(0, 1)] = 0.05
    needs = frozenset({"logits"})

    def differentiate(self, part: Trajectories, context: Context) -> None:
        """Leave the mean of the parts' gradients in `.grad`, and set this step's learning rate by their spread."""
        parameters: list[torch.nn.Parameter] = self._memory["parameters"]
        mean = [torch.zeros_like(parameter) for parameter in parameters]
        squares = torch.zeros((), device=mean[0].device)
        count = 0
        for piece in minibatches(part, self.pieces, "group", context.generator):
            for parameter in parameters:
                parameter.grad = None
            backward(piece, context, self.micro_batch)
            share = len(piece) / len(part)
            gradient = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
            squares += share * _square(gradient)
            torch._foreach_add_(mean, gradient, alpha=share)
            count += 1
        for parameter, gradient_ in zip(parameters, mean, strict=True):
            parameter.grad = gradient_
        if count > 1:
            self._scale(_square(mean), squares, count, context)
        else:
            context.record("gradient/unmeasured", 1.0)
            self._set_rate(context)

    def _scale(self, square: Tensor, squares: Tensor, count: int, context: Context) -> None:
        # With equal parts, mean_m |g_m|^2 - |g|^2 is (1 / M) sum_m |g_m - g|^2.
        noise = ((squares - square) / (count - 1)).clamp(min=0)
        signal = (square - noise).clamp(min=0)
        for name, value in (("signal", signal), ("noise", noise)):
            held = self._memory.get(name)
            self._memory[name] = (
                value if held is None else self.decay * held.to(value.device) + (1 - self.decay) * value
            )
            context.record(f"gradient/{name}", value)
        self._set_rate(context)

    def _set_rate(self, context: Context) -> None:
        """Scale the learning rate by the running means; unscaled before the first measurement."""
        if "signal" not in self._memory:
            return
        total = self._memory["signal"] + self._memory["noise"]
        ratio = float(torch.where(total > 0, self._memory["signal"] / total, 1.0).clamp(min=self.floor))
        context.record("lr/signal_to_noise", ratio)
        rate = self.optimizer.lr * self.schedule(context.step, context.total_steps) * ratio
        for group in self._memory["optimizer"].param_groups:
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state and the running means."""
        means = {name: self._memory[name] for name in ("signal", "noise") if name in self._memory}
        return {**super().state_dict(), "means": means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        super().load_state_dict(state)
        self._memory.update(state["means"])


def _square(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors)).float().square().sum()


def _logits(evaluation: Evaluation) -> Tensor:
    """Return the logits of every decision [N, T, A].

    Raises:
        UserError: the policy's distribution is not a tensor of logits.
    """
    found = evaluation.distribution
    if not isinstance(found, Tensor):
        raise UserError(
            f"oblr-po needs the logits of every decision, not a {type(found).__name__}: train a language model"
        )
    return found


@method(
    id="S210", papers=PAPER, needs=("episodes", "logits"),
    source="volcengine/verl@b178a3c examples/otb_trainer/run_qwen2_5-7b.sh",
    base=grpo, without=("eps", "beta", "dual", "epochs"), beta=0.0, group_size=8, lr=2e-6
)  # fmt: skip
def oblr_po(
    base: Method, leave_one_out: bool = True, pieces: int = 4, decay: float = 0.9, floor: float = 0.05
) -> Method:
    """lr: largest step size, about twice a rate that is known to work; leave_one_out: a row is left out of its
    own baseline; pieces: M, parts of a minibatch whose gradients are compared; decay: of the running means of
    signal and noise; floor: least factor on the learning rate."""
    return base.replace(
        advantage=NormWeighted(leave_one_out),
        objective=PolicyGradient(),
        averaging="seq-mean-token-sum",
        update=extended(base.update, SignalToNoise, pieces=pieces, decay=decay, floor=floor),
    )


claim = Claim(
    arena="arithmetic",
    against="rloo",
    direction="no worse",
    margin=0.03,
    settings={"lr": 6e-4},
    against_settings={"beta": 0.0},
    note="The largest step size is twice the baseline's rate; the authors report consistent gains without a figure.",
)
