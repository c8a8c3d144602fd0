"""Rollouts of routing policies: tours of all instances, starts and decoders at once, one node at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.core import above, at_least, component
from vantage.core.context import Context
from vantage.core.costs import Cost, episodes
from vantage.core.errors import UserError
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.routing import RoutingPolicy
from vantage.policies.routing_rules import Situation, Tours, edges, start_nodes
from vantage.rollouts.plans import Groups, set_temperature

BELOW_ONE = 1 - 2.0**-20


@component
class MultiStart:
    """Rollout of tours from `starts` first nodes of each of `prompts` instances (POMO, arXiv 2010.16011).

    The first decision is forced: it is in the row but outside its mask. Starts are the first nodes, customers where there is a
    depot. A population builds each of them with every decoder.

    Attributes:
        prompts: instances a step, at least 1.
        starts: tours per instance, 0 for one from every possible start.
        temperature: divides the logits, above 0, in sampling and in the update.
    """

    prompts: Annotated[int, at_least(1)] = 64
    starts: Annotated[int, at_least(0)] = 0
    temperature: Annotated[float, above(0)] = 1.0
    needs = frozenset({"tours"})

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step, with one decoder; unknown where the instance determines the number of tours."""
        return episodes(self.prompts * self.starts, episode) if self.starts else Cost()

    def prepare(self, context: Context) -> None:
        """Set the temperature of the policy.

        Raises:
            UserError: the task has no tours.
        """
        if not hasattr(context.engine, "starts"):
            raise UserError(
                f"{type(self).__name__} builds tours: it needs a routing task, for example --task tsp:nodes=20"
            )
        set_temperature(context, self.temperature)

    def __call__(self, context: Context) -> Trajectories:
        """Build the next tours."""
        return self.build(context, None)

    def build(self, context: Context, agents: int | None) -> Trajectories:
        """Build tours of the next instances with the first `agents` decoders (all when None)."""
        engine: Any = context.engine
        prompts = context.next_prompts(self.prompts)
        decoders = agents or int(getattr(context.policy, "agents", 1))
        starts = self.starts or engine.starts(prompts)
        return engine.sample(prompts, starts * decoders, context, forced=True, agents=decoders)


@dataclass(frozen=True)
class Built:
    """Tours of C pairs of an instance and a decoder, R of each.

    Attributes:
        action: [C, R, T] nodes; a CVRP tour that is shorter than the longest is padded with the depot.
        length: number of decisions of each tour [C, R].
        logp: log-probability of each decision [C, R, T]; 0 where it was forced.
        value: value of the state before it, [C, R, T]; None unless requested.
        nodes: [C, n, F].
    """

    action: Tensor
    length: Tensor
    logp: Tensor
    value: Tensor | None
    nodes: Tensor

    def costs(self, problem: str) -> Tensor:
        """Return the length [C, R] of each tour in the unit of the coordinates, closing edge included."""
        return edges(problem, self.nodes, self.action, self.length).sum(-1)


@torch.no_grad()
def construct(
    policy: RoutingPolicy,
    nodes: Tensor,
    rows: int,
    *,
    agents: int | None = None,
    forced: bool = False,
    generator: torch.Generator | None = None,
    value: bool = False,
) -> Built:
    """Build `rows` tours of each instance with each decoder; C = B * agents, an instance's decoders adjacent.

    Args:
        policy: its encoder runs once.
        nodes: [B, n, F], on the policy's device.
        rows: tours per pair.
        agents: number of decoders, the first ones; None for all.
        forced: tour r begins at the r-th possible start, instead of one that the policy chooses.
        generator: generator of the samples, on the policy's device; None takes the most likely node each time.
        value: record the policy's value of each state.
    """
    agents = agents or policy.agents
    memory = policy.remember(nodes, agents)
    cells = nodes.repeat_interleave(agents, 0) if agents > 1 else nodes
    size = nodes.shape[1]
    tours = Tours(policy.problem, cells, rows)
    finished = tours.finished()
    least = size - (1 if tours.routes else 0)
    actions: list[Tensor] = []
    logps: list[Tensor] = []
    values: list[Tensor] = []
    length = torch.zeros_like(tours.last)
    blank = torch.zeros(len(cells), rows, device=nodes.device)
    # The test whether all tours are finished synchronises with the device, so it begins when the first can be.
    while len(actions) < least or not bool(finished.all()):
        if forced and not actions:
            node = start_nodes(policy.problem, rows, size, nodes.device).expand(len(cells), rows)
            logp = read = blank
        else:
            if not policy.cached and actions:
                memory = policy.remember(nodes, agents)
            node, logp, glimpse = _choose(policy, memory, tours.situation(), generator)
            if value:
                read = policy.value_of(glimpse)
        length += ~finished
        tours.visit(node)
        actions.append(node)
        logps.append(logp)
        if value:
            values.append(read)
        finished = tours.finished()
    return Built(
        torch.stack(actions, -1), length, torch.stack(logps, -1), torch.stack(values, -1) if value else None, cells
    )


