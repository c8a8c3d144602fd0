"""How a task's name finds what makes it. Nothing heavy is imported before a task is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vantage.core.errors import UserError, unknown


@dataclass(frozen=True)
class TaskInfo:
    """What `vantage tasks` shows of a task."""

    name: str
    field: str
    description: str
    module: str
    example: str = ""


_LANGUAGE = "vantage.tasks.language.task"
_CONTROL = "vantage.tasks.control.task"

TASKS: dict[str, TaskInfo] = {
    info.name: info
    for info in (
        TaskInfo("addition", "language", "add two numbers with carried digits", _LANGUAGE, "addition:digits=3"),
        TaskInfo("countdown", "language", "reach a target with given numbers and + - *", _LANGUAGE, "countdown:numbers=3"),
        TaskInfo("modular", "language", "chained modular arithmetic", _LANGUAGE, "modular:length=3"),
        TaskInfo("sorting", "language", "sort a list of digits", _LANGUAGE, "sorting:length=5"),
        TaskInfo("cartpole", "control", "balance a pole on a cart (CartPole-v1)", _CONTROL),
        TaskInfo("pendulum", "control", "swing a pendulum up (Pendulum-v1)", _CONTROL),
        TaskInfo("acrobot", "control", "swing a two-link robot up (Acrobot-v1)", _CONTROL),
        TaskInfo("mountaincar", "control", "drive out of a valley (MountainCar-v0)", _CONTROL),
        TaskInfo("hopper", "control", "one-legged hopping in MuJoCo (Hopper-v5)", _CONTROL),
        TaskInfo("halfcheetah", "control", "two-legged running in MuJoCo (HalfCheetah-v5)", _CONTROL),
        TaskInfo("grid", "control", "find the goal of a grid with a sparse reward", _CONTROL),
        TaskInfo("gym", "control", "any Gymnasium environment by its id", _CONTROL, "gym:LunarLander-v3"),
    )
}  # fmt: skip


def make_task(spec: str, *, data: str = "", verifier: str = "", options: Mapping[str, Any] | None = None) -> Any:
    """Return the task of a specification such as `addition:digits=3`, `cartpole`, `gym:Hopper-v5` or `Hopper-v5`.

    With `data` the task is the user's own problems, judged by `verifier`.

    Raises:
        UserError: the task or one of its options is not known.
    """
    options = dict(options or {})
    if data:
        return importlib.import_module(_LANGUAGE).task_from_data(data, verifier=verifier, options=options)
    if not spec:
        raise UserError("no task: give --task NAME (list them with `vantage tasks`) or --data FILE")
    name = spec.partition(":")[0]
    if name not in TASKS:
        if "-v" in spec or "/" in spec:
            return importlib.import_module(_CONTROL).task_from_spec(f"gym:{spec}", options=options)
        raise unknown("task", name, TASKS)
    module = importlib.import_module(TASKS[name].module)
    if TASKS[name].field == "language":
        return module.task_from_spec(spec, verifier=verifier, options=options)
    if verifier:
        raise UserError(f"--verifier={verifier}: the task {name!r} judges itself; a verifier goes with --data")
    return module.task_from_spec(spec, options=options)
