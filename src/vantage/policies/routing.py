"""Policy for routing: an attention encoder that runs once per instance, and pointer decoders that read it at each decision.

Kool et al., "Attention, Learn to Solve Routing Problems!" (arXiv 1803.08475), with the normalisation and the context of the
first node of POMO (arXiv 2010.16011), and any number of decoders on one encoder (a population, arXiv 2210.03475).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_index
from vantage.policies.folder import read_policy, write_policy
from vantage.policies.routing_rules import PROBLEMS, Situation, check_problem, replay

LOGIT_RANGE = 10.0
"""Bound of the logits, which are this times a tanh."""


class NodeNorm(nn.Module):
    """Instance normalisation: of each feature over the nodes of an instance, with a learned scale and shift.

    Unlike with batch normalisation, a tour's probability does not depend on the other instances of the batch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, n, width] to the same shape."""
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        return (x - mean) * (torch.rsqrt(variance + 1e-5) * self.scale) + self.shift


class EncoderLayer(nn.Module):
    """Encoder layer: attention among the nodes and a two-layer network per node, each with a residual and normalised."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.read = nn.Linear(width, 3 * width, bias=False)
        self.combine = nn.Linear(width, width)
        self.norm = NodeNorm(width)
        self.inner = nn.Linear(width, feedforward)
        self.outer = nn.Linear(feedforward, width)
        self.last_norm = NodeNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, n, width] to the same shape; permuted nodes give permuted outputs."""
        query, key, value = (split_heads(part, self.heads) for part in self.read(x).chunk(3, -1))
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = self.norm(x + self.combine(seen))
        return self.last_norm(x + self.outer(torch.relu(self.inner(x))))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape [B, n, width] to [B, heads, n, width / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


@dataclass(frozen=True)
class Memory:
    """Decoders' cache of encoded instances, computed once, for C pairs of an instance and a decoder.

    Attributes:
        key, value: keys and values of the glimpse, [C, heads, n, width / heads].
        pointer: keys with which the glimpse is compared, [C, n, width].
        last: term of the query for the tour's current node, [C, n, width].
        first: term for its first node (TSP), [C, n, width]; None in CVRP.
        graph: term for the whole instance, [C, width].
        extra: term for a tour without nodes (TSP), or for a full vehicle (CVRP), [C, width].
        capacity: [C, 1]; None in TSP.
    """

    key: Tensor
    value: Tensor
    pointer: Tensor
    last: Tensor
    first: Tensor | None
    graph: Tensor
    extra: Tensor
    capacity: Tensor | None

    def select(self, index: Tensor) -> Memory:
        """Return the pairs with these indices [M]."""
        held: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        chosen: dict[str, Any] = {name: None if part is None else part[index] for name, part in held.items()}
        return Memory(**chosen)


class RoutingPolicy(nn.Module):
    """Policy that builds tours node by node.

    The encoder is equivariant to permutations of the nodes. Decoders are stacked: each has its own weights, all read the
    same encoding.

    Batches hold `observation` [N, n, F] (the instance of each row, see `routing_rules`), `action`, `length`, `prompt` (rows of
    one prompt share their instance: it is encoded once) and `agent` [N], the decoder of each row.

    Args:
        problem: "tsp" or "cvrp".
        width: width of the embeddings.
        layers: number of encoder layers.
        heads: attention heads; a divisor of the width.
        feedforward: width of the encoder's feed-forward layers.
        agents: number of decoders.
        critic: whether there is a value head on the glimpse.
        seed: seed of the initial weights.

    Raises:
        UserError: a setting is out of range.
    """

    memoryless = False

    def __init__(
        self,
        problem: str,
        *,
        width: int = 128,
        layers: int = 3,
        heads: int = 8,
        feedforward: int = 512,
        agents: int = 1,
        critic: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_problem(problem)
        for name, given in (("width", width), ("layers", layers), ("heads", heads), ("feedforward", feedforward),
                            ("agents", agents)):  # fmt: skip
            if given < 1:
                raise UserError(f"{name}={given} is out of range: at least 1")
        if width % heads:
            raise UserError(f"heads={heads} must divide width={width}")
        self.problem = problem
        self.config: dict[str, Any] = {
            "problem": problem, "width": width, "layers": layers, "heads": heads, "feedforward": feedforward,
        }  # fmt: skip
        self.temperature = 1.0
        self.cached = True
        """False encodes the instance again for every decision, as models without a cache do: the same values, slower."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Linear(PROBLEMS[problem], width)
            self.embed_depot = nn.Linear(2, width) if problem == "cvrp" else None
            self.encoder = nn.Sequential(*(EncoderLayer(width, heads, feedforward) for _ in range(layers)))
            bound = 1 / math.sqrt(width)
            self._parts = 5 if problem == "tsp" else 4
            self.decoder = nn.ParameterDict(
                {
                    "read": nn.Parameter(torch.empty(1, width, self._parts * width).uniform_(-bound, bound)),
                    "graph": nn.Parameter(torch.empty(1, width, width).uniform_(-bound, bound)),
                    "extra": nn.Parameter(torch.empty(1, width).uniform_(-bound, bound)),
                }
            )
        self.critic: nn.Sequential | None = None
        if critic:
            self.add_value_head()
        self.populate(agents)

    # decoders ------------------------------------------------------------------------------------------------------

    @property
    def agents(self) -> int:
        """Number of decoders."""
        return int(self.decoder["read"].shape[0])

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.embed.weight.device

    def populate(self, agents: int) -> None:
        """Make a population of clones of a single decoder.

        Raises:
            UserError: the policy has a population of another size.
        """
        if agents == self.agents:
            return
        if self.agents != 1:
            raise UserError(
                f"agents={agents}: this policy has a population of {self.agents} decoders, which cannot be changed"
            )
        for name, parameter in self.decoder.items():
            cloned = parameter.detach().repeat(agents, *[1] * (parameter.dim() - 1))
            self.decoder[name] = nn.Parameter(cloned, requires_grad=parameter.requires_grad)

    @torch.no_grad()
    def clone_first(self) -> None:
        """Copy the first decoder to all of the population, in place."""
        for parameter in self.decoder.values():
            parameter.copy_(parameter[:1].expand_as(parameter))

    def add_value_head(self) -> None:
        """Add a value head, a two-layer network on the glimpse; a second call changes nothing."""
        if self.critic is None:
            width = self.config["width"]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(width)
                self.critic = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)).to(self.device)

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that only the value depends on."""
        return iter(()) if self.critic is None else self.critic.parameters()

    # encoder and decoder -------------------------------------------------------------------------------------------

    def encode(self, nodes: Tensor) -> Tensor:
        """Embed instances [B, n, F] as [B, n, width]."""
        if self.embed_depot is None:
            embedded = self.embed(nodes.to(self.embed.weight.dtype))
        else:
            # Demands as shares of the capacity, which differs between instances and files.
            load = nodes[:, 1:, 2:] / nodes[:, :1, 2:]
            customers = torch.cat([nodes[:, 1:, :2], load], -1).to(self.embed.weight.dtype)
            depot = self.embed_depot(nodes[:, :1, :2].to(self.embed.weight.dtype))
            embedded = torch.cat([depot, self.embed(customers)], 1)
        return self.encoder(embedded)

    def remember(self, nodes: Tensor, agents: int | None = None) -> Memory:
        """Encode instances [B, n, F] for the first `agents` decoders (all when None); C = B * agents, decoders adjacent."""
        agents = agents or self.agents
        encoded = self.encode(nodes)
        count, _, width = encoded.shape
        weight = self.decoder["read"][:agents].transpose(0, 1).flatten(1)
        read = (encoded @ weight).unflatten(-1, (agents, -1)).transpose(1, 2).flatten(0, 1)
        key, value, pointer, last, *first = read.split(width, -1)
        graph = (encoded.mean(1) @ self.decoder["graph"][:agents].transpose(0, 1).flatten(1)).view(-1, width)
        extra = self.decoder["extra"][:agents].repeat(count, 1)
        capacity = nodes[:, :1, 2].repeat_interleave(agents, 0) if self.problem == "cvrp" else None
        heads = self.config["heads"]
        return Memory(
            split_heads(key, heads), split_heads(value, heads), pointer, last, first[0] if first else None, graph, extra, capacity
        )  # fmt: skip

    def decide(self, memory: Memory, now: Situation) -> tuple[Tensor, Tensor]:
        """Return logits [C, R, n] (-inf where not allowed; float32 at least) and the glimpse [C, R, width]."""
        width, heads = self.config["width"], self.config["heads"]
        cells, rows = now.last.shape
        offset = torch.arange(cells, device=now.last.device).unsqueeze(1) * memory.last.shape[1]

        def at(table: Tensor, node: Tensor) -> Tensor:
            # Indexing whole rows of one table is several times faster than a gather.
            index = (node.clamp(min=0) + offset).flatten()
            return table.flatten(0, 1).index_select(0, index).view(cells, rows, width)

        query = at(memory.last, now.last)
        if memory.first is not None:
            begun = (now.last >= 0).unsqueeze(-1)
            query = torch.where(begun, query + at(memory.first, now.first), memory.extra.unsqueeze(1))
        else:
            assert memory.capacity is not None
            assert now.remaining is not None
            share = (now.remaining / memory.capacity).unsqueeze(-1).to(query.dtype)
            query = query + share * memory.extra.unsqueeze(1)
        query = query + memory.graph.unsqueeze(1)
        seen = F.scaled_dot_product_attention(
            split_heads(query, heads), memory.key, memory.value, attn_mask=now.allowed.unsqueeze(1)
        )
        glimpse = seen.transpose(1, 2).reshape(cells, rows, width)
        # The usual projection of the glimpse is left out: composed with the pointer's, it is one linear map.
        score = glimpse @ memory.pointer.transpose(1, 2)
        score = score.to(torch.promote_types(score.dtype, torch.float32)) / math.sqrt(width)
        logits = LOGIT_RANGE * torch.tanh(score) / self.temperature
        return logits.masked_fill(~now.allowed, -torch.inf), glimpse

    def value_of(self, glimpse: Tensor) -> Tensor:
        """Return the value [C, R] of states from their glimpse [C, R, width]; with gradient.

        Raises:
            UserError: the policy has no critic.
        """
        if self.critic is None:
            raise UserError("this routing policy has no critic: a method with `values` adds one")
        value = self.critic(glimpse).squeeze(-1)
        return value.to(torch.promote_types(value.dtype, torch.float32))

    # evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Evaluate the batch's decisions: logp, entropy, value [N, T], hidden [N, T, width] (the glimpse) and the
        distribution, its logits [N, T, n]; with gradient.

        Raises:
            UserError: `want` names an output that this policy does not have.
        """
        odd = want - {"logp", "entropy", "value", "hidden", "distribution"}
        if odd:
            raise UserError(f"a routing policy has no output {', '.join(sorted(odd))}")
        rows, steps = batch.action.shape
        nodes, memory, action, length = self._remember(batch)
        now = replay(self.problem, nodes, action, length)
        if memory is not None:
            logits, glimpse = self.decide(memory, now)
        else:
            parts = []
            for step in range(steps):
                again = self._remember(batch, again=True)[1]
                assert again is not None
                parts.append(self.decide(again, now.at(slice(step, None, steps))))
            logits, glimpse = (torch.stack(part, 2).flatten(1, 2) for part in zip(*parts, strict=True))
        evaluation = Evaluation()
        shape = (rows, steps)
        if want & {"logp", "entropy"}:
            logs = logits.log_softmax(-1)
            if "logp" in want:
                evaluation.logp = logs.gather(-1, action.flatten(1).unsqueeze(-1)).view(shape)
            if "entropy" in want:
                # Where a node is not allowed, 0 * -inf is replaced by 0, in the gradient too.
                evaluation.entropy = -(logs.exp() * logs.masked_fill(~now.allowed, 0.0)).sum(-1).view(shape)
        if "value" in want:
            evaluation.value = self.value_of(glimpse).view(shape)
        if "hidden" in want:
            evaluation.hidden = glimpse.view(*shape, -1)
        if "distribution" in want:
            evaluation.distribution = logits.view(*shape, -1)
        return evaluation

    def _remember(self, batch: Trajectories, again: bool = False) -> tuple[Tensor, Memory | None, Tensor, Tensor]:
        """Encode a batch's instances; return nodes [C, n, F], memory of C, actions [C, R, T] and lengths [C, R], C * R = N.

        The memory is None where every decision needs an encoding of its own, unless `again`.
        """
        rows, steps = batch.action.shape
        instance, count = group_index(batch.prompt)
        agent = batch.get("agent")
        agents = 1 if agent is None else int(agent.max()) + 1
        holder = torch.full((count,), rows, device=instance.device)
        holder.scatter_reduce_(0, instance, torch.arange(rows, device=instance.device), "amin")
        nodes = batch.observation[holder]
        memory = self.remember(nodes, agents) if self.cached or again else None
        cell = instance if agent is None else instance * agents + agent
        cells = count * agents
        each = rows // cells
        if each * cells == rows and bool((cell == torch.arange(rows, device=cell.device) // each).all()):
            nodes = nodes.repeat_interleave(agents, 0) if agents > 1 else nodes
            return nodes, memory, batch.action.view(cells, each, steps), batch.length.view(cells, each)
        # Rows out of order or missing: each gets its own view of its instance.
        own = None if memory is None else memory.select(cell)
        return batch.observation, own, batch.action.unsqueeze(1), batch.length.unsqueeze(1)

    @torch.no_grad()
    def values(self, batch: Trajectories) -> tuple[Tensor, Tensor]:
        """Return `value` and `next_value` [N, T], from the rollout where it recorded them; no gradient."""
        value = batch.get("value")
        if value is None:
            value = self.evaluate(batch, frozenset({"value"})).value
        following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
        return value, torch.where(batch.terminated, 0.0, following)

    # saving --------------------------------------------------------------------------------------------------------

    def frozen(self) -> RoutingPolicy:
        """Return a frozen copy."""
        held = copy.deepcopy(self)
        held.requires_grad_(False)
        return held.eval()

    def save(self, folder: Any) -> None:
        """Write `model.safetensors` and `config.json` into the folder."""
        config = {**self.config, "agents": self.agents, "critic": self.critic is not None}
        write_policy(folder, "routing", self.state_dict(), config)

    @classmethod
    def load(cls, folder: Any) -> RoutingPolicy:
        """Read what `save` wrote.

        Raises:
            UserError: the folder holds no routing policy; the message says what is missing.
        """
        config, tensors = read_policy(folder, "routing", "routing policy")
        policy = cls(**config)
        policy.load_state_dict(tensors)
        return policy
