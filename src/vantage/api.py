"""Python interface of the commands: training, resuming and evaluating runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vantage.config import RunConfig, is_run, read_config
from vantage.core.checkpoint import checkpoints
from vantage.core.errors import UserError, require
from vantage.core.method import Method
from vantage.core.runlog import read_metrics
from vantage.core.trainer import Listener, Outcome, Schedule, Trainer
from vantage.devices import device_of
from vantage.folders import claimed, locked
from vantage.methods import registry
from vantage.progress import outlook
from vantage.randomness import seed_all
from vantage.settings import parse_settings
from vantage.tasks.registry import check_needs, make_task


@dataclass(frozen=True)
class Run:
    """Result of a run: its outcome, folder and metrics."""

    folder: Path | None
    outcome: Outcome
    policy: Any

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Metrics of every step, including those before a resume."""
        return read_metrics(self.folder) if self.folder else list(self.outcome.history)


def method(name: str, **settings: Any) -> Method:
    """Return a method by name, or by the path of a file that defines one.

    A setting is one of the recipe's (`group_size=8`), or with a dict `parts={"update.optimizer.lr": 1e-4}` one of a component.

    Raises:
        UserError: the method or a setting is not known, or a value is out of range.
    """
    parts: Mapping[str, Any] = settings.pop("parts", {})
    return build_method(name, {**settings, **parts})


def build_method(name: str, settings: Mapping[str, Any]) -> Method:
    """Compose a method from settings of the recipe (no dot in the name) and of components (with dots)."""
    return dataclasses.replace(registry.page(name).build(settings), settings={"method": name, **settings})


def train(
    method: Method | str,
    task: Any,
    *,
    model: str | Path = "",
    data: str | Path = "",
    verifier: str = "",
    steps: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    save_every: int = 0,
    evaluate_every: int = 0,
    evaluate_samples: int = 4,
    device: str = "",
    threads: int = 0,
    wandb: str = "",
    engine: str = "",
    force: bool = False,
    listeners: Sequence[Listener] = (),
    policy: Any = None,
    report: Callable[[str], None] = lambda text: None,
) -> Run:
    """Train a policy on a task by a method.

    Args:
        method: a `Method`, a name, or the path of a file that defines one.
        task: a task, or its specification as on the command line (`addition:digits=3`, `cartpole`).
        model: folder of the model to start from.
        data: file of the user's problems; then `task` may be "".
        verifier: verifier of their answers.
        steps: length of the run in the task's unit; None takes the task's default.
        seed: random seed.
        out: folder of the run; None keeps everything in memory.
        settings: of the recipe and of components, as a dict or as `name=value` texts. Only with a method given by name.
        options: of the task's engine and policy.
        save_every: training steps between checkpoints; 0: about one checkpoint per minute.
        evaluate_every: training steps between evaluations; 0: before and after the run alone.
        evaluate_samples: samples per held-out problem, or episodes; 0: no evaluations.
        device: device of the policy in sampling, evaluation and training: "cpu", "cuda" or "cuda:N"; "" for the device of a
            given `policy`, else the CPU.
        threads: number of CPU threads, 0 for the default.
        wandb: Weights & Biases project, "" for none.
        engine: engine that samples completions: "" for the task's own, or "vllm" (see `vantage.integrations.vllm`).
        force: overwrite a run in `out`; it is removed when the new one has its first checkpoint.
        listeners: called after each step.
        policy: the policy to train, instead of one that the task makes.
        report: called with the length of the run before its first step.

    Raises:
        UserError: an argument is invalid, or another process writes `out`; nothing was written, and `out` is unchanged.
    """
    where = (
        device_of(device) if device else next(policy.parameters()).device if policy is not None else device_of("cpu")
    )
    given = parse_settings(list(settings)) if not isinstance(settings, Mapping) else dict(settings)
    if isinstance(method, Method):
        if given:
            raise UserError("settings go with a method given by name; a Method is changed with .replace or .adapt")
        built = method
        # A method that a name composes can be composed again on resume; one composed by hand must be given again.
        composed = dict(built.settings or {})
        name = composed.pop("method", "")
        given = composed
    else:
        name = method
        built = build_method(method, given)
    spec = task if isinstance(task, str) else getattr(task, "spec", getattr(task, "name", ""))
    check_needs(built.name, built.declared("needs"), task, data=str(data), options=options)
    made = _make_task(spec, str(data), verifier, options) if isinstance(task, str) else task
    if getattr(made, "offers", None) is not None:  # a task of the user's own file may be known only now
        check_needs(built.name, built.declared("needs"), made)
    config = RunConfig(
        method=name,
        task=spec,
        settings=given,
        model=str(model),
        data=str(data),
        verifier=verifier,
        options={**(options or {}), **({"engine": engine} if engine else {})},
        steps=steps if steps is not None else getattr(made, "default_steps", 100),
        seed=seed,
        save_every=save_every,
        evaluate_every=evaluate_every,
        evaluate_samples=evaluate_samples,
        device=str(where),
        threads=threads,
        wandb=wandb,
    ).placed()
    _check_engine(config.options.get("engine", ""), made)
    _check_run(config)
    if out is None:
        return _run(config, built, made, None, listeners, policy, resume=False, report=report)
    folder = Path(out)
    if force and model and folder.resolve() in (Path(model).resolve(), *Path(model).resolve().parents):
        raise UserError(f"--model {model} is in --out {out}, which --force replaces: give another folder")
    again = f", or `vantage resume {out}`" if is_run(folder) else ""
    with claimed(folder, is_run, force, again) as drop:
        # Called after a step: the checkpoint of the start is written by then.
        hold = (*listeners, lambda report: drop() if report.step == 1 else None)
        return _run(config, built, made, folder, hold, policy, resume=False, report=report)


