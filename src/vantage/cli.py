"""The command `vantage`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vantage.core.errors import TrainingError, UserError
from vantage.listings import COMMANDS as LISTINGS
from vantage.study.commands import COMMANDS as STUDY_COMMANDS

Text = tyro.conf.Positional[str]


@dataclass
class Train:
    """Train a policy on a task by a method."""

    method: Text
    """Name of a method (`vantage methods`), or path of a Python file that defines one."""
    task: str = ""
    """Task with its options, for example addition:digits=3, cartpole, gym:LunarLander-v3 (`vantage tasks`)."""
    model: str = ""
    """Folder of the model to start from."""
    data: str = ""
    """File of your own problems: JSONL, JSON, CSV, Parquet, or a saved `datasets` folder."""
    verifier: str = ""
    """Verifier of the answers to --data: exact, numeric, math, regex:pattern=..., choice, python:module:function, ..."""
    steps: int | None = None
    """Length of the run: training steps for language, environment steps for control. Default: the task's."""
    seed: int = 0
    """Random seed."""
    out: str = ""
    """Folder of the run. Default: runs/METHOD-TASK-sSEED."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Settings of the method (group_size=8) and of its components (update.optimizer.lr=3e-4)."""
    option: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Options of the task's engine and policy (max_new_tokens=64, normalize=true)."""
    save_every: int = 0
    """Training steps between checkpoints; 0: about one checkpoint per minute."""
    eval_every: int = 0
    """Training steps between evaluations; 0: evaluations before and after the run alone."""
    eval_samples: int = 4
    """Samples per held-out problem, or episodes, of an evaluation; 0: no evaluations."""
    device: str = "cpu"
    """Device of the policy in sampling, evaluation and training: cpu, cuda or cuda:N."""
    threads: int = 0
    """Number of CPU threads; 0 keeps the default."""
    wandb: str = ""
    """Weights & Biases project to report to."""
    engine: Literal["", "vllm"] = ""
    """Engine that samples completions: the task's own, or vllm (needs the extra of that name)."""
    force: bool = False
    """Overwrite the run in --out."""

    def __call__(self) -> int:
        """Run the command."""
        from vantage import api
        from vantage.progress import Progress
        from vantage.settings import parse_settings

        run = api.train(
            self.method,
            self.task,
            model=self.model,
            data=self.data,
            verifier=self.verifier,
            steps=self.steps,
            seed=self.seed,
            out=self.out or _default_folder(self.method, self.task or Path(self.data).stem, self.seed),
            settings=parse_settings(self.set),
            options=parse_settings(self.option),
            save_every=self.save_every,
            evaluate_every=self.eval_every,
            evaluate_samples=self.eval_samples,
            device=self.device,
            threads=self.threads,
            wandb=self.wandb,
            engine=self.engine,
            force=self.force,
            report=print,
            listeners=[Progress(f"{Path(self.method).stem} on {self.task or self.data}")],
        )
        return _ended(run)


@dataclass
class Resume:
    """Resume a run from its newest valid checkpoint."""

    run: Text
    """Folder of the run."""
    device: str = ""
    """cpu, cuda or cuda:N. Default: the run's own."""
    model: str = ""
    """New location of the run's initial model, where it was moved."""
    data: str = ""
    """New location of the run's data."""
    task: str = ""
    """The run's task with the new location of its file, ./mine.py:size=3."""
    method: str = ""
    """New location of the run's own method file."""

    def __call__(self) -> int:
        """Run the command."""
        from vantage import api
        from vantage.config import read_config
        from vantage.progress import Progress

        config = read_config(Path(self.run))
        if not config.method:
            raise UserError(
                f"the run {self.run} has a method composed by hand: resume it from Python,"
                " vantage.resume(folder, method=...)"
            )
        title = f"{Path(config.method).stem} on {config.task or config.data}"
        run = api.resume(
            self.run,
            [Progress(title)],
            method=self.method or None,
            device=self.device,
            model=self.model,
            data=self.data,
            task=self.task,
        )
        return _ended(run)


