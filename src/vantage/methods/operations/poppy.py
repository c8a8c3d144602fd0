"""Poppy: a population trained by its best member alone, so that its members specialise. (S042)

If several policies are run on an instance and the best answer is kept, the objective should be the expected maximum. Its
gradient touches only the agent that won, weighed by its margin over the runner-up:

    J = E max_k R(tau_k)        grad J = E (R_k* - R_k2) grad logp(tau_k*)        k* the best agent, k2 the second
    loss = -mean over instances and starts of (R_k* - R_k2) * sum_t logp_t(tau_k*)

The runner-up is a baseline that leaves the gradient unbiased: it does not depend on the winner's tour, given that it wins. Ties
weigh 0. Agents share the encoder and have decoders of their own. arXiv 2210.03475.

Two phases. First POMO trains one decoder; then all K are its clones, and sampling alone breaks their symmetry. Either in one
run (`warm`, the share of it that is the first phase; the optimiser begins anew with the second), or in two:

    vantage train pomo  --task tsp:nodes=20 --out A
    vantage train poppy --task tsp:nodes=20 --model A/model --set agents=4 --out B

`credit="baseline"` is the released code's variant: the winner's weight is R_k* less the mean of its tours from all starts.
`credit="own"` leaves the competition out: each decoder has POMO's loss, an independent population. With one agent all are
POMO. The losers' rows are dropped before the update: their gradient is exactly 0. Encoder and decoders have the learning rate
1e-4, in both phases; weight decay (decoupled, 1e-6) is the encoder's alone. The released settings keep training the encoder in
the second phase; `freeze_encoder` leaves it as the first phase made it, as the repository's text says.

At test time the population's greedy tours from all starts compete. `search` is the longer one: the greedy tours choose, for each
instance, the K best pairs of an agent and a start, each pair draws 200 tours, and the shortest of all counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories
from vantage.core.walk import prepare
from vantage.functions.groups import group_index, group_mean
from vantage.functions.rows import per_decision
from vantage.methods.claim import Claim
from vantage.methods.operations.pomo import pomo
from vantage.methods.registry import Paper, method
from vantage.policies.routing import RoutingPolicy
from vantage.policies.routing_rules import Tours, edges, start_nodes
from vantage.rollouts.routing import MultiStart, construct

PAPER = Paper(
    "Winner Takes It All: Training Performant RL Populations for Combinatorial Optimization",
    "Nathan Grinsztajn and Daniel Furelos-Blanco and Shikha Surana and Clement Bonnet and Thomas D. Barrett",
    2023,
    arxiv="2210.03475",
    venue="Advances in Neural Information Processing Systems 36",
)
CREDITS = ("margin", "baseline", "own")


def encoder_parameters(policy: Any) -> list[torch.nn.Parameter]:
    """The parameters that all agents share: the embedding of nodes and the encoder."""
    return [p for name, p in policy.named_parameters() if not name.startswith(("decoder.", "critic."))]


@dataclass(frozen=True)
class Population(MultiStart):
    """Tours from every start by every agent, after a first phase in which only one agent acts.

    Attributes:
        agents: K decoders; a policy with one is given clones of it.
        warm: share of the run's steps in which the first agent alone acts and learns, in [0, 1); then all become its clones.
        freeze_encoder: in the second phase the encoder has no gradient.
    """

    agents: int = 16
    warm: float = 0.0
    freeze_encoder: bool = False
    _state: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.agents < 1:
            raise UserError(f"Population.agents={self.agents} is out of range: at least 1")
        if not 0 <= self.warm < 1:
            raise UserError(f"Population.warm={self.warm} is out of range: at least 0 and below 1")

    @property
    def size(self) -> int:
        """Tours of an instance in the second phase; 0 where the instance decides."""
        return self.starts * self.agents

    def prepare(self, context: Context) -> None:
        """Give the policy its decoders."""
        super().prepare(context)
        policy: Any = context.policy
        policy.populate(self.agents)
        self._state["begun"] = self.warm == 0 or self.agents == 1

    def __call__(self, context: Context) -> Trajectories:
        """Build the next tours, and begin the second phase when it is due."""
        if not self._state["begun"]:
            if context.progress < self.warm:
                return self.build(context, 1)
            policy: Any = context.policy
            policy.clone_first()
            # Moments of one decoder's gradient, and zeros of the others', mean nothing to the clones.
            prepare(context.method.update, context)
            self._state["begun"] = True
        if self.freeze_encoder:
            # Parameters without gradient stay with the optimiser, which passes them over, so that a resumed run finds its own.
            for parameter in encoder_parameters(context.policy):
                parameter.requires_grad_(False)
        return self.build(context, None)

    def state_dict(self) -> dict[str, Any]:
        """Whether the second phase has begun."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self._state.update(begun=bool(state["begun"]))


