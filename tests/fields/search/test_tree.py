from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.fields.search.games import TableGame, bandit_tree, tictactoe
from vantage.fields.search.learning import Seen, Table, self_play
from vantage.fields.search.rules import PUCT, UCB1, Greedy, Regularized, Visits, best, uniform_playouts
from vantage.fields.search.tree import Node, Search, choose, grow

DOUBLE = torch.float64


def search(**changes: object) -> Search:
    return Search(tree=PUCT(), act=Visits(), final=Visits(0.0), target=Visits()).replace(**changes)


def table(game: TableGame, seed: int = 0) -> Table:
    made = Table.random(game, 1.0, torch.Generator().manual_seed(seed))
    made.value = 2 * torch.rand(len(made.value), generator=torch.Generator().manual_seed(seed + 1), dtype=DOUBLE) - 1
    return made


class Plain:
    """One tree in plain Python, with the rule of AlphaZero: what the arrays are compared with."""

    def __init__(self, game: TableGame, evaluate: Table, root: int) -> None:
        self.game, self.evaluate = game, evaluate
        self.visits: dict[tuple[int, ...], list[int]] = {}
        self.sums: dict[tuple[int, ...], list[float]] = {}
        self.root, self.range = root, [float("inf"), -float("inf")]
        self.expand(())

    def state(self, path: tuple[int, ...]) -> int:
        at = self.root
        for action in path:
            at = int(self.game.successor[at, action])
        return at

    def expand(self, path: tuple[int, ...]) -> float:
        at = self.state(path)
        self.visits[path], self.sums[path] = [0] * self.game.actions, [0.0] * self.game.actions
        return float(self.evaluate.value[at] if self.game.open[at] else self.game.payoff[at])

    def choose(self, path: tuple[int, ...]) -> int:
        at, visits, sums = self.state(path), self.visits[path], self.sums[path]
        prior, total = self.evaluate.logits[at].softmax(-1).tolist(), sum(visits)
        low, high = self.range
        default = (sum(sums) + float(self.evaluate.value[at])) / (1 + total)
        scores = {}
        for a in range(self.game.actions):
            if self.game.successor[at, a] >= 0:
                q = sums[a] / visits[a] if visits[a] else default
                q = min(max((q - low) / (high - low), 0.0), 1.0) if high - low > 1e-12 else 0.5
                c = 1.25 + torch.tensor((total + 19653.0) / 19652.0, dtype=DOUBLE).log().item()
                scores[a] = q + c * prior[a] * max(total, 1) ** 0.5 / (1 + visits[a])
        return max(scores, key=scores.__getitem__)

    def simulate(self) -> None:
        path: tuple[int, ...] = ()
        while path in self.visits and bool(self.game.open[self.state(path)]):
            path = (*path, self.choose(path))
        value = self.expand(path)
        for depth in range(len(path) - 1, -1, -1):
            value *= self.game.sign
            node, action = path[:depth], path[depth]
            self.visits[node][action] += 1
            self.sums[node][action] += value
            mean = self.sums[node][action] / self.visits[node][action]
            self.range = [min(self.range[0], mean), max(self.range[1], mean)]


@pytest.mark.parametrize("kind", ["tictactoe", "tree", "tree of two"])
def test_trees_grow_as_one_by_one(kind: str) -> None:
    if kind == "tictactoe":
        game = tictactoe()
        roots = torch.tensor([0, 5, 100, 3000, int(game.open.nonzero()[-1])])
    else:
        game = bandit_tree(4, 3, 3, generator=torch.Generator().manual_seed(3), players=1 + kind.endswith("two"))
        game, roots = TableGame(game.successor, game.payoff, 3, game.sign), torch.arange(4)
    evaluate = table(game)
    found = search()(game, roots, evaluate, 60, torch.Generator().manual_seed(0))
    for row, root in enumerate(roots.tolist()):
        plain = Plain(game, evaluate, root)
        for _ in range(60):
            plain.simulate()
        assert found.node.visits[row].tolist() == plain.visits[()]
        value = (sum(plain.sums[()]) + float(evaluate.value[root])) / 61
        assert float(found.value[row]) == pytest.approx(value)


def test_every_simulation_is_one_visit_and_the_same_seed_the_same_tree() -> None:
    game = bandit_tree(50, 3, 3, generator=torch.Generator().manual_seed(0))
    for rule in (PUCT(), UCB1(), Regularized()):
        made = search(tree=rule, evaluate=uniform_playouts, normalise="range")
        one, two = (made(game, torch.arange(50), table(game), 40, torch.Generator().manual_seed(1)) for _ in range(2))
        assert (one.node.visits.sum(-1) == 40).all()
        assert torch.equal(one.node.visits, two.node.visits)
        torch.testing.assert_close(one.target.sum(-1), torch.ones(50, dtype=DOUBLE))


