"""Prefix Grouper: GRPO that encodes the prompt of a group once, with the same gradient. (S133)

All G answers of a group continue one prompt, and ordinary training encodes it G times. Causal attention lets it be computed once:
prompt tokens see the prompt, each answer's tokens see the prompt and their own answer, and keys and values of the prompt are
read by all. Outputs and gradients are those of the repeated form up to rounding:

    tokens computed   P + R_1 + .. + R_G   instead of   G P + R_1 + .. + R_G
    positions         0 .. P - 1 for the prompt, P + r in every answer
    first token       of every answer is predicted at the prompt's last position, once for all

arXiv 2506.05433. The policy of this library computes so (`prefix_sharing`), by its own attention over packed tokens instead of
the authors' padded pair of calls; rows share whatever prompt they have in common, in whatever group. Its default, "auto", shares
where that saves a fifth of the tokens; this page always shares, and measures the effect. The method is GRPO with grpo's
settings: the authors' repository has no training script. Models whose attention the policy does not compute itself are refused.
"""

from __future__ import annotations

from typing import Any

from vantage.core.component import component, extended
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.policies import trunk
from vantage.updates.gradient import GradientUpdate

PAPER = Paper(
    "Prefix Grouper: Efficient GRPO Training through Shared-Prefix Forward",
    "Zikang Liu and Tongtian Yue and Yepeng Tang and Longteng Guo and Junxian Cai and Qingbin Liu and Xi Chen and Jing Liu",
    2025,
    arxiv="2506.05433",
)


@component
class SharedPrefixes(GradientUpdate):
    """Gradient update on a policy whose rows with the same prompt share its computation.

    Attributes:
        sharing: whether they do; False repeats the prompt.
    """

    sharing: bool = True
    needs = frozenset({"text"})

    def prepare(self, context: Context) -> None:
        """Set sharing in the policy and its frozen copies; make the optimiser.

        Raises:
            UserError: the policy has no prompts, or does not compute the attention of its model itself.
        """
        super().prepare(context)
        policies: list[Any] = [context.policy, *context.policies.values()]
        if not hasattr(policies[0], "prefix_sharing"):
            raise UserError(f"SharedPrefixes: {type(context.policy).__name__} has no prompts that rows could share")
        model = policies[0].model
        if self.sharing and not trunk.supported(model):
            raise UserError(
                f"SharedPrefixes.sharing=True: a {type(model).__name__} as it is set up is run by its own forward, which cannot"
                f" share prompts; sharing=False repeats them (shared are those of {', '.join(trunk.ARCHITECTURES)} without"
                " sliding window, frequencies that change with the length, or hooks)"
            )
        for policy in policies:
            policy.prefix_sharing = self.sharing


@method(
    id="S133", papers=PAPER, needs=("episodes", "text"), base=grpo,
    source="johncaged/PrefixGrouper@1accedc src/prefix_grouper/forward.py",
)  # fmt: skip
def prefix_grouper(base: Method, sharing: bool = True) -> Method:
    """sharing: rows with one prompt share its computation; rows in different minibatches cannot share."""
    # Shuffled by groups, so that rows with the same prompt stay together.
    return base.replace(update=extended(base.update, SharedPrefixes, unit="group", sharing=sharing))


claim = Claim(
    arena="shared-prefix",
    against="prefix-grouper",
    direction="higher",
    margin=2.0,
    settings={"group_size": 8, "beta": 0.0},
    against_settings={"group_size": 8, "beta": 0.0, "sharing": False},
    note="Forward and backward of a group of 8 answers of 16 tokens to a prompt of 256, timed in turn with the repeated form in"
    " one process: the ratio is 1 for the baseline by construction, and at least 3 is claimed. The gradients' largest relative"
    " difference is recorded. The authors' figure is not available.",
)
