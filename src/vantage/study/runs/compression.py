"""Compression in a study: one pruner, one network, one sparsity; the score is what the pruned network still can.

An arena names `vantage.study.runs.compression:run` as its function. Options: `network` ("digits" or "text"), `sparsity`, and what
the network's own function takes (`hidden`, `data`, `model`, `length`, ...); the run's seed is the network's, so that five
seeds are five networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from vantage.core.errors import UserError, unknown
from vantage.fields.compression.digits import digits
from vantage.fields.compression.masks import keep_largest, pruned_count, share
from vantage.fields.compression.network import Network, flat_weights, set_flat_weights, weight_sparsity
from vantage.fields.compression.text import text

if TYPE_CHECKING:
    from vantage.study.jobs import Job, Reporter

NETWORKS: dict[str, Callable[..., Network]] = {"digits": digits, "text": text}


def run(job: Job, report: Reporter) -> float:
    """Prune the arena's network by the job's method; return its figure on held-out rows.

    The curve begins with random weights taken out, as many as the method takes.

    Raises:
        UserError: the network, an option or a setting is not known, or the method left more weights than it may.
    """
    from vantage.methods import registry

    torch.set_num_threads(1)
    options: dict[str, Any] = dict(job.arena.options)
    sparsity = share("options.sparsity", float(options.pop("sparsity", 0.5)))
    name = str(options.pop("network", "digits"))
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS, f"arena {job.arena.name!r}: options")
    pruner = registry.page(job.method).make(job.settings)
    if not callable(pruner):
        raise UserError(f"{job.method} does not prune by formula: an arena with a task runs it")
    network: Network = NETWORKS[name](seed=job.seed, **options)
    dense = network.evaluate()
    if job.arena.scoring.metric not in dense:
        raise UserError(f"scoring.metric={job.arena.scoring.metric!r} is none of {', '.join(dense)}")
    report.record(0, {f"dense/{key}": value for key, value in dense.items()})
    report.point(0, random_weights(network.copy(), sparsity, job.seed).evaluate()[job.arena.scoring.metric])
    torch.manual_seed(job.seed)
    told = pruner(network, sparsity, seed=job.seed)
    reached = weight_sparsity(network)
    # Rounded down in each row of a layer, a share may fall short by almost one weight a row.
    if reached < sparsity - 0.05:
        raise UserError(f"{job.method} left {1 - reached:.3f} of the weights; the arena allows {1 - sparsity:.3f}")
    metrics = network.evaluate()
    size = network.size()
    report.record(
        job.arena.budget.size,
        {**told, **metrics, "sparsity": reached, "operations": size.operations / size.dense_operations},
    )
    score = metrics[job.arena.scoring.metric]
    report.point(job.arena.budget.size, score)
    return score


def random_weights(network: Network, sparsity: float, seed: int) -> Network:
    """Take random weights out, in place, and return the network."""
    flat = flat_weights(network)
    score = torch.rand(len(flat), generator=torch.Generator().manual_seed(seed)).to(flat.device)
    kept = keep_largest(score, len(flat) - pruned_count(len(flat), sparsity))
    set_flat_weights(network, torch.where(kept, flat, 0.0))
    return network