def test_nodes_of_the_arrays_hang_together() -> None:
    game = tictactoe()
    tree = grow(search(), game, torch.zeros(3, dtype=torch.long), table(game), 30, torch.Generator().manual_seed(0))
    row, node, action = (tree.child >= 0).nonzero(as_tuple=True)
    behind = tree.child[row, node, action]
    assert torch.equal(tree.state[row, behind], game.successor[tree.state[row, node], action])
    assert (behind > node).all()
    assert (tree.visits[row, node, action] > 0).all()
    assert (tree.visits[~tree.legal] == 0).all()
    # An edge is visited once more than all edges behind it, or as often as a finished game was reached.
    inner = ~tree.over[row, behind]
    torch.testing.assert_close(
        tree.visits[row, node, action][inner], 1 + tree.visits[row[inner], behind[inner]].sum(-1)
    )


@pytest.mark.parametrize("tree", [PUCT(), UCB1(), Regularized()])
def test_a_long_search_finds_the_best_move(tree: object) -> None:
    game = tictactoe()
    exact = game.action_values
    top = exact.amax(-1)
    sharp = ((exact == top.unsqueeze(-1)).sum(-1) == 1) & game.open & ((game.successor >= 0).sum(-1) == 5)
    roots = sharp.nonzero().squeeze(-1)[:60]
    made = search(tree=tree, evaluate=uniform_playouts)
    found = made(game, roots, table(game), 300, torch.Generator().manual_seed(0))
    right = (found.final * (exact[roots] == top[roots].unsqueeze(-1))).sum(-1)
    assert float(right.mean()) > 0.9


def node(prior: list[float], visits: list[float], q: list[float]) -> Node:
    p = torch.tensor([prior], dtype=DOUBLE)
    return Node(p, torch.tensor([visits], dtype=DOUBLE), torch.tensor([q], dtype=DOUBLE), p > 0)


def test_rules_by_hand() -> None:
    one = node([0.5, 0.3, 0.2, 0.0], [4, 1, 0, 0], [0.5, 0.6, 0.4, 0.9])
    # 0.5 + 0.5 r / 5, 0.6 + 0.3 r / 2, 0.4 + 0.2 r with r = sqrt 5: 0.72, 0.94, 0.85
    assert PUCT(c=1.0, growth=None)(one).tolist() == [[0, 1, 0, 0]]
    assert PUCT(c=3.0, growth=None)(one).tolist() == [[0, 0, 1, 0]]
    assert UCB1()(one).tolist() == [[0, 0, 1, 0]]
    torch.testing.assert_close(Visits()(one), torch.tensor([[0.8, 0.2, 0, 0]], dtype=DOUBLE))
    torch.testing.assert_close(Visits(0.5)(one), torch.tensor([[16 / 17, 1 / 17, 0, 0]], dtype=DOUBLE))
    tied = node([0.3, 0.3, 0.4], [2, 2, 1], [0.1, 0.2, 0.9])
    assert Visits(0.0)(tied).tolist() == [[0, 1, 0]]
    # Before any visit the prior says.
    new = node([0.3, 0.3, 0.4], [0, 0, 0], [0.5, 0.5, 0.5])
    assert PUCT()(new).tolist() == [[0, 0, 1]]
    assert Greedy(Regularized())(new).tolist() == [[0, 0, 1]]
    torch.testing.assert_close(
        best(torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[True, True, False]])), torch.tensor([[0.5, 0.5, 0]])
    )


def test_draws_follow_the_distribution() -> None:
    policy = torch.tensor([[0.0, 0.25, 0.75, 0.0]], dtype=DOUBLE).expand(20_000, -1)
    drawn = torch.bincount(choose(policy, torch.Generator().manual_seed(0)), minlength=4) / 20_000
    torch.testing.assert_close(drawn.double(), policy[0], atol=0.01, rtol=0)


def test_the_noise_is_a_dirichlet_draw() -> None:
    game, rows = tictactoe(), 4000
    for alpha in (0.3, 1.0):
        made = search(noise=1.0, concentration=alpha)
        roots = torch.zeros(rows, dtype=torch.long)
        prior = made(game, roots, table(game), 1, torch.Generator().manual_seed(0), explore=True).node.prior
        # Nine actions: mean 1 / 9, variance (1 / 9) (8 / 9) / (9 alpha + 1).
        torch.testing.assert_close(prior.mean(0), torch.full((9,), 1 / 9, dtype=DOUBLE), atol=0.01, rtol=0)
        assert float(prior.var(0).mean()) == pytest.approx(8 / 81 / (9 * alpha + 1), rel=0.05)


