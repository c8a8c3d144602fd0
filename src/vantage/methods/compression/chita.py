"""CHITA: pruning and re-weighting many weights at once as sparse least squares on gradients. [S089]

The second-order model of the loss around the trained weights w0, with the empirical Fisher information for a Hessian, is a
regression: with the gradients of n mini-batches as the rows of X [n, p] and y = X w0, find the w with k entries that minimises

    Q(w) = 1/2 ||y - X w||^2 + (lambda n / 2) ||w - w0||^2 + (1 / B) sum_i X_i . w

(the last term only with `first_order`). X^T X is never formed. `solver`:

    "iht"     hard thresholding with an exact line search on a growing active set: support and values together (CHITA);
              with `refine` the values are then replaced by the exact minimum on that support, which never raises Q
    "bso"     the k largest |w0|, then the exact minimum on them; with `block` not 0, block by block of columns (CHITA-BSO)

`stages` above 1 is CHITA++: the sparsity rises stage by stage, "poly" (the cubic schedule) or "exp", gradients are taken anew at
each stage, and what is pruned stays out. Fine-tuning between the stages is the caller's affair.

arXiv 2302.14623, sections 2 and 3. Read in the authors' code: the factor 1 / B, that a column of X that is 0 takes its weight
out under "iht", the active set of 1.5 k, and that "bso" with a first-order term chooses its support after one step along it.
There the best new point of the active set's search is lost unless a worse one ends the search; here it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.tasks.compression.masks import keep_largest, pruned_count, share
from vantage.tasks.compression.network import Network, flat_weights, set_flat_weights, weight_names
from vantage.tasks.compression.quadratic import Quadratic, active_set, refit, shifted
from vantage.tasks.compression.scores import batch_losses
from vantage.tasks.compression.statistics import gradient_rows

PAPER = Paper(
    "Fast as CHITA: Neural Network Pruning with Combinatorial Optimization",
    "Riade Benbaki and Wenyu Chen and Xiang Meng and Hussein Hazimeh and Natalia Ponomareva and Zhe Zhao and Rahul Mazumder",
    2023,
    arxiv="2302.14623",
    venue="International Conference on Machine Learning",
)


@dataclass(frozen=True)
class Chita:
    """Prunes and re-weights by a quadratic model of the loss; a `Pruner`. See the module's text for the settings."""

    solver: str
    samples: int
    batch: int
    ridge: float
    block: int
    first_order: bool
    stages: int
    schedule: str
    first_level: float
    refine: bool
    limit: int
    tolerance: float

    def __post_init__(self) -> None:
        if self.solver not in ("iht", "bso"):
            raise UserError(f"chita.solver={self.solver!r} is not known: 'iht' or 'bso'")
        if self.schedule not in ("poly", "exp"):
            raise UserError(f"chita.schedule={self.schedule!r} is not known: 'poly' or 'exp'")
        if self.stages < 1 or self.block < 0 or self.limit < 1:
            raise UserError(
                f"chita: stages={self.stages}, limit={self.limit} must be at least 1, block={self.block} at least 0"
            )
        share("chita.first_level", self.first_level)

    def __call__(self, network: Network, sparsity: float, *, seed: int = 0) -> dict[str, float]:
        """Prune the network in place; diagnostics: `objective`, Q of the last stage, and `moved`, the distance of the weights."""
        share("sparsity", sparsity)
        names = weight_names(network.layers())
        start, found = flat_weights(network), {}
        for stage, level in enumerate(levels(sparsity, self.first_level, self.stages, self.schedule)):
            rows = gradient_rows(network.model, names, batch_losses(network, self.samples, self.batch, seed + stage))
            weights = flat_weights(network)
            problem = Quadratic.of_gradients(
                rows.double(), weights.double(), self.ridge, 1 / self.batch if self.first_order else 0.0
            )
            solved = self.solve(problem, len(weights) - pruned_count(len(weights), level))
            set_flat_weights(network, solved.to(weights.dtype))
            found = {"objective": problem.value(solved), "moved": float((flat_weights(network) - start).norm())}
        return found

    def solve(self, problem: Quadratic, k: int) -> Tensor:
        """Return a vector of at most k entries with a low Q."""
        if self.solver == "iht":
            found = active_set(problem, problem.center, k, limit=self.limit, tolerance=self.tolerance)
            return refit(problem, found != 0) if self.refine else found
        support = keep_largest(shifted(problem, problem.center, k).abs(), k) & (problem.center != 0)
        if not self.block:
            return refit(problem, support)
        solved = torch.zeros_like(problem.center)
        for part in torch.arange(len(solved), device=solved.device).split(self.block):
            if support[part].any():
                inner = problem.restrict(part)
                # A block explains its own share of y, as if the others stayed at their weights.
                own = Quadratic(inner.rows, inner.rows @ inner.center, inner.center, inner.ridge, inner.linear)
                solved[part] = refit(own, support[part])
        return solved


def levels(sparsity: float, first: float, stages: int, schedule: str) -> list[float]:
    """Return the sparsity of each stage, rising from `first` to `sparsity`; one stage goes there at once."""
    if stages == 1:
        return [sparsity]
    first = min(first, sparsity)
    if schedule == "poly":
        return [sparsity + (first - sparsity) * (1 - stage / (stages - 1)) ** 3 for stage in range(stages)]
    scale = 2.0 ** (stages - 1) / (2.0 ** (stages - 1) - 1)
    return [first + (sparsity - first) * scale * (1 - 0.5**stage) for stage in range(stages)]


@method(id="S089", family="compression", papers=PAPER)
def chita(
    solver: str = "bso",
    samples: int = 500,
    batch: int = 16,
    ridge: float = 1e-4,
    block: int = 500,
    first_order: bool = False,
    stages: int = 16,
    schedule: str = "poly",
    first_level: float = 0.3,
    refine: bool = False,
    limit: int = 100,
    tolerance: float = 1e-7,
) -> Chita:
    """Compose CHITA; the defaults are those of the authors' gradual ResNet-20 runs (blocks of 500, 16 stages)."""
    return Chita(
        solver,
        samples,
        batch,
        ridge,
        block,
        first_order,
        stages,
        schedule,
        first_level,
        refine,
        limit,
        tolerance,
    )


_ONE_SHOT = {"solver": "iht", "batch": 1, "block": 0, "stages": 1}
claim = (
    Claim(
        arena="prune-digits",
        against="magnitude",
        settings=_ONE_SHOT,
        against_settings={"scope": "global"},
        name="magnitude",
        note="The authors: with 2 % of the weights of MLPNet kept, accuracy 63 % above the state of the art, relatively.",
    ),
    Claim(
        arena="prune-digits",
        against="obd",
        settings=_ONE_SHOT,
        name="obd",
        note="The same Fisher information, its diagonal alone and without new values.",
    ),
)
