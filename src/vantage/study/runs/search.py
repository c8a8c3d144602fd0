"""Arenas of tree search: a budget in simulations, and a score that dynamic programming makes exact.

    options = { game = "tictactoe", simulations = 4, games = 256, rate = 2.0, value_rate = 0.3, spread = 1.0 }

A table of random priors is trained on games that the search plays against itself with this many simulations per move; the
budget counts all of them. Score `return`: value of the search with that table against an optimal opponent, less that of optimal
play, mean over the 82 states after at most two moves; exact, by dynamic programming over all states. It is 0 at best, and -1
where every draw is lost.

    options = { game = "bandit-tree", trees = 500, depth = 4, actions = 4, players = 1, spread = 1.0 }

Without training: in each of many random trees the search chooses a root action with random priors (normal logits of standard
deviation `spread`) and random playouts for values; the budget is the simulations of one search, and the curve has powers
of two below it. Score `return`: exact value of the chosen action between that of a random one (0) and of the best (1), mean over
trees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vantage.core.errors import UserError, unknown
from vantage.fields.search.games import TableGame, bandit_tree, playout, tictactoe
from vantage.fields.search.learning import Table, self_play
from vantage.fields.search.rules import best
from vantage.fields.search.tree import Search
from vantage.methods import registry

if TYPE_CHECKING:
    from vantage.study.jobs import Job, Reporter

EARLY = 82
"""Number of states of tic-tac-toe after at most two moves; states are numbered breadth first."""

OPTIONS: Mapping[str, Mapping[str, float]] = {
    "tictactoe": {"simulations": 4, "games": 256, "rate": 2.0, "value_rate": 0.3, "spread": 1.0},
    "bandit-tree": {"trees": 500, "depth": 4, "actions": 4, "players": 1, "spread": 1.0},
}
"""Options of each game with their defaults."""


def options_of(given: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """Return the game's name and its options, defaults filled in.

    Raises:
        UserError: the game or an option is not known.
    """
    rest = dict(given)
    game = str(rest.pop("game", ""))
    if game not in OPTIONS:
        raise unknown("game", game, OPTIONS, "a search arena")
    for name in rest:
        if name not in OPTIONS[game]:
            raise unknown("option", name, OPTIONS[game], f"a search arena of {game}")
    return game, {**OPTIONS[game], **rest}


def against_the_best(game: TableGame, policy: Tensor) -> float:
    """Return the value of a policy [n, A] against optimal play from the first states, less that of optimal play."""
    exact = game.action_values
    perfect = best(exact, game.successor >= 0).to(policy.dtype)
    return float((game.played(policy, perfect) - exact.amax(-1))[:EARLY].mean())


def everywhere(search: Search, game: TableGame, table: Table, simulations: int, generator: torch.Generator) -> Tensor:
    """Return the search's final policy in every state [n, A]; zeros where the game is over."""
    states = game.open.nonzero().squeeze(-1)
    policy = torch.zeros(game.successor.shape, dtype=torch.float64)
    policy[states] = search(game, states, table, simulations, generator).final.to(policy.dtype)
    return policy


def learn(search: Search, options: Mapping[str, float], job: Job, report: Reporter) -> float:
    """Train on a game by self-play until the budget is spent; return the last score."""
    game, size = tictactoe(), job.arena.budget.size
    generator = torch.Generator().manual_seed(job.seed)
    simulations, games = int(options["simulations"]), int(options["games"])
    table = Table.random(game, options["spread"], generator)
    due = [size * point / job.arena.scoring.points for point in range(job.arena.scoring.points + 1)]
    spent, score = 0, 0.0
    while True:
        seen = self_play(search, game, table, games, simulations, generator)
        last = spent + seen.simulations > size
        if last or spent >= due[0]:
            policy = everywhere(search, game, table, simulations, torch.Generator().manual_seed(job.seed))
            score = against_the_best(game, policy)
            report.point(spent, score)
            prior = table(torch.arange(len(table.value)), generator)[0]
            report.record(spent, prior_return=against_the_best(game, prior))
            due = [point for point in due if point > spent] or [float("inf")]
        if last:
            return score
        table.learn(seen, options["rate"], options["value_rate"])
        spent += seen.simulations
        report.progress(spent)


def choose_once(search: Search, options: Mapping[str, float], job: Job, report: Reporter) -> float:
    """Search random trees with increasing numbers of simulations; return the score of the budget's."""
    generator = torch.Generator().manual_seed(job.seed)
    trees, size = int(options["trees"]), int(job.arena.budget.size)
    game = bandit_tree(
        trees, int(options["depth"]), int(options["actions"]), generator=generator, players=int(options["players"])
    )
    roots, table = torch.arange(trees), Table.random(game, options["spread"], generator)
    value = game.action_values[roots]
    random, top = value.mean(-1), value.amax(-1)

    def evaluate(state: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return table(state, generator)[0], playout(game, state, generator)

    report.point(0.0, 0.0)
    score = 0.0
    for simulations in [2**power for power in range(size.bit_length()) if 2**power < size] + [size]:
        final = search(game, roots, evaluate, simulations, torch.Generator().manual_seed(job.seed)).final
        score = float((((final * value).sum(-1) - random).sum()) / (top - random).sum())
        report.point(simulations, score)
    return score


def run(job: Job, report: Reporter) -> float:
    """Run a search in the arena; return its score.

    Raises:
        UserError: the method, the game, an option or the metric is not known.
    """
    torch.set_num_threads(1)
    name, options = options_of(job.arena.options)
    if job.arena.scoring.metric != "return":
        raise unknown("metric", job.arena.scoring.metric, ("return",), f"arena {job.arena.name!r}")
    search = registry.page(job.method).make(job.settings)
    if not isinstance(search, Search):
        raise UserError(f"{job.method} is no tree search; this arena runs pages of the family search")
    return (learn if name == "tictactoe" else choose_once)(search, options, job, report)