@dataclass(frozen=True)
class WinnerTakesAll:
    """Advantage of the winner among the agents, for each prompt and start; 0 for the others, and no gradient.

    Fills `advantage` [N, T] and `winner` [N] bool, one row of each prompt and start; of tied ones the first. Where one agent
    acts alone, its advantage is POMO's.

    Attributes:
        credit: "margin" over the runner-up, or "baseline": over the mean of the winner's own tours from all starts.
    """

    credit: str = "margin"

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill the columns."""
        rows, score = len(batch), batch.score.float()
        start = batch.start
        place, places = group_index(batch.prompt * (start.max() + 1) + start)

        def best(values: Tensor) -> Tensor:
            return values.new_full((places,), -torch.inf).scatter_reduce_(0, place, values, "amax")

        order = torch.arange(rows, device=place.device)
        first = torch.full((places,), rows, device=place.device)
        first.scatter_reduce_(0, place, torch.where(score == best(score)[place], order, rows), "amin")
        winner = order == first[place]
        runner_up = best(score.masked_fill(winner, -torch.inf))[place]
        own = group_mean(score, batch.group)
        baseline = torch.where(runner_up.isinf(), own, runner_up) if self.credit == "margin" else own
        advantage = torch.where(winner, score - baseline, 0.0)
        agents = torch.bincount(batch.agent[winner], minlength=int(batch.agent.max()) + 1)
        context.record("agents/least_share", agents.amin() / places)
        context.record("agents/margin", advantage.sum() / places)
        return batch.replace(advantage=per_decision(advantage, batch.mask), winner=winner)


def winners(batch: Trajectories, context: Context) -> Trajectories:
    """Keep the winners' rows: one of each prompt and start."""
    return batch.select(batch.winner)


@dataclass(frozen=True)
class EncoderDecay:
    """Decoupled weight decay of the encoder alone: w <- w (1 - lr rate) before the optimiser's step, as AdamW does.

    Attributes:
        rate: at least 0.
    """

    rate: float = 1e-6

    def __post_init__(self) -> None:
        if not self.rate >= 0:
            raise UserError(f"EncoderDecay.rate={self.rate} is out of range: at least 0")

    @torch.no_grad()
    def __call__(self, parameters: list[torch.nn.Parameter], context: Context) -> None:
        """Shrink the encoder's weights that have a gradient."""
        update: Any = context.method.update
        lr = update.optimizer.lr * update.schedule(context.step, context.total_steps)
        for parameter in encoder_parameters(context.policy):
            if parameter.grad is not None:
                parameter.mul_(1 - lr * self.rate)


