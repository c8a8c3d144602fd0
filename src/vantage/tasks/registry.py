"""Registry of tasks by name. A task's own modules are imported only when it is made."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vantage.core.errors import UserError, nearest, unknown
from vantage.settings import read_settings
from vantage.tasks.offers import LANGUAGE, OFFERS, WORDS
from vantage.userfile import errors_in, load


@dataclass(frozen=True)
class TaskInfo:
    """Entry of a task in `vantage tasks`."""

    name: str
    field: str
    description: str
    module: str
    example: str = ""

    @property
    def offers(self) -> frozenset[str]:
        """Offers to methods, in the words of `vantage.tasks.offers`."""
        return OFFERS[self.name]


_LANGUAGE = "vantage.tasks.language.loading"
_CALCULATOR = "vantage.tasks.language.calculator"
_CONTROL = "vantage.tasks.control.task"
_LAKE = "vantage.tasks.control.lake"
_FLOW = "vantage.tasks.generative.task"
_PAIRS = "vantage.tasks.language.preference"
_PREFERENCE = "vantage.tasks.preference.bandit"
_OFFLINE = "vantage.tasks.offline.task"
_INVENTORY = "vantage.tasks.inventory.task"
_ROUTING = "vantage.tasks.routing.task"
_COMPRESSION = "vantage.fields.compression.task"

TASKS: dict[str, TaskInfo] = {
    info.name: info
    for info in (
        TaskInfo("addition", "language", "add two numbers with carried digits", _LANGUAGE, "addition:digits=3"),
        TaskInfo("calculator", "language", "sums with a calculator, in several turns", _CALCULATOR, "calculator:terms=3"),
        TaskInfo("countdown", "language", "reach a target with given numbers and + - *", _LANGUAGE, "countdown:numbers=3"),
        TaskInfo("counting", "language", "count down, with short answers and few long ones", _LANGUAGE, "counting:most=40"),
        TaskInfo("drafted", "language", "additions, some with a draft that may be wrong", _LANGUAGE, "drafted:digits=2"),
        TaskInfo("hinted", "language", "easy additions and hard ones that come with hints", _LANGUAGE, "hinted:digits=3"),
        TaskInfo("modular", "language", "chained modular arithmetic", _LANGUAGE, "modular:length=3"),
        TaskInfo("sorting", "language", "sort a list of digits", _LANGUAGE, "sorting:length=5"),
        TaskInfo("padded-sorting", "language", "preference pairs of unequal length", _PAIRS, "padded-sorting:length=3,longer=0.7"),
        TaskInfo("preference", "preference", "pairs of arms with known rewards", _PREFERENCE, "preference:arms=20,features=4"),
        TaskInfo("game", "preference", "intransitive games between arms", _PREFERENCE, "game:arms=100,beta=0.05"),
        TaskInfo("offline", "offline", "recorded transitions of mixed policies", _OFFLINE, "offline:world=point,good=0.1"),
        TaskInfo("cartpole", "control", "balance a pole on a cart (CartPole-v1)", _CONTROL),
        TaskInfo("pendulum", "control", "swing a pendulum up (Pendulum-v1)", _CONTROL),
        TaskInfo("acrobot", "control", "swing a two-link robot up (Acrobot-v1)", _CONTROL),
        TaskInfo("mountaincar", "control", "drive out of a valley (MountainCar-v0)", _CONTROL),
        TaskInfo("hopper", "control", "one-legged hopping in MuJoCo (Hopper-v5)", _CONTROL),
        TaskInfo("halfcheetah", "control", "two-legged running in MuJoCo (HalfCheetah-v5)", _CONTROL),
        TaskInfo("grid", "control", "find the goal of a grid with a sparse reward", _CONTROL),
        TaskInfo("lake", "control", "cross a frozen lake on which each move may slide further", _LAKE, "lake:size=4,slip=0.5"),
        TaskInfo("two-goals", "control", "reach either of two goals in the plane", _CONTROL),
        TaskInfo("detour", "control", "pass an obstacle by chunks of moves, with demonstrations", _CONTROL),
        TaskInfo("inventory", "inventory", "order for a store under random demand", _INVENTORY, "inventory:lead_time=2,lost=true"),
        TaskInfo("lot-sizing", "inventory", "set up machines for items under random demand", _INVENTORY, "lot-sizing:items=2"),
        TaskInfo("prune-digits", "compression", "prune the neurons of a digit classifier", _COMPRESSION, "prune-digits:keep=0.5"),
        TaskInfo("prune-text", "compression", "prune the units of a text model", _COMPRESSION, "prune-text:data=FILE"),
        TaskInfo("tsp", "routing", "shortest round trips through random points or a TSPLIB file", _ROUTING, "tsp:nodes=20"),
        TaskInfo("cvrp", "routing", "shortest routes of vehicles with limited capacity", _ROUTING, "cvrp:nodes=20"),
        TaskInfo("gym", "control", "any Gymnasium environment by its id", _CONTROL, "gym:LunarLander-v3"),
        TaskInfo("flow2d", "generative", "a flow model of points in the plane, rewarded", _FLOW, "flow2d:ring,reward=mode"),
        TaskInfo("digits", "generative", "a flow model of 8 by 8 digits, rewarded by a classifier", _FLOW, "digits:class"),
        TaskInfo("masked", "generative", "a masked diffusion language model that answers a generated problem set",
                 "vantage.tasks.generative.masked", "masked:addition:digits=2"),
    )
}  # fmt: skip


def make_task(spec: str, *, data: str = "", verifier: str = "", options: Mapping[str, Any] | None = None) -> Any:
    """Make the task of a specification such as `addition:digits=3`, `cartpole`, `gym:Hopper-v5` or `Hopper-v5`.

    With `data` the task is the user's own problems, scored by `verifier`. A path, `./mine.py:size=3`, is a file with a function
    `task` that returns one; it gets the settings after the colon and the options.

    Raises:
        UserError: the task or one of its options is not known.
    """
    options = dict(options or {})
    if data:
        return importlib.import_module(_LANGUAGE).task_from_data(data, verifier=verifier, options=options)
    if not spec:
        raise UserError("no task: give --task NAME (list them with `vantage tasks`) or --data FILE")
    name = spec.partition(":")[0]
    if name.endswith(".py"):
        if verifier:
            raise UserError(
                f"--verifier={verifier}: the task of {name} has a verifier of its own; --verifier goes with --data"
            )
        return _task_of_file(spec, options)
    if name not in TASKS:
        if "-v" in spec or "/" in spec:
            return importlib.import_module(_CONTROL).task_from_spec(f"gym:{spec}", options=options)
        raise unknown("task", name, TASKS)
    module = importlib.import_module(TASKS[name].module)
    if TASKS[name].field == "language":
        return module.task_from_spec(spec, verifier=verifier, options=options)
    if verifier:
        raise UserError(
            f"--verifier={verifier}: the task {name!r} has a verifier of its own; --verifier goes with --data"
        )
    return module.task_from_spec(spec, options=options)


def offers(task: Any) -> frozenset[str] | None:
    """Return the offers of a task to methods, in the words of `vantage.tasks.offers`; None where they are not known.

    Args:
        task: a task, which may declare `offers`, or its specification.
    """
    if not isinstance(task, str):
        said = getattr(task, "offers", None)
        if said is not None:
            return frozenset(said)
        task = getattr(task, "spec", "") or getattr(task, "name", "")
    name = task.partition(":")[0]
    if name in TASKS:
        return TASKS[name].offers
    return TASKS["gym"].offers if not name.endswith(".py") and ("-v" in task or "/" in task) else None


def check_needs(
    method: str, needs: Iterable[str], task: Any, *, data: str = "", options: Mapping[str, Any] | None = None
) -> None:
    """Refuse a method on a task that does not offer what it needs. No task module is imported; a user's own task passes.

    Args:
        method: name, for the message.
        needs: words of `vantage.tasks.offers`.
        task: a task or its specification.
        data: file of the user's own problems, "" for none. Its first row is read where the method needs pairs.
        options: of the task.

    Raises:
        UserError: the task lacks a need; the message says which, and names the tasks that offer all.
    """
    needs = frozenset(needs)
    offered = offers(task) if not data else LANGUAGE
    if data and "pairs" in needs:
        from vantage.tasks.language.loading import holds_pairs

        given = options or {}
        if given.get("format", "") in ("", "pairs") and (given.get("format") or holds_pairs(data, given.get("split"))):
            offered = LANGUAGE | {"pairs"}
    if offered is None or needs <= offered:
        return
    missing = " and ".join(text for word, text in WORDS.items() if word in needs - offered)
    elsewhere = [name for name, info in TASKS.items() if info.offers >= needs]
    if "pairs" in needs and needs <= LANGUAGE | {"pairs"}:
        elsewhere.append("--data FILE with the fields chosen and rejected")
    where = f"the file {data}" if data else f"the task {task if isinstance(task, str) else task.name!r}"
    raise UserError(
        f"{method or 'the method'} needs {missing}, which {where} does not offer (tasks that offer all it needs:"
        f" {', '.join(elsewhere) or 'no built-in task'})"
    )


def _task_of_file(spec: str, options: Mapping[str, Any]) -> Any:
    """Call the function `task` of a Python file with the settings of the specification and the options."""
    name, _, rest = spec.partition(":")
    path = Path(name)
    maker = getattr(load(path, "task"), "task", None)
    if not callable(maker):
        raise UserError(f"{path} has no function `task` that returns a task")
    given = {**options, **read_settings(rest, f"task {spec}")}
    known = inspect.signature(maker).parameters
    open_ended = any(each.kind is each.VAR_KEYWORD for each in known.values())
    for key in given:
        if key not in known and not open_ended:
            raise UserError(
                f"task {spec!r} has no setting {key!r}{nearest(key, known)} (settings: {', '.join(known) or 'none'})"
            )
    with errors_in(path):
        made = maker(**given)
    if made is None:
        raise UserError(f"{path}: the function `task` returns nothing; it must return the task")
    return made
