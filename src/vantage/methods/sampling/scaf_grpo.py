"""Scaf-GRPO: GRPO that samples failed groups again with hints, and trains on the weakest hint's success. (S009)

A prompt on which every answer fails has no gradient in GRPO. After a warm-up without hints, the policy answers the same
question with hints of rising strength, one answer a level, and the success at the lowest level replaces the
group's first failure, under the prompt that it was sampled from:

    levels: for each stage (knowledge, planning, solution) the first 1, 2, .., C parts of its hint; a stage does not carry on
    group = (h*, o*), o_2, .., o_G;      A_i = (r_i - mean) / (std + 1e-6)
    loss  = token mean of -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A), at most -3 A where A < 0, each ratio under the row's own
            prompt

arXiv 2510.19807; steps and defaults as in the authors' code and launch script. Hints come with the data: a field `hints` of the
problem, {stage: [part, ..]}. A stage without parts is asked with its bare label, as in the code, one that is not there is not
asked. A prompt without any hint is unchanged (theirs asks it with the labels).

Their trainer has the planning stage commented out, which is `stages=("knowledge", "solution")`; the paper has three. They replace
the first failure after the rows were dealt out to devices by length, so any of them; here the first that was sampled. Their token
mean is over 16 rows at a time, then averaged; here over the minibatch. Their reward is 0 or 1 and success anything above 0. Their
system text asks for a boxed answer; here it is the task's. The variants that put the answer under the bare prompt, or replace two
failures, are not implemented.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.advantages.groups import GroupStandardized
from vantage.annotations import at_least
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.costs import Cost
from vantage.core.errors import UserError, nearest
from vantage.core.method import Method
from vantage.core.protocols import Prompts
from vantage.core.scoring import scored
from vantage.core.trajectories import Trajectories, concatenate
from vantage.functions.groups import group_index
from vantage.methods.claim import Claim
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.rollouts.plans import Groups
from vantage.rollouts.templates import Template

PAPER = Paper(
    "Scaf-GRPO: Scaffolded Group Relative Policy Optimization for Enhancing LLM Reasoning",
    "Xichen Zhang and Sitong Wu and Yinghao Zhu and Haoru Tan and Shaozuo Yu and Ziyi He and Jiaya Jia",
    2025,
    arxiv="2510.19807",
)
TEMPLATE = "Question: {prompt}\n{label}: {hint}"
STAGES = ("knowledge", "planning", "solution")


@component
class HintLadder:
    """Prompts with hints of rising strength, from a problem's field `hints`: {stage: [part, ..]}.

    Attributes:
        stages: their names in the data, weakest first; the label in the prompt is "Knowledge Hints" and so on. Of the names in
            `STAGES` some may be left out, and are then not used.
        parts: C, levels a stage; one with fewer parts repeats its last prompt, one without any its bare label.
        template: of a hinted prompt.
    """

    stages: tuple[str, ...] = STAGES
    parts: int = 4
    template: Template = field(default_factory=lambda: Template(TEMPLATE))

    def __call__(self, item: Any, fields: Mapping[str, Any]) -> list[Any]:
        """Return the prompts of the levels, [] for a problem without hints.

        Raises:
            UserError: the hints are not {stage: [part, ..]}, or name a stage that is not known.
        """
        hints = self._checked(item, fields.get("hints") or {})
        asked = [stage for stage in self.stages if hints.get(stage) is not None] if any(hints.values()) else []
        return [
            self.template(item, label=f"{stage.capitalize()} Hints", hint=" ".join(hints[stage][:part]))
            for stage in asked
            for part in range(1, self.parts + 1)
        ]

    def _checked(self, item: Any, hints: Any) -> Mapping[str, Sequence[str]]:
        where = f"the hints of the problem {reprlib.repr(item)}"
        if not isinstance(hints, Mapping):
            raise UserError(f"HintLadder: {where} are {reprlib.repr(hints)}; they must be {{stage: [part, ..]}}")
        known = dict.fromkeys((*self.stages, *STAGES))
        for stage, parts in hints.items():
            if stage not in known:
                raise UserError(
                    f"HintLadder: {where} have a stage {stage!r}{nearest(str(stage).lower(), known)} (known: {', '.join(known)});"
                    " rename it in the data, or name it in `stages`"
                )
            # A str is a sequence too, of its characters.
            listed = parts is None or (isinstance(parts, Sequence) and not isinstance(parts, str | bytes))
            if not listed or not all(isinstance(part, str) for part in parts or ()):
                raise UserError(
                    f"HintLadder: {where} have {reprlib.repr(parts)} in the stage {stage!r}, which must be a list of texts;"
                    " write one hint as [hint]"
                )
        return hints


@component
class Scaffolded(Groups):
    """Groups whose failures are sampled again with hints after `warmup` steps, as the page says.

    Attributes:
        warmup: steps without hints.
        right_at: least score of a success.
        ladder: `(item, fields) -> items`, one a level, rising in strength.
    """

    warmup: Annotated[int, at_least(0)] = 50
    right_at: float = 1.0
    ladder: Any = field(default_factory=HintLadder)
    needs = frozenset({"text"})

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step; the number of hinted answers depends on the failures."""
        return Cost(self.prompts * self.size)

    def __call__(self, context: Context) -> Trajectories:
        """Sample with hints; `hint` [N] is the level of a replaced row, -1 for others; metrics of hinted answers: `rescue/`."""
        prompts = context.next_prompts(self.prompts)
        batch = context.engine.sample(prompts, self.size, context)
        batch = batch.replace(hint=torch.full((len(batch),), -1, device=batch.device))
        if context.step < self.warmup:
            return batch
        aside = context.under("drawn")
        batch = aside.verify(batch)
        index, groups = group_index(batch.group)
        right = (scored(batch, aside).score >= self.right_at).float()
        failed = (torch.zeros(groups, device=batch.device).index_add(0, index, right) == 0).nonzero().squeeze(-1)
        context.record("rescue/failed", len(failed) / groups)
        hinted, owner, level = self._hinted(prompts, failed.tolist(), context)
        if not len(hinted):
            context.observe(batch)
            return batch
        aside = context.under("rescue")
        tried = aside.verify(context.engine.sample(hinted, 1, aside))
        owner, level = owner.to(batch.device), level.to(batch.device)
        won = (scored(tried, aside).score >= self.right_at).nonzero().squeeze(-1)
        # Levels rise within a group, so its first success is at its lowest level.
        best = failed.new_full((groups,), len(tried)).scatter_reduce(0, owner[won], won, "amin")
        saved = best < len(tried)
        context.record("rescue/saved", saved.sum() / max(len(failed), 1))
        rows = torch.arange(len(batch), device=batch.device)
        first = rows.new_full((groups,), len(batch)).scatter_reduce(0, index, rows, "amin")[saved]
        rescued = tried.select(best[saved]).replace(group=batch.group[first], hint=level[best[saved]])
        place = rows.index_copy(0, first, len(batch) + torch.arange(len(first), device=batch.device))
        batch = concatenate([batch, rescued]).select(place) if len(first) else batch
        context.observe(batch)
        return batch

    def _hinted(self, prompts: Prompts, asked: list[int], context: Context) -> tuple[Prompts, Tensor, Tensor]:
        """Return the hinted prompts of these groups, with the group and the level of each."""
        task: Any = context.task
        if asked and not hasattr(task, "fields"):
            raise UserError(f"Scaffolded: the task {task.name!r} has no fields, so no hints, for its prompts")
        fields = task.fields(prompts.ids[asked]) if asked else []
        ladders = [self.ladder(prompts.items[place], held) for place, held in zip(asked, fields, strict=True)]
        items = [item for levels in ladders for item in levels]
        owner = torch.tensor([place for place, levels in zip(asked, ladders, strict=True) for _ in levels]).long()
        level = torch.tensor([level for levels in ladders for level in range(len(levels))]).long()
        return Prompts(prompts.ids[owner], items), owner, level