@torch.no_grad()
def search(
    policy: RoutingPolicy, nodes: Tensor, *, rollouts: int = 200, pairs: int = 0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (greedy, best), each [B]: the shortest greedy tour of each instance, and the shortest that the search finds.

    Every agent builds a greedy tour from every start. The best `pairs` of an agent and a start then draw `rollouts` tours each.
    The number of tours of an instance is agents * starts + pairs * rollouts.

    Args:
        policy: of K agents.
        nodes: instances [B, n, F].
        rollouts: at least 0.
        pairs: at most agents * starts; 0 for K.
        generator: of the draws, on the policy's device.

    Raises:
        UserError: `rollouts` or `pairs` is out of range.
    """
    nodes = nodes.to(policy.device)
    count, size = nodes.shape[:2]
    starts = size - (1 if policy.problem == "cvrp" else 0)
    pairs = pairs or policy.agents
    if rollouts < 0 or not 1 <= pairs <= policy.agents * starts:
        raise UserError(
            f"search: rollouts={rollouts}, pairs={pairs} are out of range: at least 0, and 1 to {policy.agents * starts}"
        )
    costs = construct(policy, nodes, starts, forced=True).costs(policy.problem).view(count, -1)
    greedy = costs.amin(1)
    if not rollouts:
        return greedy, greedy
    chosen = costs.topk(pairs, 1, largest=False).indices.flatten()
    instance = torch.arange(count, device=nodes.device).repeat_interleave(pairs)
    first = start_nodes(policy.problem, starts, size, nodes.device)[chosen % starts]
    drawn = _draw(policy, nodes, instance, chosen // starts, first, rollouts, generator)
    return greedy, torch.minimum(greedy, drawn.view(count, -1).amin(1))


def _draw(
    policy: RoutingPolicy,
    nodes: Tensor,
    instance: Tensor,
    agent: Tensor,
    first: Tensor,
    rollouts: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the lengths [C, rollouts] of tours of C triples (instance, agent, first node)."""
    memory = policy.remember(nodes).select(instance * policy.agents + agent)
    cells = nodes[instance]
    tours = Tours(policy.problem, cells, rollouts)
    node = first.unsqueeze(1).expand(-1, rollouts)
    actions: list[Tensor] = []
    length = torch.zeros_like(node)
    finished = tours.finished()
    while not bool(finished.all()):
        if actions:
            chances = policy.decide(memory, tours.situation())[0].softmax(-1)
            node = torch.multinomial(chances.flatten(0, 1), 1, generator=generator).view_as(node)
        length = length + ~finished
        tours.visit(node)
        actions.append(node)
        finished = tours.finished()
    return edges(policy.problem, cells, torch.stack(actions, -1), length).sum(-1)


@method(id="S042", papers=PAPER)
def poppy(
    agents: int = 16,
    prompts: int = 64,
    starts: int = 0,
    warm: float = 0.0,
    freeze_encoder: bool = False,
    credit: str = "margin",
    lr: float = 1e-4,
    weight_decay: float = 1e-6,
    max_grad_norm: float | None = None,
    temperature: float = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """Compose Poppy; `credit="own"` is the independent population, and `agents=1` POMO."""
    if credit not in CREDITS:
        raise UserError(f"poppy.credit={credit!r} is not known: {', '.join(CREDITS)}")
    parent = pomo(prompts, starts, lr, 0.0, max_grad_norm, temperature, micro_batch)
    if weight_decay:
        parent = parent.adapt("update", transforms=(EncoderDecay(weight_decay),))
    rollout = Population(prompts, starts, temperature, agents, warm, freeze_encoder)
    if credit == "own":
        return parent.replace(rollout=rollout)
    return parent.replace(rollout=rollout, advantage=WinnerTakesAll(credit), selection=(winners,))


_PHASES = {"agents": 4, "warm": 0.5, "prompts": 64}

claim = (
    Claim(
        name="independent",
        arena="tsp20-best-of-4",
        against="poppy",
        direction="lower",
        settings=_PHASES,
        against_settings={**_PHASES, "credit": "own"},
        note="Against four decoders that know nothing of each other, from the same warm start, at equal rollouts: the best of"
        " four tours from each start.",
    ),
    Claim(
        name="sampling",
        arena="tsp20-best-of-4",
        against="poppy",
        direction="lower",
        settings=_PHASES,
        against_settings={**_PHASES, "agents": 1},
        note="Against one policy, trained on as many tours, whose best of a greedy and three drawn tours from each start counts.",
    ),
)