def resume(
    folder: str | Path,
    listeners: Sequence[Listener] = (),
    report: Callable[[str], None] = print,
    *,
    method: Method | str | None = None,
    device: str = "",
    model: str | Path = "",
    data: str | Path = "",
    task: str = "",
) -> Run:
    """Resume a run from its newest valid checkpoint; the result equals that of an uninterrupted run.

    A run whose method was composed by hand needs the same `method` again; otherwise it is composed by name. `device` replaces
    the run's own, on another machine; results then differ by rounding.

    Relative paths of a run that an older version made are looked for in the working folder. `model`, `data`, `task`, and `method`
    as a path, say where the run's model, data and files are now; the run keeps these.

    Raises:
        UserError: the folder is not a run, or something that the run starts from is not where the run has it.
    """
    folder = Path(folder)
    config = read_config(folder)
    config = dataclasses.replace(
        config,
        device=str(device_of(device or config.device)),
        model=str(model) or config.model,
        data=str(data) or config.data,
        task=task or config.task,
        method=method if isinstance(method, str) and method else config.method,
    )
    if not isinstance(method, Method) and not config.method:
        raise UserError(
            f"the run {folder} has a method composed by hand: give it again, vantage.resume(folder, method=...)"
        )
    config.check_paths(folder)
    config = config.placed()
    built = method if isinstance(method, Method) else build_method(config.method, config.settings)
    made = _make_task(config.task, config.data, config.verifier, config.options)
    _check_engine(config.options.get("engine", ""), made)
    _check_run(config)
    with locked(folder):
        return _run(config, built, made, folder, listeners, None, resume=True, report=report)


def evaluate(
    target: str | Path, task: str = "", *, samples: int = 4, seed: int = 1, data: str = "", verifier: str = "",
    options: Mapping[str, Any] | None = None, device: str = "",
) -> dict[str, float]:  # fmt: skip
    """Evaluate a model folder, or a run's final model, on a task's held-out problems or fresh episodes.

    `device` is "cpu", "cuda" or "cuda:N"; "" for the run's own, else the CPU.
    """
    folder = Path(target)
    if not folder.exists():
        raise UserError(f"there is no folder {folder}")
    chosen = dict(options or {})
    where = device_of(device or "cpu")
    if is_run(folder):
        config = read_config(folder)
        where = device_of(device or config.device)
        if not task and not data:
            task, data, verifier = config.task, config.data, verifier or config.verifier
            chosen = {**config.options, **chosen}
        folder = folder / "model"
        if not folder.is_dir():
            raise UserError(f"the run {target} has no model yet: resume it with `vantage resume {target}`")
    made = _make_task(task, data, verifier, chosen)
    policy = made.make_policy(model=str(folder), seed=seed).to(where)
    metrics: dict[str, float] = made.evaluate(policy, samples=samples, seed=seed)
    return metrics