@method(
    id="S009",
    papers=PAPER,
    source="dvlab-research/Scaf-GRPO@1085db5 sh/hint_mix_grpo/bs256_6k_mix.sh",
    needs="text",
    base=grpo,
    without=("beta",),
    beta=0.0,
    prompts=256,
    group_size=8,
    minibatches=4,
    dual=3.0,
)
def scaf_grpo(
    base: Method,
    warmup: int = 50,
    right_at: float = 1.0,
    template: str = TEMPLATE,
    stages: tuple[str, ...] = STAGES,
) -> Method:
    """warmup: steps without hints; right_at: least score of a success; template: text of a hinted prompt, with
    {prompt}, {label} and {hint}; stages: of the hints that are used, weakest first."""
    plan, ladder = base.rollout, HintLadder(stages, template=Template(template))
    return base.replace(
        rollout=Scaffolded(plan.prompts, plan.size, plan.temperature, warmup, right_at, ladder),
        advantage=GroupStandardized(eps=1e-6),
        averaging="token-mean",
    )


_SIDES: dict[str, Any] = {
    "arena": "hinted",
    "against": "grpo",
    "settings": {"warmup": 10, "template": "{label[0]}{hint};{prompt}"},
    "against_settings": {"beta": 0.0},
}

claim = (
    Claim(
        name="hinted",
        **_SIDES,
        note="Accuracy on hard problems without hints at equal samples, hinted ones included; the authors report a relative gain"
        " of 44 % on AIME24.",
    ),
    Claim(
        name="silent groups",
        metric="mean:zero_advantage_groups",
        direction="lower",
        **_SIDES,
        note="Share of groups without gradient, which the method is meant to lower, over the whole run, from the same runs.",
    ),
)
