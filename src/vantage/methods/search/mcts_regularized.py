"""MCTS as regularised policy optimisation: uses the exact policy that visit counts approximate. (S054)

AlphaZero's rule moves the visit counts a step towards the maximum of q . y - lam KL(prior, y). The maximum itself needs one number:

    y_a = lam prior_a / (alpha - q_a),   sum y = 1,   max(q + lam prior) <= alpha <= max q + lam,   lam = c sqrt(N) / (A + N)

It can replace visit counts in acting, tree search and learning, each separately: `use` is "act", "search", "learn", "all", or
several joined by "+"; the others are as in `alphazero-rule`. arXiv 2007.12509. Conventions: the prior itself at N = 0; A counts
legal actions; q and c as in `alphazero-rule`; alpha by Newton's method on a concave form of the sum instead of bisection, to the
same digits.
"""

from __future__ import annotations

from vantage.core.errors import unknown
from vantage.fields.search.rules import Greedy, Regularized
from vantage.fields.search.tree import Search
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.methods.search.alphazero_rule import alphazero_rule

PAPER = Paper(
    "Monte-Carlo Tree Search as Regularized Policy Optimization",
    "Jean-Bastien Grill and Florent Altché and Yunhao Tang and Thomas Hubert and Michal Valko and Ioannis Antonoglou"
    " and Rémi Munos",
    2020,
    arxiv="2007.12509",
    venue="International Conference on Machine Learning",
)
USES = ("act", "search", "learn")


@method(
    id="S054", papers=PAPER, base=alphazero_rule, without=("temperature",),
    source="none: the authors have published no code",
)  # fmt: skip
def mcts_regularized(base: Search, use: str = "all", c: float = 1.25, growth: float | None = 19652.0) -> Search:
    """use: where the exact policy is used, `act`, `search`, `learn`, several joined by +, or `all`."""
    chosen = set(USES) if use == "all" else set(use.split("+"))
    for name in chosen:
        if name not in USES:
            raise unknown("use", name, (*USES, "all"), "mcts-regularized")
    solved = Regularized(c, growth)
    if "search" in chosen:
        base = base.replace(tree=solved)
    if "act" in chosen:
        base = base.replace(act=solved, final=Greedy(solved))
    if "learn" in chosen:
        base = base.replace(target=solved)
    return base


_NODE = {"unvisited": "node"}
"""The best of the baseline's settings, on both sides."""

claim = (
    Claim(
        name="4-simulations", arena="tictactoe-4", against="alphazero-rule", settings=_NODE, against_settings=_NODE,
        note="Acting, searching and learning by the exact policy against visit counts, same priors to begin with. The"
        " baseline's settings are the best of four (c 0.6, 1.25, 2.5; unvisited low).",
    ),
    Claim(
        name="16-simulations", arena="tictactoe-16", against="alphazero-rule", direction="no worse", margin=0.1,
        settings=_NODE, against_settings=_NODE,
        note="The authors expect the gain at small budgets; the margin is a tenth of a lost draw.",
    ),
    Claim(
        name="act", arena="tictactoe-4", against="alphazero-rule", settings={"use": "act", **_NODE},
        against_settings=_NODE,
        note="Only acting by the exact policy; the tree and what is learnt are the baseline's.",
    ),
    Claim(
        name="bandit-tree", arena="bandit-tree", against="alphazero-rule", metric="area",
        settings=_NODE, against_settings=_NODE,
        note="Nothing is learnt: the priors are random and fixed. Mean over budgets of up to 64 simulations.",
    ),
)  # fmt: skip
