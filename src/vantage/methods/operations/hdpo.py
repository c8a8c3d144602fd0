"""HDPO: differentiates the simulated cost of whole trajectories with respect to the policy. (S025)

Demand does not depend on the orders, and the dynamics are known and piecewise smooth. So a trajectory can be simulated again
on the realised demand, and its cost differentiated through every period: no score function, no critic, no noise.

    loss = 1 / (N T) * sum over scenarios and periods of cost(state_t, order_t, demand_t),      order_t = policy(state_t)

with full gradient through orders and inventories; where stock and demand are equal, cost has the slope h - p. The orders of a
network are softplus(output + 1); a base-stock policy (the task's option `policy=base-stock`) orders max(S - position, 0).

With one warehouse and K stores (`inventory:stores=5,lost=true`) cost is summed over all, and the warehouse's stock limits its
shipments: in proportion to the orders, or by a softmax over the stores and the remainder. `policy=network` is the paper's
vanilla network (one perceptron of all stocks and pipelines, softmax); `policy=symmetry-aware` its network shared by all
stores, with a context (proportional). See `tasks/inventory/warehouse.py` and `policies/store_network.py`.

Rewards here are -cost over the cost of a period without stock, a constant without effect under Adam. The paper trains on a fixed
set of 32,768 scenarios (4 steps an epoch) with early stopping; here every step draws new ones, which the known demand allows. Its
stock and pipeline begin uniform between 0 and the mean demand, over at least 4 places; here between 0 and twice the mean, over
the lead time's. An order of exactly 0 has no gradient there. The defaults are the paper's
for a store: 8192 scenarios a step, Adam at 3e-3, no clipping; for the vanilla network of a warehouse it takes 3e-4 and 1024
scenarios, for the symmetry-aware one 1e-3. Initial weights are orthogonal, the last layer's small, instead of torch's default.

With a policy that orders more when it has more stock, the gradient grows by a factor in each period of back-propagation. With few
scenarios a step one such gradient (millions of times the usual norm) dominates Adam's second moment, and the weights hardly
change for the thousand steps of its decay: small batches need `max_grad_norm` (the released graph network has 1.0).

Of the paper's systems the single store and the single warehouse are implemented; chains, several warehouses and the graph policy
that later replaced the symmetry-aware network are not. arXiv 2306.11246.
"""

from __future__ import annotations

from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.likelihood import NoCredit
from vantage.rollouts.plans import Groups, Shuffled
from vantage.updates.optimizers import Adam, Constant, Linear
from vantage.updates.pathwise import Pathwise, ReplayedCost

PAPER = Paper(
    "Deep Reinforcement Learning for Inventory Networks: Toward Reliable Policy Optimization",
    "Matias Alvo and Daniel Russo and Yash Kanoria and Minuk Lee",
    2023,
    arxiv="2306.11246",
)


@method(
    id="S025", papers=PAPER, needs=("episodes", "simulator"),
    source="MatiasAlvo/Neural_inventory_control@4d77c14 config_files/policies_and_hyperparams/vanilla_one_store.yml",
)  # fmt: skip
def hdpo(
    scenarios: int = 8192,
    lr: float = 3e-3,
    anneal: bool = False,
    max_grad_norm: float | None = None,
    epochs: int = 1,
    minibatches: int = 1,
) -> Method:
    """scenarios: whole episodes a step; lr: Adam's; anneal: the learning rate falls linearly to 0; max_grad_norm:
    largest norm of the gradient, none for no limit; epochs: passes over the scenarios of a step; minibatches: optimiser
    steps a pass."""
    return Method(
        prompts=Shuffled(),
        rollout=Groups(scenarios, 1),
        rewards=(),
        values=None,
        advantage=NoCredit(),
        objective=ReplayedCost(),
        averaging="token-mean",
        update=Pathwise(
            optimizer=Adam(lr),
            schedule=Linear() if anneal else Constant(),
            epochs=epochs,
            minibatches=minibatches,
            max_grad_norm=max_grad_norm,
        ),
    )


_OURS = {"scenarios": 32, "lr": 1e-2, "anneal": True, "max_grad_norm": 1.0}
claim = (
    Claim(
        name="reinforce", arena="inventory-backlog", against="reinforce", metric="gap", direction="lower",
        settings=_OURS, against_settings={"episodes": 64, "gamma": 0.9, "lr": 3e-3},
        note="The authors: near the optimum wherever it is known, and more robust than score functions. The gap is the cost above"
        " the best base-stock level's, on the same demands. REINFORCE has the best of three learning rates.",
    ),
    Claim(
        name="ppo", arena="inventory-backlog", against="ppo", metric="gap", direction="lower", settings=_OURS,
        against_settings={"rows": 64, "length": 50, "epochs": 4, "minibatches": 8, "gamma": 0.9, "lr": 1e-3},
        note="The same network and the same number of simulated periods.",
    ),
)  # fmt: skip