@dataclass
class Eval:
    """Evaluate a model, or a run's final model, on held-out problems or fresh episodes."""

    target: Text
    """Folder of a model or of a run."""
    task: str = ""
    """Task with its options. Default: the run's own."""
    samples: int = 4
    """Samples per problem (then pass@1 and pass@k are estimated), or episodes."""
    seed: int = 1
    """Random seed."""
    data: str = ""
    """File of your own problems."""
    verifier: str = ""
    """Verifier of their answers."""
    option: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Options of the task's engine and policy."""
    device: str = ""
    """Device of the evaluation: cpu, cuda or cuda:N. Default: the run's own, or cpu for a model."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> int:
        """Run the command."""
        from vantage import api
        from vantage.settings import parse_settings

        metrics = api.evaluate(
            self.target,
            self.task,
            samples=self.samples,
            seed=self.seed,
            data=self.data,
            verifier=self.verifier,
            options=parse_settings(self.option),
            device=self.device,
        )
        if self.json:
            print(json.dumps(metrics))
        else:
            width = max(len(name) for name in metrics)
            for name, value in metrics.items():
                print(f"{name:<{width}}  {value:.4f}")
        return 0


@dataclass
class NewModel:
    """Make a small causal language model with random weights in Hugging Face format, for the built-in tasks."""

    folder: Text
    """Folder to write."""
    preset: str = "tiny"
    """Size: tiny, small, ... (an unknown name lists them)."""
    architecture: str = "llama"
    """llama, qwen2 or qwen3."""
    seed: int = 0
    """Seed of the random weights."""
    force: bool = False
    """Overwrite a model in the folder."""

    def __call__(self) -> int:
        """Run the command."""
        from vantage.policies.tiny import new_model

        new_model(
            Path(self.folder), preset=self.preset, architecture=self.architecture, seed=self.seed, force=self.force
        )
        print(f"wrote {self.folder}")
        return 0


@dataclass
class Samples:
    """Show the completions that a run stored."""

    run: Text
    """Folder of the run."""
    step: int | None = None
    """Only this step. Default: the last one stored, unless --all is given."""
    all: bool = False
    """All steps."""
    best: bool = False
    """Highest rewards first."""
    worst: bool = False
    """Lowest rewards first."""
    contains: str = ""
    """Only rows whose prompt or completion contains this text."""
    limit: int = 10
    """Largest number of rows."""
    json: bool = False
    """Print JSON lines."""

    def __call__(self) -> int:
        """Run the command."""
        from vantage.tasks.language.samples import browse

        print(
            browse(
                Path(self.run),
                step=self.step,
                everything=self.all,
                order="best" if self.best else "worst" if self.worst else "stored",
                contains=self.contains,
                limit=self.limit,
                as_json=self.json,
            )
        )
        return 0


COMMANDS: dict[str, Any] = {
    "train": Train,
    "resume": Resume,
    "eval": Eval,
    **LISTINGS,
    "new-model": NewModel,
    "samples": Samples,
    **STUDY_COMMANDS,
}


def main(argv: list[str] | None = None) -> int:
    """Run a command line; return its exit code: 0, 1 for a failed run, 2 for bad input, 130 for an interrupt."""
    arguments = _spread_repeated(list(sys.argv[1:] if argv is None else argv))
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="vantage",
            description="Policy optimisation: every method as a composition of small components in one training loop.",
            args=arguments or ["--help"],
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        return int(command())
    except (UserError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of the output has closed it (`vantage methods | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _spread_repeated(arguments: list[str]) -> list[str]:
    """Join repeated --set and --option, so that both `--set a=1 b=2` and `--set a=1 --set b=2` work."""
    rest: list[str] = []
    gathered: dict[str, list[str]] = {"--set": [], "--option": []}
    current: str | None = None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in gathered:
            current = None if equals else name
            if equals:
                gathered[name].append(value)
        elif current is not None and not argument.startswith("--"):
            gathered[current].append(argument)
        else:
            current = None
            rest.append(argument)
    for name, values in gathered.items():
        if values:
            rest += [name, *values]
    return rest


def _default_folder(method: str, task: str, seed: int) -> str:
    clean = "".join(c if c.isalnum() or c in "-._" else "-" for c in f"{Path(method).stem}-{task}")
    return f"runs/{clean}-s{seed}"


def _ended(run: Any) -> int:
    first: dict[str, Any] = next((line for line in run.metrics if any(key.startswith("eval/") for key in line)), {})
    last: dict[str, Any] = next(
        (line for line in reversed(run.metrics) if any(key.startswith("eval/") for key in line)), {}
    )
    for key, value in last.items():
        if key.startswith("eval/") and value is not None:
            before = first.get(key)
            change = f"  (before: {before:.4g})" if before is not None and first is not last else ""
            print(f"{key.removeprefix('eval/'):<24} {value:.4g}{change}")
    if run.outcome.status == "interrupted":
        print(
            f"interrupted after step {run.outcome.step}; everything is saved; resume with `vantage resume {run.folder}`"
        )
        return 130
    print(f"run folder: {run.folder}  (curves.png, metrics.jsonl, model/)")
    return 0


__all__ = ["COMMANDS", "main"]

if __name__ == "__main__":
    sys.exit(main())
