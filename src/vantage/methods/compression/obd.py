"""Optimal Brain Damage: prunes the weights whose removal costs least by a diagonal second-order model of the loss.

    saliency_i = 1/2 F_ii w_i^2,      F_ii = mean over mini-batches of (d loss / d w_i)^2

The Hessian's diagonal is taken to be that of the empirical Fisher information, as the baselines of second-order pruning do;
the kept weights are not changed. LeCun, Denker and Solla, Optimal Brain Damage (NIPS 1989), equation 5. `FisherPruner` of
IST-DASLab/WoodFisher has the same saliency plus 1e-4, from 8000 single rows, compared within each module (`scope=layer`), and
rounds the share to the nearest weight. Here the saliencies of all layers are compared, with as many gradients as CHITA takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.fields.compression.masks import share
from vantage.fields.compression.network import Network, weight_names
from vantage.fields.compression.scores import Scope, batch_losses, prune_by_score
from vantage.fields.compression.statistics import fisher_diagonal
from vantage.methods.registry import Paper, method

PAPER = Paper("Optimal Brain Damage", "Yann LeCun and John S. Denker and Sara A. Solla", 1989, venue="NIPS 2")


@dataclass(frozen=True)
class BrainDamage:
    """Removes the weights with the smallest 1/2 F_ii w_i^2; a `Pruner`."""

    samples: int
    batch: int
    scope: Scope

    def __call__(self, network: Network, sparsity: float, *, seed: int = 0) -> dict[str, float]:
        """Prune the network in place by the gradients of `samples` mini-batches."""
        share("sparsity", sparsity)
        prune_by_score(network, self.scores(network, seed), sparsity, self.scope)
        return {}

    def scores(self, network: Network, seed: int) -> dict[str, Tensor]:
        """Return 1/2 F_ii w_i^2 of each weight by its layer's path, in the weight's shape, float32."""
        layers = network.layers()
        names = weight_names(layers)
        fisher = fisher_diagonal(network.model, names, batch_losses(network, self.samples, self.batch, seed))
        with torch.no_grad():
            return {
                layer: fisher[name] * network.model.get_parameter(name).float().square() / 2
                for layer, name in zip(layers, names, strict=True)
            }


@method(papers=PAPER, source="IST-DASLab/WoodFisher@d4b1a96 scripts/sweep_mlpnet_oneshot.sh")
def obd(samples: int = 500, batch: int = 1, scope: str = "global") -> BrainDamage:
    """samples: mini-batches of the Fisher diagonal; batch: rows of each; scope: what is compared, `layer`, `row` or
    `global`."""
    return BrainDamage(samples, batch, Scope(scope))
