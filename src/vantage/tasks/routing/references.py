"""Costs of near-optimal tours of held-out instances by PyVRP, computed once and cached."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vantage.core.checkpoint import write_atomically
from vantage.core.errors import require

SCALE = 10_000
"""Factor from coordinates to the solver's whole numbers; a larger one unbalances its penalties for excess load."""
Integers = NDArray[np.int64]


def available() -> bool:
    """Whether the solver is installed (`pip install 'vantage[routing]'`)."""
    return importlib.util.find_spec("pyvrp") is not None


def iterations(nodes: int) -> int:
    """Return the solver's number of iterations: several times as many gain nothing at 20 nodes and some 0.02 % at 50."""
    return max(400, nodes * nodes // 5)


def solve(distance: Integers, demand: Integers | None = None, capacity: int = 0, *, seed: int = 0) -> list[list[int]]:
    """Return near-optimal routes by PyVRP's iterated local search (Wouda, Lan and Kool 2024), without node 0.

    Args:
        distance: [n, n] whole numbers; node 0 is the depot of a CVRP.
        demand: [n] of each node, 0 at the depot; None for a TSP.
        capacity: of each vehicle.
        seed: of the solver.

    Raises:
        ImportError: PyVRP is not installed.
    """
    require("pyvrp", "routing")
    from pyvrp import Client, Depot, Location, ProblemData, VehicleType
    from pyvrp import solve as run
    from pyvrp.stop import MaxIterations

    size = len(distance)
    vehicles = VehicleType(1) if demand is None else VehicleType(size - 1, capacity=[capacity])
    clients = [Client(i, delivery=[] if demand is None else [int(demand[i])]) for i in range(1, size)]
    distances: Any = [distance]
    durations: Any = [np.zeros_like(distance)]
    data = ProblemData([Location(0, 0)] * size, clients, [Depot(0)], [vehicles], distances, durations)
    found = run(data, MaxIterations(iterations(size)), seed=seed, collect_stats=False, display=False)
    return [[step.idx + 1 for step in route if step.is_client()] for route in found.best.routes()]


def cost(distance: NDArray[Any], routes: Sequence[Sequence[int]]) -> float:
    """Return the length of routes that begin and end at node 0, from distances [n, n]."""
    stops = np.concatenate([[0, *route] for route in routes])
    return float(distance[stops, np.roll(stops, -1)].sum())


def references(problem: str, nodes: Tensor) -> Tensor:
    """Return the cost of a near-optimal tour of each instance [B], in the unit of the coordinates.

    Results are cached in $VANTAGE_CACHE (or `vantage` in the user's cache folder), keyed by a hash of the instances.

    Args:
        problem: "tsp" or "cvrp".
        nodes: [B, n, F].

    Raises:
        ImportError: PyVRP is not installed.
    """
    path = _path(problem, nodes)
    try:
        costs = json.loads(path.read_text(encoding="utf-8"))
        if len(costs) == len(nodes):
            return torch.tensor(costs, dtype=torch.float64)
    except (OSError, ValueError):
        pass
    places = nodes[..., :2].double()
    distances = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    costs = []
    for distance, one in zip(distances, nodes.long().numpy(), strict=True):
        demand, capacity = (None, 0) if problem == "tsp" else (np.append(0, one[1:, 2]), int(one[0, 2]))
        costs.append(cost(distance, solve((distance * SCALE).round().astype(np.int64), demand, capacity)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(costs))
    return torch.tensor(costs, dtype=torch.float64)


def _path(problem: str, nodes: Tensor) -> Path:
    own = os.environ.get("VANTAGE_CACHE")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vantage"
    version = importlib.metadata.version("pyvrp") if available() else "none"
    decides = f"{problem} {list(nodes.shape)} {SCALE} {iterations(nodes.shape[1])} {version}".encode()
    digest = hashlib.sha256(decides + nodes.contiguous().numpy().tobytes()).hexdigest()[:32]
    return base / "routing" / f"{digest}.json"
