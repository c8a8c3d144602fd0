"""Figures of a language model's update in a study that is not of what it learns: what a gradient costs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vantage.core.trainer import Schedule, Trainer
from vantage.core.trajectories import Trajectories
from vantage.tasks.language.loading import task_from_spec
from vantage.tasks.language.task import LanguageTask

if TYPE_CHECKING:
    from vantage.study.jobs import Job, Reporter


def one_group(prompt: int, response: int, group: int, vocabulary: int, seed: int) -> Trajectories:
    """Return `group` rows of random tokens with one prompt of `prompt` tokens and answers of `response` tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, vocabulary, (1, prompt), generator=generator).repeat(group, 1)
    action = torch.randint(3, vocabulary, (group, response), generator=generator)
    mask = torch.ones(action.shape, dtype=torch.bool)
    seen = {"tokens": tokens, "length": torch.full((group,), prompt)}
    credit = torch.randn(group, 1, generator=generator).expand(action.shape)
    columns = {
        "observation": seen,
        "action": action,
        "mask": mask,
        "advantage": credit,
        "group": torch.zeros(group).long(),
    }
    length = torch.full((group,), response)
    return Trajectories({**columns, "length": length, "prompt": torch.zeros(group).long()}, rows=group)


def shared_prefix(job: Job, report: Reporter) -> float:
    """Time the gradient of the job's method on one group, in turn with the same policy that repeats prompts; return the ratio.

    Options: `prompt`, `response` (tokens), `group` (rows), `preset` (of the model). Budget: gradients of each form. The first
    tenth of them warms up. `gradient_difference` is the largest difference over the largest entry.

    Raises:
        UserError: the method or a setting is not known.
    """
    from vantage.methods import registry

    torch.set_num_threads(1)
    options: dict[str, Any] = dict(job.arena.options)
    task = task_from_spec("addition", options={"preset": options.pop("preset", "tiny")})
    ours, repeated = (_trainer(job, registry.page(job.method).build(job.settings), task) for _ in range(2))
    repeated.context.policy.prefix_sharing = False  # type: ignore[attr-defined]
    vocabulary = len(ours.context.policy.tokenizer)  # type: ignore[attr-defined]
    batch = one_group(**options, vocabulary=vocabulary, seed=job.seed)
    batch = batch.replace(logp_old=repeated.context.evaluate(batch))
    count = int(job.arena.budget.size)
    spent, warm = [0.0, 0.0], max(count // 10, 1)
    report.point(0, 1.0)
    for done in range(1, warm + count + 1):
        # By turns, each first as often as second: what slows the machine slows both.
        for side in (0, 1) if done % 2 else (1, 0):
            seconds = _gradient((ours, repeated)[side], batch)
            spent[side] += seconds if done > warm else 0.0
        if done > warm and (done - warm) % max(count // job.arena.scoring.points, 1) == 0:
            report.point(done - warm, spent[1] / spent[0])
    mine, theirs = (_flat(trainer) for trainer in (ours, repeated))
    report.record(count, gradient_difference=float((mine - theirs).abs().max() / theirs.abs().max()))
    report.record(count, seconds=spent[0] / count, seconds_repeated=spent[1] / count)
    return spent[1] / spent[0]


def _trainer(job: Job, method: Any, task: LanguageTask) -> Trainer:
    policy: Any = task.make_policy(model=job.model, seed=job.seed)
    return Trainer(method, task, policy, method.engine_for(task, policy), Schedule(1), seed=job.seed)


def _gradient(trainer: Trainer, batch: Trajectories) -> float:
    """Take the gradient of the method's loss and return the seconds that it took."""
    for parameter in trainer.context.policy.parameters():
        parameter.grad = None
    started = time.perf_counter()
    trainer.context.method.update.differentiate(batch, trainer.context)
    return time.perf_counter() - started


def _flat(trainer: Trainer) -> Tensor:
    return torch.cat([p.grad.flatten() for p in trainer.context.policy.parameters() if p.grad is not None])
