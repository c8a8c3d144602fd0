"""Loss and gradient of a method on a minibatch, exact under any division into micro-batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vantage.core.averaging import averaging
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories

WEIGHTS = "_weights"
"""Column of the averaging weights [N, T] of the whole minibatch, carried by its micro-batches."""


def weighted(batch: Trajectories, how: Any) -> Trajectories:
    """Attach the averaging weights, times the column `weight` where it exists.

    The loss is 0 outside of the mask: padding may hold anything, and NaN times a gradient of 0 is NaN.
    """
    weights = averaging(how)(batch.mask, batch.get("group")).float()
    extra = batch.get("weight")
    if extra is not None:
        weights = weights * (extra.unsqueeze(-1) if extra.dim() == 1 else extra)
    inside = {}
    if batch.steps > 1:  # rows of one decision have no padding
        read = [name for name in batch if name.startswith("logp") or name in ("advantage", "returns", "value")]
        inside = {name: torch.where(batch.mask, batch[name], 0.0) for name in read}
    return batch.replace(**inside, **{WEIGHTS: weights})


def reduce(loss: Tensor, batch: Trajectories, whole: Trajectories, part: Any) -> tuple[Tensor, float]:
    """Return a loss averaged over the minibatch `whole`, of which `batch` is a slice, and the slice's share of the mean.

    [N, T]: by the weights of the averaging. [N]: mean over the minibatch's rows. [M] (groups): mean over the distinct values
    of the minibatch's column `part.key`. Scalar: taken as it is, and only on a whole minibatch.

    Raises:
        UserError: the shape is another one, or it is [M] on a part of a minibatch and `part` declares no `key`.
    """
    share, key, name = len(batch) / len(whole), getattr(part, "key", ""), getattr(part, "__name__", type(part).__name__)
    if loss.dim() == 2:
        return _by_weights(loss, batch[WEIGHTS]), share
    if loss.dim() == 1:
        extra = batch.get("weight")
        if extra is not None and extra.dim() == 1 and loss.shape == extra.shape:
            loss = loss * extra
        if key and batch is not whole:
            # Groups may have unequal numbers of rows: a micro-batch's share of the groups is not its share of the rows.
            share = len(loss) / len(torch.unique(whole[key]))
        elif not key and batch is not whole and len(loss) != len(batch):
            raise UserError(
                f"{name} returned {len(loss)} losses for {len(batch)} rows: a loss per group must declare the column whose values"
                ' identify the groups, such as key = "group"'
            )
        return loss.mean() * share, share
    if loss.dim() == 0:
        return loss * share, share
    raise UserError(f"{name} returned a loss of shape {list(loss.shape)}; it must be [N, T], [N], [M] or a scalar")


def _by_weights(loss: Tensor, weights: Tensor) -> Tensor:
    if weights.shape[1] > 1:
        # Padding may hold anything, infinities too, which a product with zero would turn into NaN.
        loss = torch.where(weights != 0, loss, 0.0)
    return (loss * weights).sum()


def _within(evaluation: Evaluation, mask: Tensor) -> Evaluation:
    """Return the outputs per decision, 0 outside of the mask, so that no gradient flows to other positions."""
    if mask.shape[1] == 1:
        return evaluation
    held = copy.copy(evaluation)
    for name in ("logp", "entropy", "value"):
        if evaluation.has(name):
            setattr(held, name, torch.where(mask, getattr(evaluation, name), 0.0))
    return held


def method_loss(evaluation: Evaluation, batch: Trajectories, context: Context, whole: Trajectories) -> Tensor:
    """Sum the terms of the context's method on (a slice of) the minibatch `whole`: a scalar with gradient.

    Terms per decision are added before they are averaged, so that one product and one sum carry gradient.
    """
    method = context.method
    evaluation = _within(evaluation, batch.mask)
    terms = [("loss/policy", method.objective(evaluation, batch, context), method.objective)]
    for part in method.regularizers:
        label = getattr(part, "label", type(part).__name__.lower())
        terms.append((f"loss/{label}", part(evaluation, batch, context), part))
    critic = method.values
    if critic is not None and hasattr(critic, "loss"):
        terms.append(("loss/value", critic.loss(evaluation, batch, context), critic))
    together: Tensor | None = None
    apart: list[Tensor] = []
    for label, term, part in terms:
        reduced, share = reduce(term.detach() if term.dim() == 2 else term, batch, whole, part)
        context.record_total(label, reduced, share)
        if term.dim() == 2:
            together = term if together is None else together + term
        else:
            apart.append(reduced)
    if together is not None:
        apart.append(_by_weights(together, batch[WEIGHTS]))
    return apart[0] if len(apart) == 1 else torch.stack(apart).sum()


def micro_batches(batch: Trajectories, size: int | None, whole_groups: bool) -> Sequence[Trajectories]:
    """Split a minibatch into slices of at most `size` rows; groups stay whole where asked (one group is never cut)."""
    rows = len(batch)
    if size is None or size >= rows:
        return [batch]
    if not whole_groups:
        return [batch[start : start + size] for start in range(0, rows, size)]
    order, bounds = _group_bounds(batch.group)
    parts: list[Tensor] = []
    start = 0
    for begin, end in bounds:
        if end - start > size and begin > start:
            parts.append(order[start:begin])
            start = begin
    parts.append(order[start:])
    return [batch.select(part) for part in parts]


def _group_bounds(group: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    _, index = torch.unique(group, return_inverse=True)
    order = torch.argsort(index, stable=True)
    ends = torch.bincount(index).cumsum(0).tolist()
    return order, list(zip([0, *ends[:-1]], ends, strict=True))


def backward(batch: Trajectories, context: Context, micro_size: int | None) -> Evaluation:
    """Accumulate the gradient of the method's loss over a minibatch into the policy's parameters.

    A loss per decision or row is a sum, so micro-batches are differentiated one by one. A loss that joins a whole batch
    (a constraint on its mean, a product over it) is differentiated in two passes: the policy's outputs are gathered without
    gradient, the loss is differentiated with respect to them, and a second pass carries that into the parameters. Both
    are the gradient of the whole minibatch up to rounding, whatever `micro_size`.

    Returns:
        The evaluation of the last micro-batch, for statistics.
    """
    method = context.method
    wants = method.wants
    batch = weighted(batch, method.averaging)
    joined = method.units[-1]
    parts = micro_batches(batch, micro_size, joined == "group")
    if joined == "batch" and len(parts) > 1:
        return _two_passes(batch, parts, wants, context)
    evaluation = Evaluation()
    for part in parts:
        evaluation = context.policy.evaluate(part, wants)
        method_loss(evaluation, part, context, batch).backward()
    return evaluation


def _two_passes(
    batch: Trajectories, parts: Sequence[Trajectories], wants: frozenset[str], context: Context
) -> Evaluation:
    with torch.no_grad():
        gathered = [dict(_outputs(context.policy.evaluate(part, wants))) for part in parts]
    leaves = {name: torch.cat([part[name] for part in gathered]).requires_grad_() for name in gathered[0]}
    method_loss(_evaluation(leaves), batch, context, batch).backward()
    start = 0
    evaluation = Evaluation()
    for part in parts:
        evaluation = context.policy.evaluate(part, wants)
        end = start + len(part)
        outputs = [(value, leaves[name].grad) for name, value in _outputs(evaluation)]
        live = [(value, grad[start:end]) for value, grad in outputs if grad is not None and value.requires_grad]
        torch.autograd.backward([value for value, _ in live], [grad for _, grad in live])
        start = end
    return evaluation


def _outputs(evaluation: Evaluation) -> Iterator[tuple[str, Tensor]]:
    for name in ("logp", "entropy", "value", "hidden", "distribution"):
        if evaluation.has(name):
            output = getattr(evaluation, name)
            if not isinstance(output, Tensor):
                raise UserError(
                    f"{name!r} is no tensor, so a loss over the whole batch cannot be cut: leave micro_batch unset"
                )
            yield name, output
    for name, output in evaluation.extras.items():
        yield f"extras.{name}", output


def _evaluation(outputs: dict[str, Tensor]) -> Evaluation:
    plain: dict[str, Any] = {name: value for name, value in outputs.items() if not name.startswith("extras.")}
    extras = {name.removeprefix("extras."): value for name, value in outputs.items() if name.startswith("extras.")}
    return Evaluation(**plain, extras=extras)
