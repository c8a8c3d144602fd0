"""The command `vantage`."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vantage.console import print_table
from vantage.core.errors import TrainingError, UserError
from vantage.study.commands import COMMANDS as STUDY_COMMANDS

if TYPE_CHECKING:
    from vantage.methods.index import Entry

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
    """How answers to --data are scored: exact, numeric, math, regex:pattern=..., choice, python:module:function, ..."""
    steps: int | None = None
    """Length of the run: steps of the loop for language, environment steps for control. Default: the task's."""
    seed: int = 0
    """Seed of every random draw."""
    out: str = ""
    """Folder of the run. Default: runs/METHOD-TASK-sSEED."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Settings of the method (group_size=8) and of its components (update.optimizer.lr=3e-4)."""
    option: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Options of the task's engine and policy (max_new_tokens=64, normalize=true)."""
    save_every: int = 0
    """Steps of the training loop between checkpoints; 0: about one a minute."""
    eval_every: int = 0
    """Steps of the training loop between evaluations; 0: before and after."""
    eval_samples: int = 4
    """Samples per held-out problem, or episodes, of an evaluation; 0: none."""
    device: str = "cpu"
    """Where the policy lives, acts, is evaluated and learns: cpu, cuda or cuda:N."""
    threads: int = 0
    """CPU threads; 0 leaves them as they are."""
    wandb: str = ""
    """Weights & Biases project to report to."""
    engine: Literal["", "vllm"] = ""
    """What samples completions: the task's own engine, or vllm (the extra of that name)."""
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
    """Resume a run from its newest whole checkpoint."""

    run: Text
    """Folder of the run."""
    device: str = ""
    """cpu, cuda or cuda:N, in place of the run's own."""
    model: str = ""
    """Present place of the folder of the model that the run starts from, where it was moved."""
    data: str = ""
    """Present place of the run's data."""
    task: str = ""
    """The run's task with the present place of its file, ./mine.py:size=3."""
    method: str = ""
    """Present place of the run's own file of the method."""

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
    """Task with its options; a run's own when it is left out."""
    samples: int = 4
    """Samples per problem (then pass@1 and pass@k are estimated), or episodes."""
    seed: int = 1
    """Seed of the draws."""
    data: str = ""
    """File of your own problems."""
    verifier: str = ""
    """How their answers are scored."""
    option: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Options of the task's engine and policy."""
    device: str = ""
    """Where the policy is evaluated: cpu, cuda or cuda:N; a run's own when it is left out, else cpu."""
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
class Methods:
    """List the methods."""

    task: str = ""
    """Only methods that this task offers all they need (cartpole, addition:digits=3)."""
    family: str = ""
    """Only this family."""
    filter: str = ""
    """Only methods whose name fits a pattern: '*grpo*'."""
    base: str = ""
    """Only methods that start from this one."""
    json: bool = False
    """Print JSON: id, name, family, kind, summary, base, needs, settings, title, arxiv, source, page."""

    def __call__(self) -> int:
        """Run the command."""
        from vantage.methods import index

        offered = None
        if self.task:
            from vantage.tasks.registry import TASKS, offers

            offered = offers(self.task)
            if offered is None:
                raise UserError(
                    f"--task {self.task}: what it offers is not known; the built-in tasks are {', '.join(TASKS)}"
                )
        found = index.entries(family=self.family, pattern=self.filter, base=self.base, offers=offered)
        if self.json:
            print(json.dumps([_as_json(one) for one in found], indent=1))
        else:
            print_table(
                ["name", "id", "family", "what it is"],
                [[one.name, one.id, one.family, _after_colon(one.summary)] for one in found],
            )
        return 0


