"""CHITA: pruning and re-weighting many weights at once as sparse least squares on gradients. [S089]

The second-order model of the loss around the trained weights w0, with the empirical Fisher information for a Hessian, is a
regression: with the gradients of n mini-batches as the rows of X [n, p] and y = X w0, find the w with k entries that minimises

    Q(w) = 1/2 ||y - X w||^2 + (lambda n / 2) ||w - w0||^2 + (1 / B) sum_i X_i . w

(the last term only with `first_order`). X^T X is never formed. `solver`:

    "iht"     hard thresholding with an exact line search on a growing active set: support and values together (CHITA);
              with `refine` the values are then replaced by the exact minimum on that support, which never raises Q
    "bso"     the k largest |w0|, then the exact minimum on them; with `block` not 0, block by block of columns (CHITA-BSO)

`block` cuts within each layer's weights: a layer of m >= `block` weights into m // block blocks of equal size, the last with what
is left over; a smaller layer is one block. Under it a weight stays if its magnitude is strictly above the (k + 1)-th largest.

`stages` above 1 is CHITA++: the sparsity rises from s_0 to s, gradients are taken anew at each stage, around the weights of the
last, and pruned weights stay 0. At stage t = 0 .. T - 1, of T > 1,

    "poly"    s + (s_0 - s) (1 - t / (T - 1))^3          "exp"    s_0 + (s - s_0) (1 - 2^-t) / (1 - 2^-(T - 1))

`prunes` above 1 is gradual pruning: as many such rounds with training between them. Their targets rise by "poly" from
`gradual_level` to the requested sparsity; the first round begins at s_0 = `first_level`, each later one at the sparsity that the
previous one reached. After each round but the last the network is trained for `epochs`, after the last for `last_epochs`, by a new
SGD with momentum 0.9 and a rate that falls epoch by epoch from `lr` along half a cosine; after each step the pruned weights are
set to 0 again. k = floor((1 - s) p), in floating point as there (355 of 3560 at s = 0.9).

arXiv 2302.14623, sections 2 and 3. From the authors' code: the factor 1 / B, that under "iht" a zero column of X prunes its
weight, the active set of 1.5 k, and that "bso" with a first-order term chooses its support after one step along it, in each block
once more. Defaults are those of scripts/run_resnet20_grad.sh as shipped (TASK_ID 0): one stage, rate 0.1; its TASK_ID 1 is
stages=16, lr=0.05, and its `--base_level 0.3` is read by nothing: the first round begins at 0.1. Differences: that script's gradual
pruning (prunes=7, epochs=12, last_epochs=28) is not the default, as it trains the network; least squares are solved in double
precision, there in single; a pruned weight stays 0, where there it may return under "iht" or with a first-order term; and
the best new point of the active set's search is kept, where there it is lost unless a worse one ends the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Literal

import torch
from torch import Tensor

from vantage.annotations import above, at_least, below
from vantage.core.component import component
from vantage.fields.compression.masks import keep_largest, share
from vantage.fields.compression.network import Network, flat_weights, set_flat_weights, weight_names
from vantage.fields.compression.quadratic import Quadratic, active_set, refit, shifted
from vantage.fields.compression.scores import batch_losses
from vantage.fields.compression.statistics import gradient_rows
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method

PAPER = Paper(
    "Fast as CHITA: Neural Network Pruning with Combinatorial Optimization",
    "Riade Benbaki and Wenyu Chen and Xiang Meng and Hussein Hazimeh and Natalia Ponomareva and Zhe Zhao and Rahul Mazumder",
    2023,
    arxiv="2302.14623",
    venue="International Conference on Machine Learning",
)
Solver = Literal["iht", "bso"]
Rise = Literal["poly", "exp"]


@component(label="chita")
class Tuning:
    """Trains the remaining weights of a pruned network: SGD on its training rows, pruned weights held at 0; biases are trained too.

    Attributes:
        batch: rows a step, at least 1; the last batch of an epoch may have fewer.
        lr: the first epoch's rate, above 0.
        least_lr: where the rate falls to along half a cosine, one value an epoch.
        momentum, decay: of SGD.
    """

    batch: Annotated[int, at_least(1)] = 256
    lr: Annotated[float, above(0)] = 0.1
    least_lr: float = 1e-5
    momentum: float = 0.9
    decay: float = 3.751757813e-5

    def __call__(self, network: Network, epochs: int, seed: int) -> None:
        """Train in place."""
        names = weight_names(network.layers())
        kept = {name: network.model.get_parameter(name) != 0 for name in names}
        total, generator = len(network.train[0]), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(
            network.model.parameters(), self.lr, momentum=self.momentum, weight_decay=self.decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs, 1), self.least_lr)
        training = network.model.training
        network.model.train()
        for _ in range(epochs):
            for part in torch.randperm(total, generator=generator).split(self.batch):
                optimizer.zero_grad(set_to_none=True)
                network.losses(tuple(column[part] for column in network.train)).mean().backward()
                optimizer.step()
                with torch.no_grad():
                    for name, mask in kept.items():
                        network.model.get_parameter(name).mul_(mask)
            schedule.step()
        optimizer.zero_grad(set_to_none=True)
        network.model.train(training)


@component(label="chita")
class Chita:
    """Prunes and re-weights by a quadratic model of the loss; a `Pruner`. See the module's text for the settings."""

    solver: Solver
    samples: Annotated[int, at_least(1)]
    batch: Annotated[int, at_least(1)]
    ridge: float
    block: Annotated[int, at_least(0)]
    first_order: bool
    stages: Annotated[int, at_least(1)]
    schedule: Rise
    first_level: Annotated[float, at_least(0), below(1)]
    refine: bool
    limit: Annotated[int, at_least(1)]
    tolerance: float
    prunes: Annotated[int, at_least(1)] = 1
    gradual_level: Annotated[float, at_least(0), below(1)] = 0.5
    epochs: Annotated[int, at_least(0)] = 0
    last_epochs: Annotated[int, at_least(0)] = 0
    tuning: Tuning = field(default_factory=Tuning)

    def __call__(self, network: Network, sparsity: float, *, seed: int = 0) -> dict[str, float]:
        """Prune the network in place; diagnostics: `objective`, Q of the last stage, and `moved`, the distance of the weights."""
        rounds, start, objective = self.plan(sparsity), flat_weights(network), 0.0
        taken = 0
        for number, stages in enumerate(rounds):
            for level in stages:
                objective = self.prune(network, level, seed + taken)
                taken += 1
            epochs = self.epochs if number < len(rounds) - 1 else self.last_epochs
            if epochs:
                self.tuning(network, epochs, seed + number)
        return {"objective": objective, "moved": float((flat_weights(network) - start).norm())}

    def plan(self, sparsity: float) -> list[list[float]]:
        """Return the sparsity of each stage of each round.

        Raises:
            UserError: the sparsity is not in [0, 1).
        """
        targets = levels(share("sparsity", sparsity), self.gradual_level, self.prunes, "poly")
        begins = [self.first_level, *targets[:-1]]
        return [
            levels(target, first, self.stages, self.schedule) for target, first in zip(targets, begins, strict=True)
        ]

    def prune(self, network: Network, level: float, seed: int) -> float:
        """Prune in place to the share `level` of zero weights, with gradients at the present weights; return Q."""
        names = weight_names(network.layers())
        rows = gradient_rows(network.model, names, batch_losses(network, self.samples, self.batch, seed))
        weights = flat_weights(network)
        problem = Quadratic.of_gradients(
            rows.double(), weights.double(), self.ridge, 1 / self.batch if self.first_order else 0.0
        )
        sizes = [network.model.get_parameter(name).numel() for name in names]
        # As the authors count: rounded down, so that at least the share `level` goes.
        solved = self.solve(problem, int((1 - level) * len(weights)), sizes)
        set_flat_weights(network, solved.to(weights.dtype))
        return problem.value(solved)

    def solve(self, problem: Quadratic, k: int, sizes: Sequence[int] = ()) -> Tensor:
        """Return a vector of at most k entries with a low Q; `sizes` are those of the layers that it joins, one by default."""
        if self.solver == "iht":
            found = active_set(problem, problem.center, k, limit=self.limit, tolerance=self.tolerance)
            return refit(problem, found != 0) if self.refine else found
        moved = shifted(problem, problem.center, k)
        if not self.block:
            return refit(problem, keep_largest(moved.abs(), k) & (problem.center != 0))
        stays = keep_above(moved.abs(), k) & (problem.center != 0)
        solved = torch.zeros_like(problem.center)
        index = torch.arange(len(solved), device=solved.device)
        for part in index.split(blocks(sizes or [len(solved)], self.block)):
            count = int(stays[part].sum())
            if count:
                inner = problem.restrict(part)
                # A block fits its own share of y, with the weights of the other blocks unchanged.
                own = Quadratic(inner.rows, inner.rows @ inner.center, inner.center, inner.ridge, inner.linear)
                again = shifted(own, moved[part], count)
                solved[part] = refit(own, keep_largest(again.abs(), count) & (inner.center != 0))
        return solved


