"""Poppy: trains only the best member of a population on each instance, so that members specialise. (S042)

If several policies are run on an instance and the best answer is kept, the objective should be the expected maximum. Its
gradient is only that of the best agent, weighted by its margin over the second best:

    J = E max_k R(tau_k)        grad J = E (R_k* - R_k2) grad logp(tau_k*)        k* the best agent, k2 the second
    loss = -mean over instances and starts of (R_k* - R_k2) * sum_t logp_t(tau_k*)

The second best is a baseline that leaves the gradient unbiased: it does not depend on the winner's tour, given that it wins. Ties
have weight 0. Agents share the encoder and have separate decoders. arXiv 2210.03475.

Two phases. First POMO trains one decoder; then all K are its clones, and sampling alone breaks their symmetry. Either in one
run (`warm`, the share of the first phase; the optimiser is reset before the second), or in two:

    vantage train pomo  --task tsp:nodes=20 --out A
    vantage train poppy --task tsp:nodes=20 --model A/model --set agents=4 --out B

`credit="baseline"` is the released code's variant: the winner's weight is R_k* less the mean of its tours from all starts.
`credit="own"` has no competition: each decoder has POMO's loss, an independent population. With one agent all are
POMO. The losers' rows are dropped before the update: their gradient is exactly 0. Encoder and decoders have the learning rate
1e-4, in both phases; weight decay (decoupled, 1e-6) is the encoder's alone. The released settings keep training the encoder in
the second phase; `freeze_encoder` keeps the encoder of the first phase, as the repository's text says. There 50 starts are
drawn with replacement from the 100 nodes, the same for all agents; here every node is a start, or the first `starts`.

At test time the population's greedy tours from all starts compete. `rollouts/tour_search.py` has the longer search:
the greedy tours choose, for each instance, the K best pairs of an agent and a start, each pair draws 200 tours, and
the shortest of all counts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from vantage.annotations import at_least, below
from vantage.core.component import component, memory
from vantage.core.context import Context
from vantage.core.costs import Cost, episodes
from vantage.core.method import Method
from vantage.core.trajectories import Trajectories
from vantage.core.walk import prepare
from vantage.functions.groups import group_index, group_mean
from vantage.functions.rows import per_decision
from vantage.methods.claim import Claim
from vantage.methods.operations.pomo import pomo
from vantage.methods.registry import Paper, method
from vantage.rollouts.routing import MultiStart

PAPER = Paper(
    "Winner Takes It All: Training Performant RL Populations for Combinatorial Optimization",
    "Nathan Grinsztajn and Daniel Furelos-Blanco and Shikha Surana and Clement Bonnet and Thomas D. Barrett",
    2023,
    arxiv="2210.03475",
    venue="Advances in Neural Information Processing Systems 36",
)


def encoder_parameters(policy: Any) -> list[torch.nn.Parameter]:
    """The parameters that all agents share: the embedding of nodes and the encoder."""
    return [p for name, p in policy.named_parameters() if not name.startswith(("decoder.", "critic."))]


@component
class Population(MultiStart):
    """Rollout plan: tours from every start by every agent, after a first phase in which only one agent acts.

    Attributes:
        agents: K decoders; a policy with one decoder gets clones of it.
        warm: share of the run's steps in which the first agent alone acts and learns, in [0, 1); then all become its clones.
        freeze_encoder: in the second phase the encoder has no gradient.
    """

    agents: Annotated[int, at_least(1)] = 16
    warm: Annotated[float, at_least(0), below(1)] = 0.0
    freeze_encoder: bool = False
    _state: dict[str, bool] = memory()

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step, which differs between the phases."""
        whole = self.prompts * self.starts * self.agents
        return episodes(whole, episode) if whole and self.warm == 0 else Cost()

    def prepare(self, context: Context) -> None:
        """Add the decoders to the policy."""
        super().prepare(context)
        policy: Any = context.policy
        policy.populate(self.agents)
        self._state["begun"] = self.warm == 0 or self.agents == 1

    def __call__(self, context: Context) -> Trajectories:
        """Build the next tours, and begin the second phase at its step."""
        if not self._state["begun"]:
            if context.progress < self.warm:
                return self.build(context, 1)
            policy: Any = context.policy
            policy.clone_first()
            # Adam's moments of one decoder, and zeros of the others, do not apply to the clones.
            prepare(context.method.update, context)
            self._state["begun"] = True
        if self.freeze_encoder:
            # Parameters without gradient stay in the optimiser, which skips them, so that its state fits a resumed run.
            for parameter in encoder_parameters(context.policy):
                parameter.requires_grad_(False)
        return self.build(context, None)


@component
class WinnerTakesAll:
    """Advantage of the winner among the agents, for each prompt and start; 0 for the others, and no gradient.

    Fills `advantage` [N, T] and `winner` [N] bool, one row of each prompt and start; the first on ties. Where one agent
    acts alone, its advantage is POMO's.

    Attributes:
        credit: "margin" over the second best, or "baseline": over the mean of the winner's own tours from all starts.
    """

    credit: Literal["margin", "baseline"] = "margin"

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
    """Selection: the winners' rows, one of each prompt and start."""
    return batch.select(batch.winner)


@component
class EncoderDecay:
    """Decoupled weight decay of the encoder alone: w <- w (1 - lr rate) before the optimiser's step, as AdamW does.

    Attributes:
        rate: at least 0.
    """

    rate: Annotated[float, at_least(0)] = 1e-6

    @torch.no_grad()
    def __call__(self, parameters: list[torch.nn.Parameter], context: Context) -> None:
        """Shrink the encoder's weights that have a gradient."""
        update: Any = context.method.update
        lr = update.optimizer.lr * update.schedule(context.step, context.total_steps)
        for parameter in encoder_parameters(context.policy):
            if parameter.grad is not None:
                parameter.mul_(1 - lr * self.rate)


@method(
    id="S042", papers=PAPER, base=pomo, without=("weight_decay", "drop"), weight_decay=0.0, drop=1.0,
    source="instadeepai/poppy@c0a95c9 experiments/config/config_exp.yaml",
)  # fmt: skip
def poppy(
    base: Method,
    agents: int = 16,
    warm: float = 0.0,
    freeze_encoder: bool = False,
    credit: Literal["margin", "baseline", "own"] = "margin",
    weight_decay: float = 1e-6,
) -> Method:
    """agents: K, decoders; 1 is POMO; warm: share of the run in which the first decoder alone acts and learns;
    freeze_encoder: the encoder has no gradient in the second phase; credit: `margin` over the second best, `baseline`
    the released code's, `own` an independent population; weight_decay: of the encoder alone, decoupled."""
    plan = base.rollout
    base = base.replace(rollout=Population(plan.prompts, plan.starts, plan.temperature, agents, warm, freeze_encoder))
    if weight_decay:
        base = base.adapt("update", transforms=(EncoderDecay(weight_decay),))
    if credit == "own":
        return base
    return base.replace(advantage=WinnerTakesAll(credit), selection=(winners,))


_PHASES = {"agents": 4, "warm": 0.5, "prompts": 64}

claim = (
    Claim(
        name="independent",
        arena="tsp20-best-of-4",
        against="poppy",
        direction="lower",
        settings=_PHASES,
        against_settings={**_PHASES, "credit": "own"},
        note="Against four independently trained decoders, from the same warm start, at equal rollouts: the best of"
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
