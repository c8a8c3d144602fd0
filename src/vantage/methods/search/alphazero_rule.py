"""AlphaZero's search: a tree guided by a prior, with visit counts as policy and training target.

    choose in the tree  argmax_a  q_a + c prior_a sqrt(N) / (1 + n_a),    c = c1 + log((N + c2 + 1) / c2)
    act by, and learn   n_a^(1/temperature) / sum n^(1/temperature)

with q scaled by the least and greatest mean value in the tree (MuZero's, arXiv 1911.08265). arXiv 1712.01815. An action never
visited has the least value, as the papers give it; the mean value of its node (`unvisited="node"`) is a stronger search with few
simulations. During training, `noise` of the root's prior is a draw from a Dirichlet distribution with `alpha`.

Differences from mctx's `muzero_policy`: it scales q by the values of the node and its actions alone (`scale="node"`), N counts the
node's own evaluation too (`count_own=true`, with which the papers' pseudocode agrees, their formula does not), and equals are
told apart by noise of 1e-7, here by a draw; its target is the share of visits whatever the temperature. With both settings and no
Dirichlet noise the visit counts are its own.
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


@method(papers=PAPERS, source="google-deepmind/mctx@0.0.71 mctx/_src/policies.py")
def alphazero_rule(
    c: float = 1.25,
    growth: float | None = 19652.0,
    temperature: float = 1.0,
    unvisited: Literal["node", "low"] = "low",
    scale: Literal["tree", "node"] = "tree",
    count_own: bool = False,
    noise: float = 0.25,
    alpha: float = 0.3,
) -> Search:
    """c: c1, weight of the prior; growth: c2, visits after which that weight grows, none keeps it constant; temperature: of
    the visit counts for acting and learning, the last action is the most visited one; unvisited: value of an
    action never visited, `node` the mean of its node, `low` the least; scale: values that q lies between, those of the
    `tree` or of the `node` and its actions; count_own: N counts the node's own evaluation; noise: share of Dirichlet noise
    in the root's prior during training; alpha: of that noise, 1 is flat."""
    return Search(
        tree=PUCT(c, growth, count_own),
        act=Visits(temperature),
        final=Visits(0.0),
        target=Visits(temperature),
        normalise=scale,
        unvisited=unvisited,
        noise=noise,
        concentration=alpha,
    )