def keep_above(score: Tensor, k: int) -> Tensor:
    """Return the mask [p] of the scores strictly above the (k + 1)-th largest: k of them, fewer where that one has equals."""
    if k >= len(score):
        return torch.ones_like(score, dtype=torch.bool)
    return score > score.sort(descending=True).values[k]


def blocks(sizes: Sequence[int], block: int) -> list[int]:
    """Return the sizes of the blocks of layers of these sizes, none of which spans two layers."""
    found: list[int] = []
    for size in sizes:
        count = max(size // block, 1)
        found += [size // count] * (count - 1) + [size - size // count * (count - 1)]
    return found


def levels(sparsity: float, first: float, stages: int, schedule: str) -> list[float]:
    """Return the sparsity of each stage, rising from `first` to `sparsity`; a single stage has `sparsity`."""
    if stages == 1:
        return [sparsity]
    first = min(first, sparsity)
    if schedule == "poly":
        return [sparsity + (first - sparsity) * (1 - stage / (stages - 1)) ** 3 for stage in range(stages)]
    scale = 2.0 ** (stages - 1) / (2.0 ** (stages - 1) - 1)
    return [first + (sparsity - first) * scale * (1 - 0.5**stage) for stage in range(stages)]


@method(id="S089", papers=PAPER, source="mazumder-lab/CHITA@89c606d scripts/run_resnet20_grad.sh")
def chita(
    solver: Solver = "bso",
    samples: int = 500,
    batch: int = 16,
    ridge: float = 1e-4,
    block: int = 500,
    first_order: bool = False,
    stages: int = 1,
    schedule: Rise = "poly",
    first_level: float = 0.1,
    refine: bool = False,
    limit: int = 100,
    tolerance: float = 1e-7,
    prunes: int = 1,
    gradual_level: float = 0.5,
    epochs: int = 0,
    last_epochs: int = 0,
    tune_batch: Annotated[int, at_least(1)] = 256,
    lr: float = 0.1,
) -> Chita:
    """solver: `iht` finds support and values together, `bso` the values of the largest weights; samples:
    mini-batches, n; batch: rows of each, B; ridge: lambda; block: weights of a layer solved together under bso, 0 for all;
    first_order: keep the linear term; stages: of one pruning, above 1 is CHITA++; schedule: of the stages, `poly`
    or `exp`; first_level: s_0; refine: exact values on the support of iht; limit: iterations of iht; tolerance: of
    iht; prunes: rounds of gradual pruning; gradual_level: sparsity of the first round; epochs: of training after
    each round but the last; last_epochs: after the last; tune_batch: rows of a training step; lr: of that training.
    The authors' gradual pruning is prunes=7, epochs=12, last_epochs=28."""
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
        prunes,
        gradual_level,
        epochs,
        last_epochs,
        Tuning(tune_batch, lr),
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
