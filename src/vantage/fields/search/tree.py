"""Search in a batch of B trees stored as arrays: every simulation adds at most one node to each.

Node 0 is the root, and node i is the one that simulation i added. An edge is (node, action); its statistics are [B, M, A].
A simulation descends by the tree rule to an edge without a node, adds the node, evaluates its prior and value, and adds
the value to every edge of the path. The value where the game is over is the outcome, sampled at each visit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor

from vantage.core import above, between, component
from vantage.core.errors import UserError
from vantage.fields.search.games import Game

Evaluator = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Function from states [B] to the prior over actions [B, A], whose illegal ones are dropped, and the value for the player to
move [B]."""


@dataclass(frozen=True)
class Node:
    """Statistics of one node of each of B trees.

    Attributes:
        prior: [B, A], sum 1, 0 for illegal actions.
        visits: [B, A].
        q: mean value of each action for the player to move [B, A], in [0, 1] (see `Search.normalise`); the default where it was
            not visited.
        legal: bool [B, A].
    """

    prior: Tensor
    visits: Tensor
    q: Tensor
    legal: Tensor

    @property
    def total(self) -> Tensor:
        """Total visits of actions N [B, 1]."""
        return self.visits.sum(-1, keepdim=True)

    @property
    def width(self) -> Tensor:
        """Number of legal actions [B, 1]."""
        return self.legal.sum(-1, keepdim=True)


class Rule(Protocol):
    """Interface of a rule: a distribution over the actions of a node [B, A], 0 for illegal ones."""

    def __call__(self, node: Node) -> Tensor:
        """Return the distribution."""
        ...


@dataclass
class Tree:
    """Batch of B trees of up to M nodes.

    Attributes:
        state: [B, M, ...].
        child: node at the end of each edge [B, M, A], -1 for none.
        prior, visits, sums: [B, M, A]; `sums` are sums of values, for the player to move at the node.
        legal: bool [B, M, A].
        value: value by the evaluator [B, M].
        over: bool [B, M].
        low, high: smallest and largest mean value of an edge so far [B].
    """

    state: Tensor
    child: Tensor
    prior: Tensor
    visits: Tensor
    sums: Tensor
    legal: Tensor
    value: Tensor
    over: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Found:
    """Result of a search at its B roots.

    Attributes:
        act: distribution of actions in training [B, A].
        final: distribution of actions in evaluation [B, A].
        target: target distribution of the prior [B, A].
        value: mean of all values backed up to the root, its own included [B].
        node: the root's statistics.
    """

    act: Tensor
    final: Tensor
    target: Tensor
    value: Tensor
    node: Node