def _choose(
    policy: RoutingPolicy, memory: Any, now: Situation, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the next node [C, R], its log-probability [C, R] and the glimpse [C, R, width]."""
    logits, glimpse = policy.decide(memory, now)
    logs = logits.log_softmax(-1)
    if generator is None:
        logp, node = logs.max(-1)
        return node, logp, glimpse
    # Inverse of the cumulative distribution at a uniform number. A node of probability 0 is never chosen, and the number
    # stays below the total, so that rounding cannot lead to a node that is not allowed.
    cumulated = logs.exp().cumsum(-1)
    drawn = torch.rand(logs.shape[:-1], generator=generator, device=logs.device) * BELOW_ONE
    node = (cumulated <= (drawn * cumulated[..., -1]).unsqueeze(-1)).sum(-1)
    return node, logs.gather(-1, node.unsqueeze(-1)).squeeze(-1), glimpse


class RoutingEngine:
    """Engine that builds tours of random or given instances, as rows.

    A row is one tour: `action` the nodes, `reward` minus the edge that each decision added (with the last one the closing edge),
    `observation` [n, F] its instance, `prompt` the instance's id, `agent` the decoder, `start` its number among the decoder's
    tours of the instance, `group` the pair of instance and decoder. Rows of an instance are adjacent, ordered by decoder.
    For a method whose loss reads values the column `value` is filled too. The mean length of the tours is recorded as
    `tour/length`, that of the shortest of each instance as `tour/best`.

    Args:
        policy: gives the device.
    """

    def __init__(self, policy: RoutingPolicy) -> None:
        self.problem = policy.problem

    def starts(self, prompts: Prompts) -> int:
        """Return the number of possible first nodes of a tour of these instances."""
        return int(prompts.items[0].shape[0]) - (1 if self.problem == "cvrp" else 0)

    def sample(
        self,
        prompts: Prompts,
        count: int,
        context: Context,
        *,
        greedy: bool = False,
        forced: bool = False,
        agents: int | None = None,
    ) -> Trajectories:
        """Build `count` tours of each instance, the same number with each of the first `agents` decoders (all when None).

        Args:
            prompts: items are instances [n, F] of one size.
            count: rows per instance; a multiple of the number of decoders.
            context: gives the policy.
            greedy: take the most likely node each time.
            forced: the first node of a decoder's r-th tour is the r-th possible one, and no decision; its reward is added to
                the next decision's.
            agents: number of decoders.

        Raises:
            UserError: `count` is not a multiple of the number of decoders.
        """
        policy: Any = context.policy
        decoders = agents or policy.agents
        starts, odd = divmod(count, decoders)
        if odd or not starts:
            raise UserError(
                f"{count} tours of each instance cannot be shared evenly among {decoders} decoders: take a multiple"
            )
        items: Any = prompts.items
        nodes = (items if isinstance(items, Tensor) else torch.stack(tuple(items))).to(policy.device)
        generator = None
        if not greedy:
            seed = int(torch.randint(2**62, (), generator=context.generator))
            generator = torch.Generator(policy.device).manual_seed(seed)
        built = construct(
            policy, nodes, starts, agents=decoders, forced=forced, generator=generator, value="value" in context.method.wants
        )  # fmt: skip
        return self._rows(built, prompts, decoders, starts, forced, context)

    def _rows(
        self, built: Built, prompts: Prompts, decoders: int, starts: int, forced: bool, context: Context
    ) -> Trajectories:
        count, device = len(prompts), built.action.device
        rows, steps = count * decoders * starts, built.action.shape[-1]
        reward = -edges(self.problem, built.nodes, built.action, built.length)
        cost = -reward.sum(-1)
        context.record("tour/length", cost.mean())
        context.record("tour/best", cost.view(count, -1).amin(-1).mean())
        length = built.length.flatten()
        step = torch.arange(steps, device=device)
        mask = step < length.unsqueeze(-1)
        terminated = step == (length - 1).unsqueeze(-1)
        reward = reward.view(rows, steps)
        if forced and steps > 1:
            mask[:, 0] = False
            reward[:, 1] += reward[:, 0]
            reward[:, 0] = 0
        cells = torch.arange(count * decoders, device=device)
        columns = {
            "observation": built.nodes.repeat_interleave(starts, 0),
            "action": built.action.view(rows, steps),
            "mask": mask,
            "length": length,
            "logp_old": built.logp.view(rows, steps),
            "reward": reward,
            "terminated": terminated,
            "truncated": torch.zeros_like(terminated),
            "group": cells.repeat_interleave(starts),
            "prompt": prompts.ids.to(device).repeat_interleave(decoders * starts),
            "agent": (cells % decoders).repeat_interleave(starts),
            "start": torch.arange(starts, device=device).repeat(count * decoders),
        }
        if built.value is not None:
            columns["value"] = built.value.view(rows, steps)
        return Trajectories(columns)

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Build one tour of each of `rows` further instances with every decoder, complete whatever `steps`."""
        return self.sample(context.next_prompts(rows), int(getattr(context.policy, "agents", 1)), context)

    def state_dict(self) -> dict[str, Any]:
        """Return no state: an instance is a function of its id."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing: there is no state."""


@component
class SharedTours(Groups):
    """Rollout of `size` tours of each of `prompts` instances, in which the first node is a decision too.

    Attributes:
        cached: whether an instance is encoded once for all decisions, or once for each.
    """

    cached: bool = True
    needs = frozenset({"tours"})

    def prepare(self, context: Context) -> None:
        """Set the policy's cache.

        Raises:
            UserError: the policy has no encoder.
        """
        super().prepare(context)
        policy: Any = context.policy
        if not hasattr(policy, "cached"):
            raise UserError(
                "rlor caches the encoder of a routing policy: it needs a routing task, such as --task tsp:nodes=20"
            )
        policy.cached = self.cached