def test_noise_is_for_learning_only() -> None:
    game = tictactoe()
    roots, evaluate = torch.zeros(2, dtype=torch.long), table(game)
    made = search(noise=0.5)
    generator = torch.Generator().manual_seed(0)
    calm, loud = (made(game, roots, evaluate, 1, generator, explore=on).node.prior for on in (False, True))
    torch.testing.assert_close(calm, evaluate(roots, generator)[0])
    torch.testing.assert_close(loud.sum(-1), torch.ones(2, dtype=DOUBLE))
    assert (loud >= 0.5 * calm).all()
    assert not torch.allclose(loud[0], loud[1])


def test_what_cannot_be_searched_is_refused() -> None:
    game, generator = tictactoe(), torch.Generator().manual_seed(0)
    over = (~game.open).nonzero()[:1, 0]
    with pytest.raises(UserError, match="over at a root"):
        search()(game, over, table(game), 3, generator)
    with pytest.raises(UserError, match="simulations=0"):
        search()(game, torch.zeros(1, dtype=torch.long), table(game), 0, generator)
    for bad in ({"noise": 2.0}, {"unvisited": "mean"}, {"normalise": "none"}):
        with pytest.raises(UserError, match=next(iter(bad))):
            search(**bad)
    with pytest.raises(UserError, match="temperature"):
        Visits(-1.0)


def test_self_play_tells_each_player_what_came_of_it() -> None:
    game = tictactoe()
    generator = torch.Generator().manual_seed(0)
    seen = self_play(search(), game, table(game), 40, 3, generator)
    assert seen.simulations == 3 * len(seen.state)
    assert set(seen.outcome.tolist()) <= {-1.0, 0.0, 1.0}
    torch.testing.assert_close(seen.target.sum(-1), torch.ones(len(seen.state), dtype=DOUBLE))
    # One empty cell left: the only move decides, for the one who makes it.
    last = (game.legal(seen.state).sum(-1) == 1).nonzero().squeeze(-1)
    assert len(last) > 0
    assert torch.equal(seen.outcome[last], game.action_values[seen.state[last]].amax(-1))


def test_a_step_of_the_table_is_that_of_the_losses() -> None:
    game = tictactoe()
    made = table(game)
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 9, generator=generator, dtype=DOUBLE).softmax(-1)
    seen = Seen(torch.tensor([0, 0, 0]), target, torch.tensor([1.0, -1.0, 1.0], dtype=DOUBLE), 0)
    logits, value = made.logits[0].clone().requires_grad_(), made.value[0].clone().requires_grad_()
    (-(target * logits.log_softmax(-1)).sum(-1).mean() + 0.5 * (value - seen.outcome).square().mean()).backward()
    before = made.logits.clone()
    made.learn(seen, 0.7, 0.3)
    torch.testing.assert_close(made.logits[0], logits.detach() - 0.7 * logits.grad)
    torch.testing.assert_close(made.value[0], value.detach() - 0.3 * value.grad)
    assert torch.equal(made.logits[1:], before[1:])


def test_the_batch_is_what_each_root_gets_alone() -> None:
    game, roots = tictactoe(), torch.tensor([0, 4, 50])
    evaluate: Tensor | Table = table(game)
    together = search()(game, roots, evaluate, 20, torch.Generator().manual_seed(0)).node.visits
    for row in range(3):
        alone = search()(game, roots[row : row + 1], evaluate, 20, torch.Generator().manual_seed(5)).node.visits
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1])
def test_values_that_are_all_equal_have_no_scale(value: float) -> None:
    game = bandit_tree(4, 3, 2, generator=torch.Generator().manual_seed(0))
    game = dataclasses.replace(game, payoff=torch.full_like(game.payoff, value), noisy=False)
    evaluate = table(game)
    evaluate.value = torch.full_like(evaluate.value, value)
    made = search(unvisited="node")
    roots = torch.arange(4)
    tree = grow(made, game, roots, evaluate, 41, torch.Generator().manual_seed(0), 0.0)
    node = made.look(tree, torch.zeros(4, dtype=torch.long))
    assert node.visits.sum() > 100
    assert torch.equal(node.q, torch.full_like(node.q, 0.5))
