"""Scaf-GRPO: a group of failures is asked again with hints, and takes in the weakest hint's success. (S009)

A prompt on which every answer fails teaches GRPO nothing. After a warm-up without help, the policy is asked the same
question with hints of rising strength, one answer a level, and the success at the lowest level takes the place of the
group's first failure, under the prompt that it was given to:

    levels: for each stage (knowledge, planning, solution) the first 1, 2, .., C parts of its hint; a stage does not carry on
    group = (h*, o*), o_2, .., o_G;      A_i = (r_i - mean) / (std + 1e-6)
    loss  = token mean of -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A), each ratio under the row's own prompt

arXiv 2510.19807, as in the authors' code (whose trainer runs two of the three stages). Hints come with the data: a field `hints`
of the problem, {stage: [part, ..]}. A prompt without hints stays as it is. The variants that paste the answer under the
bare prompt, or replace two failures, are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vantage.advantages.groups import GroupStandardized
from vantage.core.averaging import group_index
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories, concatenate
from vantage.methods.reasoning.grpo import grpo
from vantage.methods.registry import Paper, method
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Groups, at_least
from vantage.rollouts.templates import Template

PAPER = Paper(
    "Scaf-GRPO: Scaffolded Group Relative Policy Optimization for Enhancing LLM Reasoning",
    "Xichen Zhang and Sitong Wu and Yinghao Zhu and Haoru Tan and Shaozuo Yu and Ziyi He and Jiaya Jia",
    2025,
    arxiv="2510.19807",
)


@dataclass(frozen=True)
class HintLadder:
    """Prompts with hints of rising strength, from a problem's field `hints`: {stage: [part, ..]}.

    Attributes:
        stages: their names in the data, weakest first; the label in the prompt is "Knowledge Hints" and so on.
        parts: C, levels a stage; one with fewer parts repeats its last prompt.
        template: of a hinted prompt.
    """

    stages: tuple[str, ...] = ("knowledge", "planning", "solution")
    parts: int = 4
    template: Template = Template("Question: {prompt}\n{label}: {hint}")

    def __call__(self, item: Any, fields: Mapping[str, Any]) -> list[Any]:
        """Return the prompts of the levels, [] for a problem without hints."""
        hints: Mapping[str, Sequence[str]] = fields.get("hints") or {}
        return [
            self.template(item, label=f"{stage.capitalize()} Hints", hint=" ".join(hints[stage][:part]))
            for stage in self.stages
            if hints.get(stage)
            for part in range(1, self.parts + 1)
        ]


@dataclass(frozen=True)
class Scaffolded(Groups):
    """Groups in which, after `warmup` steps, failures are rescued as the page says.

    Attributes:
        warmup: steps without help.
        right_at: least score of a success.
        ladder: `(item, fields) -> items`, one a level, rising in strength.
    """

    warmup: int = 50
    right_at: float = 1.0
    ladder: Any = field(default_factory=HintLadder)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("Scaffolded.warmup", self.warmup, 0)

    def __call__(self, context: Context) -> Trajectories:
        """Sample, and rescue."""
        prompts = context.next_prompts(self.prompts)
        batch = context.verify(context.engine.sample(prompts, self.size, context))
        if context.step < self.warmup:
            return batch
        right = Total()(batch, context).score >= self.right_at
        index, groups = group_index(batch.group)
        failed = torch.zeros(groups, device=batch.device).index_add(0, index, right.float()) == 0
        context.record("rescue/failed", failed.float().mean())
        asked = [place for place, lost in enumerate(failed.tolist()) if lost]
        hinted, owner, level = self._hinted(prompts, asked, context)
        if not hinted.items:
            return batch
        # Of a group's successes the one at the lowest level: owners rise, and levels within them.
        tried = context.verify(context.engine.sample(hinted, 1, context))
        won = (Total()(tried, context).score >= self.right_at).nonzero().squeeze(-1)
        context.record("rescue/saved", torch.unique(owner.to(won.device)[won]).numel() / max(len(asked), 1))
        return _rescued(batch, tried, won, owner.to(batch.device), level, index) if len(won) else batch

    def _hinted(self, prompts: Prompts, asked: list[int], context: Context) -> tuple[Prompts, Tensor, Tensor]:
        """Return the hinted prompts of these groups, with the group and the level of each."""
        if not asked:
            return Prompts(prompts.ids[:0], []), torch.zeros(0), torch.zeros(0)
        if not hasattr(context.task, "fields"):
            raise UserError(f"Scaffolded: the task {context.task.name!r} has no fields, so no hints, for its prompts")
        fields = context.task.fields(prompts.ids[asked])
        levels = [self.ladder(prompts.items[place], held) for place, held in zip(asked, fields, strict=True)]
        sizes = torch.tensor([len(each) for each in levels])
        owner = torch.tensor(asked).repeat_interleave(sizes)
        level = torch.cat([torch.arange(len(each)) for each in levels])
        return Prompts(prompts.ids[owner], [item for each in levels for item in each]), owner, level


def _rescued(
    batch: Trajectories, tried: Trajectories, won: Tensor, owner: Tensor, level: Tensor, index: Tensor
) -> Trajectories:
    """Put each group's lowest success [W] in the place of its first row."""
    rows = torch.arange(len(batch), device=batch.device)
    groups = int(index.max()) + 1
    best = rows.new_full((groups,), len(tried)).scatter_reduce(0, owner[won], won, "amin")
    saved = best < len(tried)
    first = rows.new_full((groups,), len(batch)).scatter_reduce(0, index, rows, "amin")
    names = set(batch) & set(tried)
    new = tried.select(best[saved]).replace(group=batch.group[first[saved]])
    order = rows.index_copy(0, first[saved], len(batch) + torch.arange(int(saved.sum()), device=batch.device))
    hint = torch.full_like(rows, -1)
    hint[first[saved]] = level.to(batch.device)[best[saved]]
    kept, taken = ({name: part[name] for name in names} for part in (batch, new))
    joined = concatenate([Trajectories(kept, rows=len(batch)), Trajectories(taken, rows=len(new))])
    return joined.select(order).replace(hint=hint)


@method(id="S009", family="sampling", papers=PAPER)
def scaf_grpo(
    prompts: int = 256,
    group_size: int = 8,
    lr: float = 1e-6,
    warmup: int = 50,
    eps: float = 0.2,
    right_at: float = 1.0,
    minibatches: int = 4,
    temperature: float = 1.0,
    micro_batch: int | None = None,
) -> Method:
    """Compose Scaf-GRPO; `warmup` is in steps."""
    return grpo(
        prompts, group_size, lr=lr, beta=0.0, eps=eps, minibatches=minibatches, micro_batch=micro_batch
    ).replace(
        rollout=Scaffolded(prompts, group_size, temperature, warmup, right_at),
        advantage=GroupStandardized(eps=1e-6),
        averaging="token",
    )
