"""Routing tasks: random instances or TSPLIB files, with their policy, engine and evaluation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import UserError, nearest
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.routing import RoutingPolicy
from vantage.policies.routing_rules import check_problem
from vantage.rollouts.routing import RoutingEngine
from vantage.settings import read_settings
from vantage.tasks.routing import instances, references, tsplib
from vantage.tasks.routing.evaluation import best_costs, contributions, solve_instance, wins

_POLICY_OPTIONS = ("width", "layers", "heads", "feedforward", "agents")
_REFERENCES = ("auto", "pyvrp", None)


class RoutingTask:
    """Travelling salesman (`tsp`) or capacitated vehicle routing (`cvrp`). Prompts are numbers of instances, without limit.

    Args:
        problem: "tsp" or "cvrp".
        nodes: nodes of an instance (TSP) or customers (CVRP).
        capacity: vehicle capacity, in units of which a customer demands 1 to 9; None for the literature's.
        held_out: number of instances of an evaluation; always the same ones, from a separate stream.
        data_seed: seed of the instances.
        symmetric: also build greedy tours of the 8 symmetries of each held-out instance.
        reference: reference of the gap: "pyvrp", None for no gap, or "auto": PyVRP's tours where it is installed.
        file: a .tsp file of TSPLIB, or a folder of them, instead of random held-out instances; TSP only. With one file, training
            uses that instance.
        optimum: length of the shortest tour of the file; None reads it from a file `solutions` beside it.
        **policy: options of the policy (`width`, `layers`, `heads`, `feedforward`, `agents`).

    Raises:
        UserError: an option is not known or out of range, or the file cannot be read.
    """

    size = 0
    default_steps = 1000

    def __init__(
        self,
        problem: str,
        *,
        nodes: int = 20,
        capacity: int | None = None,
        held_out: int = 128,
        data_seed: int = 0,
        symmetric: bool = False,
        reference: str | None = "auto",
        file: str = "",
        optimum: int | None = None,
        **policy: Any,
    ) -> None:
        check_problem(problem)
        for name, given, least in (("nodes", nodes, 2 if problem == "cvrp" else 3), ("held_out", held_out, 1)):
            if not isinstance(given, int) or given < least:
                raise UserError(f"{problem}: {name}={given} is out of range: a whole number, at least {least}")
        if reference not in _REFERENCES:
            raise UserError(f"{problem}: reference={reference!r} is not known (known: auto, pyvrp, none)")
        odd = [name for name in policy if name not in _POLICY_OPTIONS]
        if odd:
            known = (
                "nodes",
                "capacity",
                "held_out",
                "data_seed",
                "symmetric",
                "reference",
                "file",
                "optimum",
                *_POLICY_OPTIONS,
            )
            raise UserError(f"{problem} has no option {odd[0]!r}{nearest(odd[0], known)} (options: {', '.join(known)})")
        if capacity is not None and (problem == "tsp" or capacity < 9):
            raise UserError(f"{problem}: capacity={capacity} is out of range: at least 9, and of cvrp alone")
        if file and problem == "cvrp":
            raise UserError(f"cvrp: file={file}: TSPLIB files are read for tsp")
        self.problem = self.name = problem
        self.nodes = nodes
        self.capacity = capacity if capacity is not None or problem == "tsp" else instances.default_capacity(nodes)
        self.held_out, self.data_seed, self.symmetric, self.reference = held_out, data_seed, symmetric, reference
        self.policy_options = policy
        self.files = _files(file, optimum) if file else []

    def instances(self, ids: Tensor, stream: int) -> Tensor:
        """Return the instances with these numbers [B] of a stream: [B, n, F]."""
        if self.problem == "tsp":
            return instances.tsp(ids, self.nodes, self.data_seed, stream)
        assert self.capacity is not None
        return instances.cvrp(ids, self.nodes, self.capacity, self.data_seed, stream)

    def prompts(self, ids: Tensor) -> Prompts:
        """Return training instances; the id is the instance's number.

        Raises:
            UserError: the task is a folder of files.
        """
        if len(self.files) > 1:
            raise UserError("tsp: a folder of files is for `vantage eval`; train on random instances or on one file")
        if self.files:
            nodes = tsplib.scaled(self.files[0][0].places).expand(len(ids), -1, -1)
        else:
            nodes = self.instances(ids, instances.TRAIN)
        items: Any = nodes
        return Prompts(ids, items)

    def score(self, batch: Trajectories, context: Context) -> dict[str, Tensor]:
        """Return no rewards: they come with the decisions."""
        return {}

    def make_policy(self, model: str | Path = "", seed: int = 0, **options: Any) -> RoutingPolicy:
        """Return a new policy, or the saved one in the folder `model`.

        Raises:
            UserError: the folder holds no policy, or one for the other problem.
        """
        if model:
            policy = RoutingPolicy.load(model)
            if policy.problem != self.problem:
                raise UserError(f"the policy in {model} was made for {policy.problem}, not for {self.problem}")
            return policy
        return RoutingPolicy(self.problem, seed=seed, **{**self.policy_options, **options})

    def make_engine(self, policy: RoutingPolicy, seed: int = 0, **options: Any) -> RoutingEngine:
        """Return an engine that builds the policy's tours."""
        return RoutingEngine(policy)

    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """Evaluate a policy on the held-out instances, or on the files.

        Args:
            policy: builds the tours.
            samples: tours per start among which `best_length` is the shortest, divided among the decoders; the first of each
                decoder is greedy.
            seed: seed of the sampled tours.

        Returns:
            Means over the instances: `length`, of the shortest greedy tour over all starts (and decoders); `best_length`, of the
            shortest of `samples` from each start. With references, `gap` and `best_gap`: excess over them in per cent. Of a
            population also the smallest share of instances that an agent wins (`least_share`), and the smallest contribution.
            For files, `length/NAME` and `gap/NAME` of each, over all starts and 8 symmetries.
        """
        if self.files:
            return self._evaluate_files(policy)
        nodes = self.instances(torch.arange(self.held_out), instances.HELD_OUT)
        generator = torch.Generator(policy.device).manual_seed(seed)
        rounds = math.ceil(samples / policy.agents)
        with torch.no_grad():
            greedy, best = best_costs(policy, nodes, rounds=rounds, symmetric=self.symmetric, generator=generator)
        metrics: dict[str, float] = {}
        reference = None
        if self.reference == "pyvrp" or (self.reference == "auto" and references.available()):
            reference = references.references(self.problem, nodes)
        for name, costs in (("", greedy), ("best_", best)):
            length = costs.amin(1).cpu().double()
            metrics[f"{name}length"] = float(length.mean())
            if reference is not None:
                metrics[f"{name}gap"] = float(100 * (length / reference - 1).mean())
        if policy.agents > 1:
            metrics["least_share"] = float(wins(best).amin())
            metrics["least_contribution"] = float(contributions(best).amin())
        return metrics

    def _evaluate_files(self, policy: RoutingPolicy) -> dict[str, float]:
        metrics: dict[str, float] = {}
        gaps = []
        with torch.no_grad():
            for instance, optimum in self.files:
                length = solve_instance(policy, instance)
                metrics[f"length/{instance.name}"] = float(length)
                if optimum is not None:
                    metrics[f"optimum/{instance.name}"] = float(optimum)
                    metrics[f"gap/{instance.name}"] = 100 * (length / optimum - 1)
                    gaps.append(metrics[f"gap/{instance.name}"])
        if gaps:
            metrics["gap"] = sum(gaps) / len(gaps)
        return metrics


def _files(file: str, optimum: int | None) -> list[tuple[tsplib.Instance, int | None]]:
    """Read a file, or those of a folder that have coordinates, each with its published optimum."""
    path = Path(file)
    if not path.is_dir():
        return [(tsplib.read(path), optimum if optimum is not None else tsplib.published(path))]
    found: list[tuple[tsplib.Instance, int | None]] = []
    for each in sorted(path.glob("*.tsp")):
        try:
            found.append((tsplib.read(each), tsplib.published(each)))
        except UserError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
    if not found:
        raise UserError(f"tsp: file={file}: the folder holds no .tsp file that can be read")
    return found


def task_from_spec(spec: str, options: Mapping[str, Any] | None = None) -> RoutingTask:
    """Return the task of `tsp`, `tsp:nodes=50`, `cvrp:nodes=20,held_out=64` or `tsp:file=PATH`.

    Raises:
        UserError: an option is not known or out of range.
    """
    name, _, rest = spec.partition(":")
    return RoutingTask(name, **{**dict(options or {}), **read_settings(rest, f"task {spec}")})
