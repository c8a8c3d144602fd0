"""Pruning by a score per weight: the weights with the smallest scores within a scope are set to 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.core import at_least, component, one_of
from vantage.core.errors import UserError
from vantage.fields.compression.masks import keep_all_but, keep_pattern, pruned_count
from vantage.fields.compression.network import Network

_WITHIN = ("row", "layer", "global")


@component
class Scope:
    """Scope within which scores are compared.

    Attributes:
        within: "row" for the weights of one output, "layer", or "global" for all layers.
        kept, of: where `of` is not 0, `kept` of each `of` adjacent weights of a row are kept (2:4: 2, 4), instead of a
            sparsity.
        inclusive: the smallest weight that would be kept is pruned too, with all that equal it.
    """

    within: Annotated[str, one_of(_WITHIN)] = "layer"
    kept: Annotated[int, at_least(0)] = 0
    of: Annotated[int, at_least(0)] = 0
    inclusive: bool = False

    def __post_init__(self) -> None:
        if self.kept and not self.of:
            raise UserError(f"kept={self.kept} has no effect without `of`: give both, as kept=2 of=4")
        if self.of and self.kept > self.of:
            raise UserError(f"a pattern {self.kept}:{self.of} is out of range: keep 0 to {self.of} of {self.of}")


@torch.no_grad()
def prune_by_score(network: Network, scores: Mapping[str, Tensor], sparsity: float, scope: Scope) -> None:
    """Set the weights with the smallest scores to 0, in place; of equal ones the first.

    Args:
        network: changed in place.
        scores: layer's path -> scores of its weights, [outputs, inputs], further axes flattened or not.
        sparsity: share that is pruned of each row, of each layer or of all, rounded down.
        scope: scope of the comparison.
    """
    if scope.within == "global" and not scope.of:
        flat = torch.cat([score.flatten() for score in scores.values()])
        kept = keep_all_but(flat, pruned_count(len(flat), sparsity), inclusive=scope.inclusive)
        masks = list(kept.split([score.numel() for score in scores.values()]))
    else:
        masks = [_mask(score, sparsity, scope) for score in scores.values()]
    for name, mask in zip(scores, masks, strict=True):
        weight: Any = network.model.get_submodule(name).weight
        weight.masked_fill_(~mask.view(weight.shape), 0)


def _mask(score: Tensor, sparsity: float, scope: Scope) -> Tensor:
    score = score.flatten(1)
    if scope.of:
        return keep_pattern(score, scope.kept, scope.of)
    if scope.within == "layer":
        score = score.flatten()
    return keep_all_but(score, pruned_count(score.shape[-1], sparsity), inclusive=scope.inclusive)


def batch_losses(network: Network, count: int, batch: int, seed: int) -> list[Callable[[], Tensor]]:
    """Return functions that compute the mean losses of `count` mini-batches of `batch` training rows.

    Rows are sampled without replacement while there are enough, then in further passes.

    Raises:
        UserError: a number is less than 1.
    """
    if count < 1 or batch < 1:
        raise UserError(f"samples={count}, batch={batch} must be at least 1")
    total = len(network.train[0])
    generator = torch.Generator().manual_seed(seed)
    passes = -(-count * batch // total)
    order = torch.cat([torch.randperm(total, generator=generator) for _ in range(passes)])[: count * batch]

    def loss(part: Tensor) -> Tensor:
        return network.losses(tuple(column[part] for column in network.train)).mean()

    return [partial(loss, part) for part in order.split(batch)]
