"""Tours gathered from a routing policy: all instances, starts and decoders at once, one node at a time."""

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
    """Tours from `starts` first nodes of each of `prompts` instances (POMO, arXiv 2010.16011).

    The first decision is forced: it stands in the row and outside its mask. The first n nodes serve as starts; customers, where
    there is a depot. A population builds each of them with every decoder.

    Attributes:
        prompts: instances a step, at least 1.
        starts: tours of each, 0 for one from every node that a tour can begin with.
        temperature: divides the logits; the tempered policy is the one that acts and learns.
    """

    prompts: Annotated[int, at_least(1)] = 64
    starts: Annotated[int, at_least(0)] = 0
    temperature: Annotated[float, above(0)] = 1.0
    needs = frozenset({"tours"})

    def cost(self, episode: int | None = None) -> Cost:
        """What a step takes, with one decoder; unknown where the instance decides how many tours it has."""
        return episodes(self.prompts * self.starts, episode) if self.starts else Cost()

    def prepare(self, context: Context) -> None:
        """Give the policy its temperature.

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
    """Tours of C pairs of an instance and a decoder, R each.

    Attributes:
        action: [C, R, T] nodes; a CVRP tour that is shorter than the longest stays at the depot.
        length: decisions of each tour [C, R].
        logp: of each decision [C, R, T]; 0 where it was forced.
        value: of the situation before it, [C, R, T]; None unless asked for.
        nodes: [C, n, F].
    """

    action: Tensor
    length: Tensor
    logp: Tensor
    value: Tensor | None
    nodes: Tensor

    def costs(self, problem: str) -> Tensor:
        """Return the length of each tour in the unit of the coordinates, way home included, [C, R]."""
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
    """Build `rows` tours of each instance with each decoder; C = B * agents, an instance's decoders side by side.

    Args:
        policy: whose encoder runs once.
        nodes: [B, n, F], on the policy's device.
        rows: tours of each pair.
        agents: the first so many decoders; None for all.
        forced: tour r begins at the r-th node that a tour can begin with, instead of one that the policy chooses.
        generator: of the draws, on the policy's device; None takes the likeliest node each time.
        value: record the policy's value of each situation.
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
    # Asking whether all tours are finished waits for the device: not before any can be.
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
    # The node in whose share of the cumulated probability a uniform draw falls. Only a share above 0 can hold it, and the
    # draw stays below the whole, so that no rounding leads to a node that is not allowed.
    cumulated = logs.exp().cumsum(-1)
    drawn = torch.rand(logs.shape[:-1], generator=generator, device=logs.device) * BELOW_ONE
    node = (cumulated <= (drawn * cumulated[..., -1]).unsqueeze(-1)).sum(-1)
    return node, logs.gather(-1, node.unsqueeze(-1)).squeeze(-1), glimpse


class RoutingEngine:
    """Builds tours of random instances, or of given ones, and hands them out as rows.

    A row is one tour: `action` the nodes, `reward` minus the way that each decision added (the way home with the last one),
    `observation` [n, F] its instance, `prompt` the instance's id, `agent` the decoder, `start` its number among the decoder's
    tours of the instance, `group` the pair of instance and decoder. Rows of an instance stand side by side, decoder by decoder.
    A method whose loss reads values finds the column `value` filled too. The mean length of the tours is recorded as
    `tour/length`, that of the best of each instance as `tour/best`.

    Args:
        policy: decides on the device.
    """

    def __init__(self, policy: RoutingPolicy) -> None:
        self.problem = policy.problem

    def starts(self, prompts: Prompts) -> int:
        """Return how many nodes a tour of these instances can begin with."""
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
        """Build `count` tours of each instance, equally many with each of the first `agents` decoders (all when None).

        Args:
            prompts: items are instances [n, F] of one size.
            count: rows of each; a multiple of the number of decoders.
            context: its policy decides.
            greedy: take the likeliest node each time.
            forced: the first node of a decoder's r-th tour is the r-th possible one, and no decision; the reward that it
                brought belongs to the decision after it.
            agents: decoders in use.

        Raises:
            UserError: `count` is no multiple of the number of decoders.
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
        """Build one tour of each of `rows` further instances with every decoder; a tour is never cut, whatever `steps`."""
        return self.sample(context.next_prompts(rows), int(getattr(context.policy, "agents", 1)), context)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: instances follow from their ids."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing back."""


@component
class SharedTours(Groups):
    """`size` tours of each of `prompts` instances, which choose their first node too.

    Attributes:
        cached: whether an instance is encoded once for all decisions, or once for each.
    """

    cached: bool = True
    needs = frozenset({"tours"})

    def prepare(self, context: Context) -> None:
        """Tell the policy.

        Raises:
            UserError: the policy has no encoder to be cached.
        """
        super().prepare(context)
        policy: Any = context.policy
        if not hasattr(policy, "cached"):
            raise UserError(
                "rlor caches the encoder of a routing policy: it needs a routing task, such as --task tsp:nodes=20"
            )
        policy.cached = self.cached
