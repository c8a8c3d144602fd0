"""iGRPO: GRPO on prompts that contain the best of several drafts of an answer. (S242)

GRPO discards its attempts. iGRPO samples N drafts, appends the best to the question, and trains on G completions of that
prompt, so that the policy learns to improve on its strongest attempt; when it is used it answers the question alone.

    d* = argmax_i R(d_i), the first on ties            o_1 .. o_G from pi(. | question, d*)
    A_j = (R_j - mean) / std within the G,  0 where std = 0
    loss = mean over rows of mean over tokens of -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A) + beta * k3(logp, logp_ref)

arXiv 2602.09000, equations 2 to 6. N + G is the budget of GRPO's group. Reconstructed: the tie rule, eps 0.2, the divisor G - 1;
the authors' template was not read, and `template` is ours. No gradient reaches the drafts. `drafts=0` is GRPO. The authors'
rate falls along a cosine; here it is constant unless `update.schedule` is set. Metrics of the drafts are logged under
`draft/`.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

import torch

from vantage.advantages.groups import GroupStandardized
from vantage.annotations import at_least
from vantage.core.component import component
from vantage.core.context import Context, prefix_engine
from vantage.core.costs import Cost, episodes
from vantage.core.method import Method
from vantage.core.protocols import Prompts
from vantage.core.scoring import scored
from vantage.core.trajectories import Trajectories
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.rollouts.plans import Groups
from vantage.rollouts.templates import Template

PAPER = Paper("iGRPO: Self-Feedback-Driven LLM Reasoning", "Ali Hatamizadeh and others", 2026, arxiv="2602.09000")
TEMPLATE = "{prompt}\n\nHere is a draft of a solution. It may be wrong.\n\n{draft}\n\nSolve the problem, improving on the draft."


@component
class BestDraft(Groups):
    """Groups of answers to prompts that contain the best of `drafts` earlier answers.

    Attributes:
        drafts: N, 0 for none.
        template: `(item, draft=...) -> item`; a `Template` must have {prompt} and {draft}, and nothing else.
    """

    drafts: Annotated[int, at_least(0)] = 4
    template: Any = field(default_factory=lambda: Template(TEMPLATE))
    needs = frozenset({"text"})

    def __post_init__(self) -> None:
        if isinstance(self.template, Template):
            self.template.check("BestDraft.template", ("prompt", "draft"))

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step, drafts included."""
        return episodes(self.prompts * (self.size + self.drafts), episode, rows=self.prompts * self.size)

    def __call__(self, context: Context) -> Trajectories:
        """Draft, choose, and sample."""
        prompts = context.next_prompts(self.prompts)
        if not self.drafts:
            return context.engine.sample(prompts, self.size, context)
        engine = prefix_engine(context, "BestDraft")
        # The step's metrics are those of the answers that are trained on.
        aside = context.under("draft")
        drafted = scored(engine.sample(prompts, self.drafts, aside), aside)
        score = drafted.score.view(len(prompts), self.drafts)
        best, chosen = score.nan_to_num(nan=-torch.inf).max(1)
        aside.record("mean", score.nanmean())
        aside.record("best", best.masked_fill(best == -torch.inf, torch.nan).nanmean())
        first = torch.arange(len(prompts), device=chosen.device) * self.drafts
        texts = engine.texts(drafted.select(first + chosen))
        items = [self.template(item, draft=text) for item, text in zip(prompts.items, texts, strict=True)]
        return engine.sample(Prompts(prompts.ids, items), self.size, context)


@method(
    id="S242", papers=PAPER, needs="text", base=grpo, group_size=4, beta=0.0,
    source="none: equations 2 to 6 of the paper, whose code is not public; volcengine/verl@b178a3c verl/trainer/ppo/core_algos.py",
)  # fmt: skip
def igrpo(base: Method, drafts: int = 4, template: str = TEMPLATE) -> Method:
    """drafts: N, first answers to a prompt, of which the best is shown; 0 is GRPO; template: text of the second
    prompt, with {prompt} and {draft}."""
    plan = base.rollout
    return base.replace(
        rollout=BestDraft(plan.prompts, plan.size, plan.temperature, drafts, Template(template)),
        advantage=GroupStandardized(eps=0.0),
    )


claim = Claim(
    arena="drafted", against="grpo", direction="no worse", margin=0.03, against_settings={"beta": 0.0},
    settings={"drafts": 4, "group_size": 4, "template": "{draft};{prompt}", "lr": 1e-4},
    note="4 drafts and 4 answers against 8; the draft is placed before the question, as the start policy has learnt to read it."
    " Each side's rate is the better of two by pass@1 of one further seed.",
)  # fmt: skip