@component(label="search")
class Search:
    """Tree search, as methods of this field make it.

    Attributes:
        tree: rule of the simulations within the tree.
        act: rule of the root's actions in training.
        final: rule of the root's actions in evaluation.
        target: rule of the prior's target at the root.
        evaluate: replaces the evaluator with which the search is called.
        normalise: q is scaled from the smallest to the largest mean value so far of the tree ("tree") or of the node and its
            actions ("node"), or from -1 to 1 ("range").
        unvisited: q of an unvisited action: "node", the node's own mean value so far; "low", the smallest value of
            `normalise`.
        noise: share of a Dirichlet sample in the root's prior in training.
        concentration: alpha of that distribution, above 0; 1 is flat.
    """

    tree: Rule
    act: Rule
    final: Rule
    target: Rule
    evaluate: Callable[[Game], Evaluator] | None = None
    normalise: Literal["tree", "node", "range"] = "tree"
    unvisited: Literal["node", "low"] = "node"
    noise: Annotated[float, between(0, 1)] = 0.0
    concentration: Annotated[float, above(0)] = 1.0

    def replace(self, **changes: object) -> Search:
        """Return the search with other attributes."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def __call__(
        self,
        game: Game,
        roots: Tensor,
        evaluate: Evaluator,
        simulations: int,
        generator: torch.Generator,
        explore: bool = False,
    ) -> Found:
        """Search from states where the game is not over [B].

        Args:
            game: the rules.
            roots: states [B, ...].
            evaluate: prior and value of states.
            simulations: evaluations per tree, without the root's; at least 1.
            generator: random generator.
            explore: whether the root's prior is mixed with noise.

        Raises:
            UserError: there is no simulation, or the game is over at a root.
        """
        if simulations < 1:
            raise UserError(f"search: simulations={simulations} is out of range: at least 1")
        with torch.no_grad():
            evaluate = self.evaluate(game) if self.evaluate is not None else evaluate
            tree = grow(self, game, roots, evaluate, simulations, generator, self.noise if explore else 0.0)
            node = self.look(tree, torch.zeros(len(roots), dtype=torch.long, device=roots.device))
            total = tree.sums[:, 0].sum(-1) + tree.value[:, 0]
            value = total / (1.0 + node.total.squeeze(-1))
            return Found(self.act(node), self.final(node), self.target(node), value, node)

    def look(self, tree: Tree, at: Tensor) -> Node:
        """Return the statistics of one node of each tree, `at` [B]."""
        row = torch.arange(len(at), device=at.device)
        visits, sums = tree.visits[row, at], tree.sums[row, at]
        mean = (sums.sum(-1, keepdim=True) + tree.value[row, at].unsqueeze(-1)) / (1.0 + visits.sum(-1, keepdim=True))
        q = torch.where(visits > 0, sums / visits.clamp(min=1.0), mean)
        if self.normalise == "tree":
            low, high = tree.low.unsqueeze(-1), tree.high.unsqueeze(-1)
        elif self.normalise == "node":
            every = torch.cat([q, mean], -1)
            low, high = every.amin(-1, keepdim=True), every.amax(-1, keepdim=True)
        else:
            low, high = torch.full_like(tree.low, -1.0).unsqueeze(-1), torch.ones_like(tree.low).unsqueeze(-1)
        if self.unvisited == "low":
            q = torch.where(visits > 0, q, low)
        # A tree with one distinct value (up to rounding), or none, has no scale yet: all q are equal.
        scale = (high - low).clamp(min=0.0)
        differ = scale > 1e-9 * torch.maximum(low.abs(), high.abs())
        q = torch.where(differ, (q - low) / scale.masked_fill(~differ, 1.0), 0.5).clamp(0.0, 1.0)
        return Node(tree.prior[row, at], visits, q, tree.legal[row, at])


def plant(game: Game, roots: Tensor, nodes: int, dtype: torch.dtype = torch.float64) -> Tree:
    """Return trees [B] with the root alone, and room for `nodes`."""
    batch, device = len(roots), roots.device

    def zeros(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.zeros(batch, *shape, dtype=kind, device=device)

    edges = (nodes, game.actions)
    state = torch.zeros(batch, nodes, *roots.shape[1:], dtype=roots.dtype, device=device)
    return Tree(
        state=state,
        child=torch.full((batch, *edges), -1, device=device),
        prior=zeros(*edges),
        visits=zeros(*edges),
        sums=zeros(*edges),
        legal=zeros(*edges, kind=torch.bool),
        value=zeros(nodes),
        over=zeros(nodes, kind=torch.bool),
        low=torch.full((batch,), torch.inf, dtype=dtype, device=device),
        high=torch.full((batch,), -torch.inf, dtype=dtype, device=device),
    )


def grow(
    search: Search,
    game: Game,
    roots: Tensor,
    evaluate: Evaluator,
    simulations: int,
    generator: torch.Generator,
    noise: float = 0.0,
) -> Tree:
    """Run simulations from roots [B] and return the trees."""
    tree = plant(game, roots, simulations + 1)
    row = torch.arange(len(roots), device=roots.device)
    _add(tree, game, row, 0, roots, evaluate, generator)
    if bool(tree.over[:, 0].any()):
        raise UserError("search: the game is over at a root; search only states in which it is not")
    if noise:
        legal, prior = tree.legal[:, 0], tree.prior[:, 0]
        draw = torch._standard_gamma(torch.full_like(prior, search.concentration), generator=generator) * legal
        tree.prior[:, 0] = (1.0 - noise) * prior + noise * draw / draw.sum(-1, keepdim=True)
    for simulation in range(1, simulations + 1):
        _simulate(search, tree, game, row, simulation, evaluate, generator)
    return tree


def _simulate(
    search: Search, tree: Tree, game: Game, row: Tensor, new: int, evaluate: Evaluator, generator: torch.Generator
) -> None:
    """Descend, add node `new` where the path leaves the tree, and back its value up."""
    at = torch.zeros_like(row)
    going = torch.ones_like(row, dtype=torch.bool)
    path: list[tuple[Tensor, Tensor, Tensor]] = []
    leaf, edge = at, at
    for _ in range(min(new, game.length)):
        action = choose(search.tree(search.look(tree, at)), generator)
        path.append((at, action, going))
        leaf, edge = torch.where(going, at, leaf), torch.where(going, action, edge)
        following = tree.child[row, at, action]
        fresh = following < 0
        at = torch.where(going & ~fresh, following, at)
        going = going & ~fresh & ~tree.over[row, at]
        # Few paths have the largest possible length. The test is cheap where it needs no synchronisation.
        if going.device.type == "cpu" and not going.any():
            break
    behind = tree.child[row, leaf, edge]
    fresh = behind < 0
    state = game.step(tree.state[row, leaf], edge)
    _add(tree, game, row, new, state, evaluate, generator)
    # A path that ends at an existing terminal node adds only its outcome; its new node is unreachable.
    tree.child[row, leaf, edge] = torch.where(fresh, torch.full_like(behind, new), behind)
    value = tree.value[:, new]
    for step in reversed(range(len(path))):
        node, action, on = path[step]
        value = torch.where(on, game.sign * value, value)
        tree.visits[row, node, action] += on.to(value.dtype)
        tree.sums[row, node, action] += torch.where(on, value, 0.0)
        mean = tree.sums[row, node, action] / tree.visits[row, node, action].clamp(min=1.0)
        tree.low = torch.where(on, torch.minimum(tree.low, mean), tree.low)
        tree.high = torch.where(on, torch.maximum(tree.high, mean), tree.high)


def _add(
    tree: Tree, game: Game, row: Tensor, new: int, state: Tensor, evaluate: Evaluator, generator: torch.Generator
) -> None:
    """Fill node `new` of every tree."""
    legal, over = game.legal(state), game.over(state)
    prior, value = evaluate(state, generator)
    prior = prior.to(tree.prior.dtype).masked_fill(~legal, 0.0)
    tree.state[:, new], tree.legal[:, new], tree.over[:, new] = state, legal, over
    tree.prior[:, new] = prior / prior.sum(-1, keepdim=True).clamp(min=1e-300)
    outcome = game.outcome(state, generator).to(tree.value.dtype)
    tree.value[:, new] = torch.where(over, outcome, value.to(tree.value.dtype))


def choose(policy: Tensor, generator: torch.Generator) -> Tensor:
    """Sample actions [B] from distributions [B, A], never one of probability 0. Rows of zeros give 0."""
    cumulated = policy.cumsum(-1)
    draw = torch.rand(len(policy), 1, generator=generator, dtype=policy.dtype, device=policy.device)
    return (cumulated <= draw * cumulated[:, -1:]).sum(-1).clamp(max=policy.shape[-1] - 1)
