"""Probes: a few steps of each side of a claim at a tiny size, stored as numbers beside the claim's record.

Equal numbers say that the record speaks for the code that is here; other numbers say that the code computes something else. A
side is the method or the baseline with the claim's settings and seed 0, on the arena's task. It is probed for as many steps as it
takes until everything that it remembers (its components with a state) has been filled and read once. What was sampled is stored
too and sampled again (`vantage.study.draws`), so that a probe made on one kind of processor passes on another.

`[probe]` in an arena's file says what of it is made smaller (`vantage.study.arenas.Small`). Where rewards of random weights would
all be equal and nothing would be learnt, every third row or so is rewarded, by what it sampled.
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.trainer import Schedule, Trainer
from vantage.core.walk import states
from vantage.methods import registry
from vantage.study import claims, records
from vantage.study.arenas import Arena
from vantage.study.contest import Entrant
from vantage.study.draws import Draws, token_engine_in_torch
from vantage.study.jobs import ROAD, Job, Reporter, function_of
from vantage.study.judge import NAMES, task_of
from vantage.study.peers import PEERS
from vantage.study.schema import NAN_IS_NULL, decode, encode, write_atomically
from vantage.updates.optimizers import Adam, RMSprop

if TYPE_CHECKING:
    from vantage.study.claims import Stated

FORMAT = 1
RELATIVE, ABSOLUTE = 1e-5, 1e-6
"""Two figures are equal when they differ by no more than the sum of both."""
STEPS = 8
"""Steps of a probe at most."""
SHAKE, FIRM = 1e-7, 0.3
"""Figures that move by more than the share `FIRM` of what is allowed when parameters move by `SHAKE` are not stored."""
LEARNT = "parameters/moved"
"""Figure that every run of the training loop has: how far its parameters are from the first ones."""
EPS = 1e-3
"""Of optimisers; see `_steadied`."""
OTHERWISE = 0.02
"""Share of the choices that another processor may make otherwise."""
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
"""Settings that only say how much a step gathers and how often it is gone through: the most that a probe takes."""

Figures = tuple[Annotated[float, NAN_IS_NULL], ...]


@dataclass(frozen=True)
class Side:
    """What was computed of one side.

    Args:
        figures: name -> its value at each step, NaN where it has none or rounding decides it (`_firm`); of a field without a
            rollout loop, name -> the points of its curve.
        choices: what was sampled, packed (`Draws.made`).
        unread: places of components whose state did not change in `STEPS` steps.
    """

    figures: Mapping[str, Figures]
    choices: str = ""
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """The file of a page: the sides of its claims, by the words of `name_of`."""

    format: int
    method: str
    sides: Mapping[str, Side] = field(default_factory=dict)

    @staticmethod
    def path(folder: Path, page: registry.Page) -> Path:
        """Return where the probe of a page is stored."""
        return folder / page.family / f"{page.name}.probe.json"

    @classmethod
    def of(cls, folder: Path, page: registry.Page) -> Probe:
        """Return the stored probe of a page, without a side when it has no file.

        Raises:
            UserError: its file holds something else.
        """
        path = cls.path(folder, page)
        if not path.is_file():
            return cls(FORMAT, page.name)
        return decode(cls, json.loads(path.read_text(encoding="utf-8")), str(path))

    def store(self, folder: Path, page: registry.Page) -> None:
        """Write the file of the page, one line a side."""
        head = {"format": self.format, "method": self.method}
        sides = [f"{json.dumps(name)}: {json.dumps(encode(_rounded(side)))}" for name, side in self.sides.items()]
        text = f'{json.dumps(head)[:-1]}, "sides": {{\n' + ",\n".join(sides) + "\n}}\n"
        write_atomically(self.path(folder, page), text)


def _rounded(side: Side) -> Side:
    return replace(
        side, figures={name: tuple(float(f"{x:.8g}") for x in values) for name, values in side.figures.items()}
    )


# a page's probe --------------------------------------------------------------------------------------------------------


def sides_of(page: registry.Page) -> dict[str, list[tuple[Stated, Entrant]]]:
    """Return name -> the claims that have this side, with the side; a peer library's are left out."""
    found: dict[str, list[tuple[Stated, Entrant]]] = {}
    for one in claims.of_page(page):
        for side, settings in zip(one.sides, (one.claim.settings, one.claim.against_settings), strict=True):
            if side.arm.method not in PEERS:
                found.setdefault(name_of(side, one.arena, settings), []).append((one, side))
    return found


def name_of(side: Entrant, arena: Arena, settings: Mapping[str, Any]) -> str:
    """Return what a side is called: the method, the arena, and what the claim sets."""
    given = ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))
    return f"{side.arm.method} on {arena.name}{': ' if given else ''}{given}"