@dataclass
class Show:
    """Show a method as its page has it: what it is, its settings and its recipe; with --full also its components."""

    method: Text
    """Name of a method, or path of a Python file that defines one."""
    full: bool = False
    """Compose it, and print all components with their settings, and which differ from those of the method it starts from."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Print the components, as with --full, at these settings, written as in `vantage train`."""

    def __call__(self) -> int:
        """Run the command."""
        from vantage.methods import index

        one = index.entry(self.method)
        print(one.summary)
        if one.doc:
            print(f"\n{one.doc}\n")
        for title, text in (
            ("page", self.method if self.method.endswith(".py") else str(one.path)),
            ("id", one.id),
            ("base", " < ".join(base.name for base in one.bases())),
            ("needs", ", ".join(sorted(one.needs))),
            ("source", one.source),
            ("fixed", ", ".join(f"{name}={value}" for name, value in one.fixed.items())),
        ):
            if text:
                print(f"{title:<9} {text}")
        for setting in one.settings.values():
            origin = f" (of {setting.page})" if setting.page != one.name else ""
            print(f"  {f'{setting.name}={setting.default}':<27} {setting.text or '-'}{origin}")
        if self.full or self.set:
            sys.stdout.flush()
            _print_components(self.method, self.set)
        else:
            print(f"\nrecipe (--full prints the components)\n{textwrap.indent(one.recipe, '  ')}")
        return 0


def _print_components(method: str, settings: tuple[str, ...]) -> None:
    from vantage.methods import registry
    from vantage.methods.composition import differences
    from vantage.settings import parse_settings

    built = registry.page(method).make(parse_settings(settings))
    parent = registry.parent_of(built)
    changed = differences(built, parent) if parent is not None else {}
    print(f"\nparent    {parent.name}; components that differ are marked *" if parent is not None else "")
    for place, held in registry.parts_of(built).items():
        print(f"{'*' if place in changed else ' '} {place:<13} {held}")
        if place in changed:
            print(f"  {'':<13} {parent.name if parent else ''}: {changed[place][1]}")


def _as_json(one: Entry) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "family": one.family,
        "kind": one.kind,
        "summary": one.summary,
        "base": one.base.name if one.base is not None else None,
        "needs": sorted(one.needs),
        "settings": {s.name: {"default": s.default, "text": s.text, "page": s.page} for s in one.settings.values()},
        "title": one.title,
        "arxiv": one.arxiv,
        "source": one.source,
        "page": str(one.path),
    }


@dataclass
class Tasks:
    """List the built-in tasks."""

    json: bool = False
    """Print JSON."""

    def __call__(self) -> int:
        """Run the command."""
        from vantage.tasks.registry import TASKS

        rows = [
            {"name": t.name, "field": t.field, "description": t.description, "example": t.example or t.name}
            for t in TASKS.values()
        ]
        if self.json:
            print(json.dumps(rows, indent=1))
        else:
            print_table(["name", "field", "what it is", "example"], [list(row.values()) for row in rows])
        return 0


@dataclass
class Cite:
    """Print the BibTeX of a method and of what it builds on."""

    method: Text
    """Name of a method."""

    def __call__(self) -> int:
        """Run the command."""
        from vantage.methods import registry

        page = registry.page(self.method)
        papers, built = list(page.papers), page.make()
        parent = registry.parent_of(built)
        while parent is not None:
            papers += registry.page(parent.name).papers
            parent = registry.parent_of(parent)
        for _, part in built.components() if hasattr(built, "components") else ():
            papers += getattr(part, "papers", ())
        print("\n\n".join(dict.fromkeys(paper.bibtex() for paper in papers)))
        return 0


@dataclass
class NewModel:
    """Make a small causal language model in Hugging Face format for the built-in tasks."""

    folder: Text
    """Folder to write."""
    preset: str = "tiny"
    """Size: tiny, small, ... (an unknown one lists them)."""
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
    """Browse the completions that a run sampled."""

    run: Text
    """Folder of the run."""
    step: int | None = None
    """Only this step; the last one stored when neither this nor --all is given."""
    all: bool = False
    """All steps."""
    best: bool = False
    """Highest rewards first."""
    worst: bool = False
    """Lowest rewards first."""
    contains: str = ""
    """Only rows whose prompt or completion holds this text."""
    limit: int = 10
    """How many rows."""
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
    "methods": Methods,
    "show": Show,
    "tasks": Tasks,
    "cite": Cite,
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
    except BrokenPipeError:  # the reader of our output went away (`vantage methods | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _spread_repeated(arguments: list[str]) -> list[str]:
    """Gather repeated --set and --option into one, so that both `--set a=1 b=2` and `--set a=1 --set b=2` work."""
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


def _after_colon(summary: str) -> str:
    return summary.partition(": ")[2] or summary


__all__ = ["COMMANDS", "main"]

if __name__ == "__main__":
    sys.exit(main())
