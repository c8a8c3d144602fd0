"""AlphaZero's search: a tree guided by a prior, with visit counts as policy and training target.

    choose in the tree  argmax_a  q_a + c prior_a sqrt(N) / (1 + n_a),    c = c1 + log((N + c2 + 1) / c2)
    act by, and learn   n_a^(1/temperature) / sum n^(1/temperature)

with q scaled by the least and greatest mean value in the tree (MuZero's, arXiv 1911.08265). arXiv 1712.01815. An action never
visited has the mean value of its node, which with few simulations is a stronger search than the least value that the papers give
it (`unvisited="low"`). During training, `noise` of the root's prior is a draw from a flat Dirichlet distribution.
"""

from __future__ import annotations

from typing import Literal

from vantage.fields.search.rules import PUCT, Visits
from vantage.fields.search.tree import Search
from vantage.methods.registry import Paper, method

PAPERS = (
    Paper(
        "Mastering Chess and Shogi by Self-Play with a General Reinforcement Learning Algorithm",
        "David Silver and others",
        2017,
        arxiv="1712.01815",
    ),
    Paper(
        "Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model",
        "Julian Schrittwieser and others",
        2019,
        arxiv="1911.08265",
    ),
)


@method(papers=PAPERS)
def alphazero_rule(
    c: float = 1.25,
    growth: float | None = 19652.0,
    temperature: float = 1.0,
    unvisited: Literal["node", "low"] = "node",
    noise: float = 0.25,
) -> Search:
    """c: c1, weight of the prior; growth: c2, visits after which that weight grows, none keeps it constant; temperature: of
    the visit counts for acting and learning, the last action is the most visited one; unvisited: value of an
    action never visited, `node` the mean of its node, `low` the least; noise: share of Dirichlet noise in the
    root's prior during training."""
    return Search(
        tree=PUCT(c, growth),
        act=Visits(temperature),
        final=Visits(0.0),
        target=Visits(temperature),
        unvisited=unvisited,
        noise=noise,
    )