def _make_task(spec: str, data: str, verifier: str, options: Mapping[str, Any] | None) -> Any:
    # The engine's name is stored among the options, and is not the task's: see `train`.
    own = {name: value for name, value in (options or {}).items() if name != "engine"}
    return make_task(spec, data=data, verifier=verifier, options=own)


def _check_run(config: RunConfig) -> None:
    """Refuse invalid settings of a run before anything is loaded or written."""
    if config.steps < 1:
        raise UserError(f"steps={config.steps} is out of range: at least 1")


def _check_engine(engine: str, task: Any) -> None:
    """Refuse an engine that is not known, not installed, or not for the task's decisions, before anything is loaded."""
    if engine not in ("", "vllm"):
        raise UserError(f"engine={engine!r} is not known: '' for the task's own, or 'vllm'")
    if engine == "vllm":
        from vantage.tasks.language.task import LanguageTask

        if not isinstance(task, LanguageTask):
            raise UserError(f"engine=vllm samples completions of a language model: the task {task.name} has none")
        if task.tool is not None:
            raise UserError(f"engine=vllm holds no conversations: leave it out, the task {task.name} has a tool")
        require("vllm", "vllm")


def _run(
    config: RunConfig,
    built: Method,
    task: Any,
    folder: Path | None,
    listeners: Sequence[Listener],
    policy: Any,
    *,
    resume: bool,
    report: Callable[[str], None] = print,
) -> Run:
    if config.threads:
        torch.set_num_threads(config.threads)
    device = torch.device(config.device)
    schedule = Schedule(
        config.steps,
        save_every=config.save_every,
        evaluate_every=config.evaluate_every,
        evaluate_samples=config.evaluate_samples,
        unit=getattr(task, "unit", "steps"),
    )
    seed_all(config.seed)
    own = policy is None
    if policy is None:
        policy = built.policy_for(task, model=config.model, seed=config.seed)
    policy = policy.to(device)
    engine = built.engine_for(task, policy, seed=config.seed)
    if config.options.get("engine") == "vllm":
        from vantage.integrations.vllm import VllmEngine

        engine = VllmEngine(policy, sampling=engine.sampling)  # the task's own still evaluates
    writers = [task.writer(folder)] if folder is not None and hasattr(task, "writer") else []
    if config.wandb:
        from vantage.integrations.wandb import WandbListener

        writers.append(WandbListener(dataclasses.asdict(config), folder))
    trainer = Trainer(
        built,
        task,
        policy,
        engine,
        schedule,
        seed=config.seed,
        folder=folder,
        micro_batch=getattr(task, "micro_batch", None),
        listeners=[*writers, *listeners],
    )
    if folder is not None and not resume:
        config.write(folder)
    if resume:
        assert folder is not None
        if checkpoints(folder / "checkpoints"):
            step = trainer.restore(report)
            for note in getattr(engine, "resume_notes", ()):
                report(note)
            report(f"resumed from step {step} of {trainer.context.total_steps}")
        else:
            report("the run was stopped before its first checkpoint: it starts again")
    if not trainer.context.step:
        report(outlook(trainer.context))
    with contextlib.ExitStack() as stack:
        for listener in (*writers, *listeners):
            if hasattr(listener, "__enter__"):
                stack.enter_context(listener)
        outcome = trainer.run()
    if folder is not None:
        if own or hasattr(policy, "save"):
            policy.save(folder / "model")
        config.write(folder, outcome.status)
        from vantage.curves import write_curves

        write_curves(folder)
    return Run(folder, outcome, policy)
