"""Runs of a few steps of one side of a claim at a tiny size, which a probe (`vantage.study.probes`) stores and compares.

`[probe]` in an arena's file has the reductions (`vantage.study.arenas.Small`). Where the rewards of random weights would all be
equal, about every third row is rewarded, depending on its samples.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.trainer import Schedule, Trainer
from vantage.core.walk import states
from vantage.methods import registry
from vantage.randomness import seed_all
from vantage.study.contest import Entrant
from vantage.study.draws import Draws, token_engine_in_torch
from vantage.study.evaluation import task_of
from vantage.study.jobs import TRAINING, Job, Reporter, function_of
from vantage.study.schema import NAN_IS_NULL, encode
from vantage.updates.optimizers import Adam, RMSprop

if TYPE_CHECKING:
    from vantage.study.claims import Stated

STEPS = 8
"""Largest number of steps of a probe."""
LEARNT = "parameters/moved"
"""Figure that every run of the training loop has: how far its parameters are from the first ones."""
EPS = 1e-3
"""Of optimisers; see `_steadied`."""
SIZES = {
    "prompts": 2,
    "group_size": 4,
    "rows": 4,
    "length": 8,
    "episodes": 4,
    "batch": 4,
    "minibatches": 2,
    "epochs": 2,
}
"""Settings of the amount of data per step and of the number of passes -> their largest values in a probe."""

Figures = tuple[Annotated[float, NAN_IS_NULL], ...]


@dataclass(frozen=True)
class Side:
    """Results of one side.

    Args:
        figures: name -> its value at each step, NaN where it has none or rounding decides it (`_firm`); of a field without a
            rollout loop, name -> the points of its curve.
        choices: what was sampled, packed (`Draws.made`).
        unread: places of components whose state did not change in `STEPS` steps.
    """

    figures: Mapping[str, Figures]
    choices: str = ""
    unread: tuple[str, ...] = ()


def measure(one: Stated, side: Entrant, choices: str | None = None, shake: float = 0.0) -> tuple[Side, Draws]:
    """Return a side's results, and its random choices.

    Args:
        one: a claim.
        side: one of its sides.
        choices: choices to repeat; None makes new ones.
        shake: parameters are first multiplied by 1 + shake * normal numbers.
    """
    small = one.arena.probe
    job = side.job(one.arena, 0)
    arena = small.of(one.arena)
    function = TRAINING if small.task else job.function
    settings = {**job.settings, **_sizes(job, small.settings)}
    job = Job(job.method, settings, 0, arena, function)
    key = json.dumps([encode(job), choices, shake], sort_keys=True, default=repr)
    if key not in _DONE:  # many pages have the same baseline
        _DONE[key] = _measured(job, choices, shake)
    return _DONE[key]


_DONE: dict[str, tuple[Side, Draws]] = {}


def _measured(job: Job, choices: str | None, shake: float) -> tuple[Side, Draws]:
    threads, cache = torch.get_num_threads(), os.environ.get("VANTAGE_CACHE")
    torch.set_num_threads(1)
    os.environ["VANTAGE_CACHE"] = _folder().name  # networks that a field trains depend on the numbers of `Draws`
    draws = Draws(choices)
    try:
        with draws, token_engine_in_torch():
            figures, unread = (_steps if job.function == TRAINING else _function)(job, draws, shake)
    finally:
        torch.set_num_threads(threads)
        del os.environ["VANTAGE_CACHE"]
        if cache is not None:
            os.environ["VANTAGE_CACHE"] = cache
    return Side(figures, draws.made, unread), draws


def _sizes(job: Job, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a job that are larger than a probe needs, at that size, and the arena's for probes."""
    try:
        own = registry.page(job.method).settings()
    except UserError:
        return {}  # a baseline that only the arena's function knows
    given = {**own, **job.settings}
    larger = {
        name: size
        for name, size in SIZES.items()
        if isinstance(given.get(name), int) and not isinstance(given[name], bool) and given[name] > size
    }
    return {**larger, **{name: value for name, value in chosen.items() if name in own}}


def _function(job: Job, _: Draws, __: float) -> tuple[dict[str, Figures], tuple[str, ...]]:
    """Run a field's own function; return its curve and diagnostics."""
    report = Reporter(job.method, job.seed, job.arena.budget.size)
    run = report.run(function_of(job.function)(job, report), job.arena.scoring.tasks)
    figures: dict[str, Figures] = {
        "spent": tuple(point.samples for point in run.curve),
        job.arena.scoring.metric: tuple(point.score for point in run.curve),
    }
    return figures | {name: tuple(value for _, value in points) for name, points in run.diagnostics.items()}, ()


