"""Wanda: prunes the smallest products of weight and input norm, output by output.

A weight with large inputs matters more than its size alone shows. Each weight's score is its magnitude times the norm of its
input over a few calibration rows, and scores are compared within the weights of one output:

    S_ij = |W_ij| * ||X_j||_2,      the floor(sparsity * inputs) smallest of each row i become 0; nothing else changes

Blocks are pruned in the order in which they run, each on inputs that the pruned blocks before it make (`sequential`). The
statistics are accumulated, and a pass over the calibration rows ends at the block that is pruned: no activation is stored, but
the earlier blocks run again, L^2 / 2 block passes for L blocks. `kept:of` (2:4) compares within groups of `of` neighbouring
weights, and overrides the requested sparsity: the share pruned is 1 - kept / of. Of equal scores in a row the first go.

A Simple and Effective Pruning Approach for Large Language Models (arXiv 2306.11695, equation 1 and section 3). Differences from the
authors' code: its n:m says how many of m go (1:4 there is kept=3, of=4); it calibrates on 128 sequences of 2048 tokens of C4, here
on rows of the network's training data; the variant of the appendix (`--use_variant`) is not here.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from vantage.annotations import at_least
from vantage.core.component import component
from vantage.fields.compression.masks import share
from vantage.fields.compression.network import Network
from vantage.fields.compression.scores import Scope, prune_by_score
from vantage.fields.compression.statistics import input_statistics
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method

PAPER = Paper(
    "A Simple and Effective Pruning Approach for Large Language Models",
    "Mingjie Sun and Zhuang Liu and Anna Bair and J. Zico Kolter",
    2023,
    arxiv="2306.11695",
)


@component(label="wanda")
class Wanda:
    """Removes the weights with the smallest |w| * input norm of each output; a `Pruner`."""

    samples: Annotated[int, at_least(1)]
    rows: Annotated[int, at_least(1)]
    sequential: bool
    scope: Scope

    def __call__(self, network: Network, sparsity: float, *, seed: int = 0) -> dict[str, float]:
        """Prune the network in place on `samples` rows."""
        share("sparsity", sparsity)
        calibration = list(network.batches(network.sample(self.samples, seed), self.rows))
        stages = network.stages()
        for layers in stages if self.sequential else [[name for stage in stages for name in stage]]:
            runs = [partial(network.predict, network.model, rows) for rows in calibration]
            found = input_statistics(network.model, layers, runs)
            scores = {}
            for name, statistics in found.items():
                weight = network.model.get_submodule(name).weight.detach()  # type: ignore[operator, union-attr]
                assert statistics.squares is not None
                scores[name] = weight.flatten(1).abs().float() * statistics.squares.sqrt()
            prune_by_score(network, scores, sparsity, self.scope)
        return {}


@method(papers=PAPER, source="locuslab/wanda@8e8fc87 scripts/llama_7b.sh")
def wanda(
    samples: int = 128, rows: int = 16, sequential: bool = True, scope: str = "row", kept: int = 0, of: int = 0
) -> Wanda:
    """samples: calibration rows; rows: of them that run at once; sequential: each block sees the inputs that the
    pruned blocks before it make; scope: what scores are compared within; kept: weights that stay of each `of`,
    whatever the requested sparsity; of: neighbours in a row, 0 for none."""
    return Wanda(samples, rows, sequential, Scope(scope, kept, of))


claim = (
    Claim(
        name="published", arena="prune-text", against="magnitude", direction="lower",
        note="The authors, whose magnitude pruning compares within layers: LLaMA-7B at 50 % sparsity has perplexity 7.26 by Wanda"
        " and 17.29 by magnitude. Models of this size lack the few large inputs that the paper describes.",
    ),
    Claim(
        name="same-comparison", arena="prune-text", against="magnitude", direction="lower", against_settings={"scope": "row"},
        note="Magnitudes compared within outputs, as Wanda's scores are: what the inputs' norms add.",
    ),
)  # fmt: skip
