"""Magnitude pruning: the smallest weights are set to 0.

A weight's contribution is taken to be its size, |w|; no data is used. Weights are compared within each layer
("layer", as the published baselines of large models have it), within each output's row ("row") or over all layers ("global").
`kept:of` (2:4) keeps that many of each `of` neighbouring weights in a row.

Han et al., Learning both Weights and Connections for Efficient Neural Networks (arXiv 1506.02626, section 3). The share that goes
is rounded down. `prune_magnitude` of locuslab/wanda, the baseline that others take, sets all weights up to the threshold at that
place to 0, so one weight more a layer and all that equal it: `inclusive=true`. Its n:m says how many of m go; 1:4 there is
kept=3, of=4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vantage.fields.compression.masks import share
from vantage.fields.compression.network import Network
from vantage.fields.compression.scores import Scope, prune_by_score
from vantage.methods.registry import Paper, method

PAPER = Paper(
    "Learning both Weights and Connections for Efficient Neural Networks",
    "Song Han and Jeff Pool and John Tran and William J. Dally",
    2015,
    arxiv="1506.02626",
)


@dataclass(frozen=True)
class Magnitude:
    """Removes the weights with the smallest |w|; a `Pruner`."""

    scope: Scope

    def __call__(self, network: Network, sparsity: float, *, seed: int = 0) -> dict[str, float]:
        """Prune the network in place."""
        layers = network.layers()
        with torch.no_grad():
            scores = {name: network.model.get_submodule(name).weight.abs() for name in layers}  # type: ignore[operator, union-attr]
        prune_by_score(network, scores, share("sparsity", sparsity), self.scope)
        return {}


@method(papers=PAPER, source="locuslab/wanda@8e8fc87 scripts/llama_7b.sh")
def magnitude(scope: str = "layer", kept: int = 0, of: int = 0, inclusive: bool = False) -> Magnitude:
    """scope: what is compared, `layer`, `row` or `global`; kept: weights that stay of each `of`, whatever the
    requested sparsity; of: neighbours in a row, 0 for none; inclusive: the smallest weight that would stay goes too,
    with all that equal it."""
    return Magnitude(Scope(scope, kept, of, inclusive))