def differences(folder: Path, page: registry.Page) -> list[str]:
    """Return what the code that is here computes otherwise than the stored probe of a page says, one line each."""
    stored, found = Probe.of(folder, page).sides, []
    for name, several in sides_of(page).items():
        if name not in stored:
            found.append(f"{name}: no probe is stored")
            continue
        told = compare(stored[name], *measure(*several[0], stored[name].choices))
        found += [f"{name}: {figure} {words}" for figure, words in told]
    return found


def compare(before: Side, now: Side, draws: Draws | None = None) -> Iterator[tuple[str, str]]:
    """Yield (figure, how it differs); of each the first step where it does. What only one side has says nothing."""
    if draws is not None and draws.otherwise > max(2, OTHERWISE * draws.count):
        yield "choices", f"sampled: {draws.otherwise} of {draws.count} would be made otherwise"
    shared = [name for name in before.figures if name in now.figures]
    if not shared:
        yield "figures", f"are others than {', '.join(before.figures)}"
    for name in shared:
        old, new = before.figures[name], now.figures[name]
        if len(old) != len(new):
            yield name, f"has {len(new)} values where it had {len(old)}"
            continue
        for step, (x, y) in enumerate(zip(old, new, strict=True), 1):
            if not close(x, y):
                yield name, f"at step {step}: {x:.8g} -> {y:.8g}"
                break


def alters(figure: str, before: Side, metric: str) -> bool:
    """Whether a figure that differs makes a claim's result another one: no other diagnostic than the claim's own does."""
    if LEARNT not in before.figures:
        return True  # a field's own function
    learnt = figure.startswith(("choices", "figures", "loss/", "grad_norm", "advantage/", "parameters/"))
    return learnt or NAMES.get(figure, figure) == metric.removeprefix("mean:")


def close(x: float, y: float, share: float = 1.0) -> bool:
    """Whether two figures are equal up to a share of what is allowed; NaN is equal to everything."""
    return x == y or not abs(x - y) > share * (ABSOLUTE + RELATIVE * abs(x))


def bless(folder: Path, page: registry.Page, reason: str) -> Iterator[str]:
    """Store the probe of a page as it comes out now, and mark the results that its change alters; yield what was done.

    A side that had no probe before is stored and marks nothing; nor does a diagnostic that no claim is about.
    """
    stored = Probe.of(folder, page).sides
    sides, altered = {}, []
    for name, several in sides_of(page).items():
        old = stored.get(name)
        told = [] if old is None else list(compare(old, *measure(*several[0], old.choices)))
        if old is not None and not told:
            sides[name] = old
            continue
        sides[name] = _firm(*several[0])
        yield f"{name}: {'; '.join(f'{figure} {words}' for figure, words in told) or 'none was stored'}"
        if old is not None:
            altered += [one.claim.label for one, _ in several if any(alters(f, old, one.claim.metric) for f, _ in told)]
        if sides[name].unread:
            yield f"{name}: {STEPS} steps changed nothing that {', '.join(sides[name].unread)} remembers"
    if sides != stored:
        Probe(FORMAT, page.name, sides).store(folder, page)
    change = records.Change.now(reason)
    for label in records.mark(folder, page, tuple(dict.fromkeys(altered)), change):
        yield f"{page.name}/{label}: measured before this change"


# a side's figures -----------------------------------------------------------------------------------------------------


def _firm(one: Stated, side: Entrant) -> Side:
    """Return what a side computes, without the figures that a change of all parameters by their last bits changes, too."""
    found, _ = measure(one, side)
    shaken, _ = measure(one, side, found.choices, shake=SHAKE)
    firm = {
        name: tuple(
            x if close(x, y, FIRM) else math.nan for x, y in zip(values, shaken.figures.get(name, values), strict=True)
        )
        for name, values in found.figures.items()
    }
    return replace(found, figures={name: values for name, values in firm.items() if not all(map(math.isnan, values))})


def measure(one: Stated, side: Entrant, choices: str | None = None, shake: float = 0.0) -> tuple[Side, Draws]:
    """Return what a side computes, and the draws that were made.

    Args:
        one: a claim.
        side: one of its sides.
        choices: what is to be sampled; None samples anew.
        shake: parameters are first multiplied by 1 + shake * normal numbers.
    """
    small = one.arena.probe
    job = side.job(one.arena, 0)
    arena = small.of(one.arena)
    function = ROAD if small.task else job.function
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
    os.environ["VANTAGE_CACHE"] = _folder().name  # networks that a field trains are of the numbers of `Draws`
    draws = Draws(choices)
    try:
        with draws, token_engine_in_torch():
            figures, unread = (_steps if job.function == ROAD else _function)(job, draws, shake)
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
    torch.manual_seed(job.seed)
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
    """Return what every method has: how far its parameters moved, and the size of its advantages."""
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
    """Return place -> a digest of what the component there remembers."""
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