def _steps(job: Job, draws: Draws, shake: float) -> tuple[dict[str, Figures], tuple[str, ...]]:
    """Take steps of the training loop; return the metrics of each, and what was not read."""
    seed_all(job.seed)
    task, method = task_of(job.arena), _steadied(registry.page(job.method).build(job.settings))
    task.score = _telling_apart(task.score)
    policy = method.policy_for(task, model=_model(task), seed=job.seed)
    _shake(policy, shake)
    if getattr(getattr(policy, "actions", None), "kind", "") in ("discrete", "multidiscrete"):
        from vantage.policies.acting import chooser

        own = draws.chooser(chooser(policy))
        policy.chooser = lambda: own
    trainer = Trainer(
        method,
        task,
        policy,
        task.make_engine(policy, seed=job.seed),
        Schedule(STEPS),
        seed=job.seed,
        micro_batch=getattr(task, "micro_batch", None),
    )
    start = {name: value.detach().clone() for name, value in policy.named_parameters()}
    memories = _memories(trainer)
    unfilled = dict(memories)
    told: list[dict[str, float]] = []
    while len(told) < STEPS:
        full = len(told) > 1 and not unfilled
        metrics, _ = trainer.step()
        told.append({**metrics, **_own(trainer, start)})
        if full:
            break
        now = _memories(trainer)
        unfilled = {place: held for place, held in unfilled.items() if now.get(place) == held}
        unfilled.pop("prompts", None)  # streams ask for none, everything else asks in every step
    names = sorted({name for each in told for name in each})
    return {name: tuple(each.get(name, math.nan) for each in told) for name in names}, tuple(unfilled)


def _steadied(method: Method) -> Method:
    """Return a copy whose optimisers divide by no less than `EPS`.

    Adam's first steps are the sign of the gradient, whatever its size: where the gradient is rounding error, so are they. And a
    loss that is scaled by a constant comes out otherwise with it, as it should.
    """
    copied = copy.deepcopy(method)
    for _, part in copied.components():
        if isinstance(part, Adam | RMSprop):
            object.__setattr__(part, "eps", max(EPS, part.eps))
    return copied


def _shake(policy: Any, by: float) -> None:
    if by:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for value in policy.parameters():
                value *= 1 + by * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)


def _own(trainer: Trainer, start: Mapping[str, Tensor]) -> dict[str, float]:
    """Return metrics of every method: the distance of its parameters from the initial ones, and the size of its advantages."""
    moved = sum(
        float((value.detach().double() - start[name].double()).square().sum())
        for name, value in trainer.context.policy.named_parameters()
        if name in start
    )
    found = {LEARNT: math.sqrt(moved)}
    batch = trainer._batch
    if batch is not None and "advantage" in batch:
        found["advantage/size"] = float(torch.where(batch.mask, batch.advantage, 0.0).double().abs().mean())
    return found


def _memories(trainer: Trainer) -> dict[str, str]:
    """Return component's path -> digest of its state."""
    return {place: _digest(part.state_dict()) for place, part in states(trainer.context.method.components()).items()}


def _digest(state: Any) -> str:
    total = hashlib.sha256()
    waiting = [state]
    while waiting:
        held = waiting.pop()
        if isinstance(held, Tensor):
            total.update(held.detach().contiguous().numpy().tobytes())
        elif isinstance(held, Mapping):
            waiting += [part for pair in held.items() for part in pair]
        elif isinstance(held, list | tuple):
            waiting += [len(held), *held]
        else:
            total.update(repr(held).encode())
    return total.hexdigest()


def _telling_apart(score: Any) -> Any:
    """Return a task's `score` that rewards about every third row where a reward is the same for all rows of integers."""

    def scored(batch: Any, context: Any) -> dict[str, Tensor]:
        named: dict[str, Tensor] = score(batch, context)
        if batch.action.is_floating_point():
            return named
        sampled = torch.where(batch.mask, batch.action.reshape(*batch.mask.shape, -1).sum(-1), 0).sum(-1)
        third = (sampled % 3 == 0).to(torch.float32)
        return {
            name: (values - third * (2 * values - 1)).to(values.dtype) if _equal(values) else values
            for name, values in named.items()
        }

    return scored


def _equal(values: Tensor) -> bool:
    return bool(values.dim() == 1 and len(values) > 1 and (values == values[0]).all())


def _model(task: Any) -> str:
    """Return a folder with a small model whose tokens are the characters of the task's problems; "" for other tasks.

    With few tokens the end token is drawn often enough that rows end.
    """
    problems = getattr(task, "problems", None)
    if problems is None:
        return ""
    texts = [problems.problem("train", index) for index in range(min(problems.size("train"), 64))]
    return _made("".join(sorted({letter for each in texts for text in _texts(each) for letter in text})))


def _texts(problem: Any) -> Iterator[str]:
    prompt = problem.prompt
    yield from [prompt] if isinstance(prompt, str) else (str(message["content"]) for message in prompt)
    yield from (str(getattr(problem, name, "")) for name in ("answer", "solution"))


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="vantage-probes-")


@functools.cache
def _made(alphabet: str) -> str:
    from vantage.policies.tiny import new_model

    name = hashlib.sha256(alphabet.encode()).hexdigest()[:12]
    return str(new_model(Path(_folder().name) / name, "tiny", alphabet=alphabet))
