"""PDPPO: PPO with a second critic on the post-decision state; the reward is split, and the larger of two advantages counts. (S012)

Where a transition is a known effect of the action followed by chance, x = f(s, a) is the state between them. The reward is split
alike: r^x is what the decision alone fixes (lot sizing: minus the setup costs), and each part has a critic of its own:

    G_t = (r - r^x)_t + gamma G_{t+1},   G^x_t = r^x_t + gamma G^x_{t+1}       to the episode's end, without bootstrap
    A_t = max(G_t - V(s_t), G^x_t - V_x(x_t))                                  not standardised, no gradient
    actor: mean -min(ratio A, clip(ratio) A) - c_e * mean entropy;    V: mean (V - G)^2;    V_x: mean (V_x - G^x)^2

by K full-batch Adam steps each, without weight decay or gradient clip, on this batch and the five before it, whose values and
log-probabilities are those of their time. With several choices per decision (one per machine), ratio, clip and entropy are each
choice's own, and the mean is over choices too. The environment offers `post_observation` and `post_reward`, as inventory systems
and the lake do. A >= G - V always: the second critic can only raise an advantage. `critics`: "dual"; "single", one network for
both states, fitted by (V(s) + V(x) - G - G^x)^2; or "pre", V(s) and the whole reward: PPO as the authors compare with it.

Where the authors' code is not followed: in lot sizing the actor's two hidden layers are in no optimiser and stay random;
here they are trained as in the lake's code, and `train_hidden=False` leaves them. In the lake's code each ratio meets every
advantage of the batch (shapes [N] and [N, 1]), and the stored V_x comes from the pre-decision critic; both are slips. Networks,
observations (there stocks without setups) and the unit of rewards (there not scaled) are the task's. An earlier version of
the code had one return, standardised, less the smaller of the two values. On the lot-sizing arena it is ahead of one critic for
the first third of 60,000 steps, and ends 2 % behind. arXiv 2504.05150.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from vantage.advantages.critic import add_critic
from vantage.advantages.estimators import DISCOUNT
from vantage.annotations import above, at_least, between
from vantage.core.component import component, memory
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories, declare
from vantage.functions.ratios import bounded
from vantage.functions.returns import gae
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method
from vantage.objectives.surrogates import record_ratio
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Shuffled, Steps
from vantage.selection.replay import RecentBatches
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam

declare(
    "choice_logp_old",
    "[N, T, choices]",
    "log-probability of each choice under the policy that acted",
    "the recipe's values",
)
declare("value_post", "[N, T]", "second critic's value of the post-decision state", "the recipe's values")
declare("returns_post", "[N, T]", "what the second critic is fitted to", "the recipe's advantage")

PAPER = Paper(
    "A Reinforcement Learning Method for Environments with Stochastic Variables: "
    "Post-Decision Proximal Policy Optimization with Dual Critic Networks",
    "Leonardo Kanashiro Felizardo and Edoardo Fadda and Paolo Brandimarte and Emilio Del-Moral-Hernandez"
    " and Mariá Cristina Vasconcelos Nascimento",
    2025,
    arxiv="2504.05150",
)
POST = "post_decision"
"""The second critic's name among the policy's heads."""
Critics = Literal["dual", "single", "pre"]


@component
class DualCritic:
    """Fills `value` = V(s) and `value_post` = V_x(x), and after the actor's update fits each to its returns.

    Attributes:
        critics: "dual" (V_x is a network of its own), "single" (V_x is V) or "pre" (V alone).
        epochs: full-batch steps a fit.
        lr: of Adam.
    """

    critics: Critics = "dual"
    epochs: Annotated[int, at_least(1)] = 40
    lr: Annotated[float, above(0)] = 1e-3
    _memory: dict[str, Any] = memory()

    @property
    def needs(self) -> frozenset[str]:
        """A critic, and where post-decision states are valued, their column and a head for the second network."""
        more = {"dual": {"heads", "post-decision"}, "single": {"post-decision"}, "pre": set[str]()}
        return frozenset({"critic", *more[self.critics]})

    def prepare(self, context: Context) -> None:
        """Add the second critic, of the first one's shape, and make the optimiser of both."""
        policy: Any = context.policy
        add_critic(context)
        parameters = list(policy.critic_parameters())
        if self.critics == "dual":
            if not hasattr(policy, "add_head"):
                raise UserError(
                    f"pdppo: {type(policy).__name__} cannot hold a second critic: take an inventory task or lake"
                )
            policy.add_head(POST)
            parameters += [p for n, p in policy.named_parameters() if n.startswith(f"heads.{POST}.")]
        # The critics share no parameter, so one Adam on the sum of their losses is one on each.
        self._memory["optimizer"] = Adam(self.lr).build(parameters)

    def of(self, batch: Trajectories, policy: Any) -> tuple[Tensor, Tensor | None]:
        """Return V(s) and V_x(x), [N, T] each, with gradient unless disabled; "pre" has no second one."""
        first: Tensor = policy.evaluate(batch, frozenset({"value"})).value
        if self.critics == "pre":
            return first, None
        seen = batch.replace(observation=batch["post_observation"])
        if self.critics == "single":
            return first, policy.evaluate(seen, frozenset({"value"})).value
        return first, policy.evaluate(seen, frozenset({POST})).extras[POST]

    @torch.no_grad()
    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill the values and the log-probabilities of the single choices; no gradient.

        Raises:
            UserError: the environment does not return post-decision states.
        """
        if self.critics != "pre" and "post_observation" not in batch:
            raise UserError(
                "pdppo needs post-decision states (column post_observation), which this environment does not offer:"
                " take an inventory task or lake, or critics=pre"
            )
        value, post = self.of(batch, context.policy)
        batch = batch.replace(value=value, value_post=post, last_observation=None, final_observation=None)
        logp = context.evaluate(
            batch, "distribution", read=lambda found, rows: logp_of_choices(found.distribution, rows.action)
        )
        return batch.replace(choice_logp_old=logp)

    def fit(self, batch: Trajectories, context: Context) -> None:
        """Take `epochs` full-batch steps on the squared errors."""
        optimizer: torch.optim.Optimizer = self._memory["optimizer"]
        flat = batch.flatten()
        flat = flat.select(flat.mask.any(-1)).detach()
        for _ in range(self.epochs):
            value, post = self.of(flat, context.policy)
            errors = {"value": (value - flat.returns).square().mean()}
            if post is not None:
                errors["value_post"] = (post - flat["returns_post"]).square().mean()
            if self.critics == "single" and post is not None:
                loss = (value + post - flat.returns - flat["returns_post"]).square().mean()
            else:
                loss = torch.stack(list(errors.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for name, error in errors.items():
            context.record(f"error/{name}", error.detach())
        context.record("loss/value", loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state."""
        return dict(self._memory["optimizer"].state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self._memory["optimizer"].load_state_dict(dict(state))


@component
class LargerAdvantage:
    """Monte-Carlo `returns` and `returns_post` of the two parts of the reward; `advantage` = the larger of the two advantages.

    Rewards are discounted by `gamma` and summed to the episode's end. A row's end counts as that: no bootstrap.

    Attributes:
        gamma: discount, 0 to 1.
        split: whether the reward is split; otherwise `returns` is of the whole and the advantage is returns - value.
    """

    gamma: Annotated[float, between(0, 1)] = 0.9
    split: bool = True
    engine_options = DISCOUNT

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill them, [N, T] each; no gradient."""
        if not self.split:
            returns, advantage = self._of(batch, batch.reward, batch.value)
            return batch.replace(returns=returns, advantage=advantage)
        fixed = batch["post_reward"]
        returns, before = self._of(batch, batch.reward - fixed, batch.value)
        returns_post, after = self._of(batch, fixed, batch["value_post"])
        context.record_mean("advantage/post", (after > before).float(), batch.mask)
        return batch.replace(returns=returns, returns_post=returns_post, advantage=torch.maximum(before, after))

    def _of(self, batch: Trajectories, reward: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(reward)
        _, returns = gae(reward, zero, zero, batch.terminated, batch.truncated, batch.mask, self.gamma, 1.0)
        return returns, torch.where(batch.mask, returns - value, 0.0)


@component
class ClipChoices:
    """PPO's clipped surrogate of each of a decision's K choices, with the decision's advantage; the mean over choices.

    With one choice (or a Gaussian action) it is PPO's.
    """

    eps: float = 0.2
    wants = frozenset({"distribution"})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        log = logp_of_choices(evaluation.distribution, batch.action) - batch["choice_logp_old"]
        log = bounded(torch.where(batch.mask.unsqueeze(-1), log, 0.0))
        advantage = batch.advantage.unsqueeze(-1)
        ratio = log.exp()
        plain, held = advantage * ratio, advantage * ratio.clamp(1 - self.eps, 1 + self.eps)
        with torch.no_grad():
            context.record_mean("clip_fraction", (held < plain).float().mean(-1), batch.mask)
        record_ratio(log.mean(-1), batch.mask, context)
        return -torch.minimum(plain, held).mean(-1)


@component
class ChoiceEntropy:
    """-coefficient * the mean over a decision's K choices of their entropy; gradient flows through the entropy.

    With one choice (or a Gaussian action) it is `EntropyBonus`.
    """

    coefficient: float = 0.001
    wants = frozenset({"entropy", "distribution"})
    label = "entropy"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the term per decision [N, T]."""
        # The entropy of independent choices is the sum of theirs.
        entropy = evaluation.entropy / len(getattr(evaluation.distribution, "sizes", (1,)))
        context.record_mean("entropy", entropy, batch.mask)
        return -self.coefficient * entropy


def logp_of_choices(distribution: Any, action: Tensor) -> Tensor:
    """Return the log-probability of each choice of a decision, [..., K]; K = 1 where a decision is one choice."""
    if hasattr(distribution, "sizes"):
        found: Tensor = distribution.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return found
    one: Tensor = distribution.log_prob(action)
    return one.unsqueeze(-1)


@component
class OutputLayerOnly:
    """Gradient transform: the actor's hidden layers get none, as if they were in no optimiser."""

    def __call__(self, parameters: list[torch.nn.Parameter], context: Context) -> None:
        """Drop the gradients."""
        policy: Any = context.policy
        for layer in policy.actor.linears[:-1]:
            for parameter in layer.parameters():
                parameter.grad = None


@method(
    id="S012", papers=PAPER, needs=("streams", "post-decision", "critic", "heads"),
    source="leokan92/pdppo@bf3f368 code/Lot-sizing/agents/PDPPOAgent.py",
)  # fmt: skip
def pdppo(
    rows: int = 4,
    length: int = 100,
    batches: int = 6,
    epochs: int = 40,
    lr: float = 5.5e-4,
    critic_lr: float = 1e-3,
    gamma: float = 0.9,
    eps: float = 0.2,
    entropy_coefficient: float = 0.001,
    critics: Critics = "dual",
    train_hidden: bool = True,
) -> Method:
    """rows: parallel environments; length: steps of each before an update; batches: learnt from at once, this one and those
    before it; epochs: full-batch steps of actor and critics; lr: the actor's; critic_lr: the critics'; gamma: discount; eps:
    clip range of the ratio; entropy_coefficient: weight of the entropy; critics: `dual`, `single` or `pre`; train_hidden:
    whether the actor's hidden layers learn too. The defaults are those of the lot-sizing experiments."""
    return Method(
        prompts=Shuffled(),
        rollout=Steps(rows, length),
        rewards=(Total(),),
        values=DualCritic(critics, epochs, critic_lr),
        advantage=LargerAdvantage(gamma, split=critics != "pre"),
        selection=(RecentBatches(batches),),
        objective=ClipChoices(eps),
        averaging="token-mean",
        regularizers=(ChoiceEntropy(entropy_coefficient),),
        update=GradientUpdate(
            optimizer=Adam(lr),
            epochs=epochs,
            max_grad_norm=None,
            transforms=() if train_hidden else (OutputLayerOnly(),),
        ),
    )


claim = (
    Claim(
        name="score",
        arena="lot-sizing",
        against="pdppo",
        against_settings={"critics": "pre"},
        note="The baseline is the same code with one critic on the state before the decision and the whole reward, PPO as the"
        " authors compare with it. Both at the authors' rates.",
    ),
    Claim(
        name="single",
        arena="lot-sizing",
        against="pdppo",
        against_settings={"critics": "single"},
        note="The authors' variant with one network for both states. Both at the authors' rates.",
    ),
)
