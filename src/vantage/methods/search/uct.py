"""UCT: tree search with a UCB1 bandit at every node and random playouts from new leaves.

Upper confidence bounds applied to trees, the plain Monte Carlo tree search without a prior: a simulation takes, in each node,

    argmax_a  q_a + c sqrt(2 log N / n_a),    an action never taken first

until it leaves the tree, adds one node, plays one random game from it, and adds the outcome to every edge on the way. The most
visited action is played. Kocsis and Szepesvári 2006, whose bonus 2 C sqrt(log N / n_a), with C = 1/sqrt(2) for q in [0, 1],
is that of UCB1: c = sqrt(2) C = 1. Ties are broken at random.

OpenSpiel's `MCTSBot` computes the same choice for its uct_c = 2 sqrt(2) c, as its values lie between -1 and 1; its example takes 2
(c = 0.71), N counts the node's own playout too (`count_own=true`), and it marks proven wins and losses (MCTS-Solver), which count
before visits; of equally visited moves it plays the one of the greatest sum of rewards, here of the greatest mean.
"""

from __future__ import annotations

from vantage.fields.search.rules import UCB1, Visits, uniform_playouts
from vantage.fields.search.tree import Search
from vantage.methods.registry import Paper, method

PAPER = Paper(
    "Bandit Based Monte-Carlo Planning",
    "Levente Kocsis and Csaba Szepesvári",
    2006,
    venue="European Conference on Machine Learning",
)


@method(papers=PAPER, source="google-deepmind/open_spiel@2.0.2 open_spiel/python/examples/mcts.py")
def uct(c: float = 1.0, count_own: bool = False) -> Search:
    """c: of the bonus, 1 is UCB1's for values in [0, 1], and outcomes between -1 and 1 become q between 0 and 1; count_own:
    N counts the node's own playout."""
    return Search(
        tree=UCB1(c, count_own),
        act=Visits(),
        final=Visits(0.0),
        target=Visits(),
        evaluate=uniform_playouts,
        normalise="range",
    )
