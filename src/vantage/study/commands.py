"""Commands of the study: `compare`, `arenas`, `claims`, `watch`. Heavy modules are imported when a command runs."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vantage.console import print_table
from vantage.core.errors import UserError, unknown

if TYPE_CHECKING:
    from vantage.study.claims import Stated

Text = tyro.conf.Positional[str]
Texts = tyro.conf.Positional[tuple[str, ...]]


@dataclass
class Compare:
    """Run methods in an arena, several seeds each, and write a report that compares them."""

    methods: Annotated[Texts, tyro.conf.arg(metavar="METHOD[:NAME=VALUE,...] ...")]
    """Methods by name or file, optionally with settings (grpo:group_size=16,update.optimizer.lr=1e-3). The first is the
    baseline. Methods of peer libraries are possible too (sb3-ppo)."""
    arena: str = ""
    """Name of an arena (`vantage arenas`), or TOML file that defines one."""
    seeds: int | None = None
    """Runs of each method. Default: the arena's."""
    jobs: int | None = None
    """Number of parallel runs, each a process with one thread. Default: the number of processors."""
    out: str = ""
    """Folder for study.json and report.html. Default: runs/compare-ARENA-METHODS."""
    fresh: bool = False
    """Run everything again, finished runs included."""
    force: bool = False
    """Write into --out even where it holds something else."""

    def __call__(self) -> int:
        """Run the command."""
        from vantage.folders import locked
        from vantage.study.arenas import arena, names
        from vantage.study.contest import REPORT, Contest, claim_folder, entrant, read_entry, seeds_of
        from vantage.study.live import Live

        if not self.methods:
            raise UserError("nothing to compare: give at least one method")
        if not self.arena:
            raise UserError(f"no arena: give --arena NAME or FILE.toml (arenas: {', '.join(names())})")
        where = arena(self.arena)
        entrants = [entrant(where, *read_entry(text), name=text) for text in self.methods]
        seeds = seeds_of(where.seeds if self.seeds is None else self.seeds)
        command = ["vantage", "compare", *self.methods, "--arena", self.arena, "--seeds", str(len(seeds))]
        contest = Contest(where, entrants, seeds, command=shlex.join(command))
        out = Path(self.out or _default_out(where.name, self.methods))
        claim_folder(out, contest, self.force)
        with locked(out), Live(where.name, contest.works, self.jobs) as live:
            study = contest.run(jobs=self.jobs, fresh=self.fresh, out=out, watchers=[live])
        _print_summary(study)
        crashed = [run for run in study.runs if run.status == "crashed"]
        for run in crashed:
            print(f"crashed: {run.arm} seed {run.seed}: {run.error}")
        print(f"report: {out / REPORT}")
        return 1 if len(crashed) == len(study.runs) else 0


@dataclass
class Arenas:
    """List the arenas: task, budget and evaluation of a comparison."""

    json: bool = False
    """Print JSON."""

    def __call__(self) -> int:
        """Run the command."""
        from vantage.study.arenas import arenas
        from vantage.study.schema import encode

        found = arenas()
        if self.json:
            print(json.dumps([encode(each) for each in found], indent=1))
            return 0
        rows = []
        for each in found:
            measured = each.calibration
            rows.append(
                [
                    each.name,
                    each.field,
                    f"{each.budget.size:,.0f} {each.budget.unit}",
                    each.scoring.metric,
                    "" if measured is None else f"{measured.untrained:.3g} → {max(measured.trained.values()):.3g}",
                    "" if measured is None else f"{measured.seconds:.0f} s",
                    each.description,
                ]
            )
        print_table(["name", "field", "budget", "metric", "untrained → best", "a run", "description"], rows)
        return 0


@dataclass
class Claims:
    """Run the claims of method pages, show their runs and records, or accept that a change altered what they compute."""

    action: tyro.conf.Positional[Literal["run", "show", "table", "check", "bless"]]
    """run: run and store claims; show: the course of each finished run, by seed; table: write tables of all systems, one file per
    family; check: list results that were measured before a change that altered them, and missing ones; bless: store the present
    probes, and mark each result that the change altered as measured before it (--because)."""
    names: Texts = ()
    """For `run`, `show` and `bless`: methods (ppo), single claims (ppo/hopper), or all."""
    figures: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """For `show`: diagnostics to print beside the score (length entropy ...); an unknown name lists them."""
    because: str = ""
    """For `bless`: description of the change, in a sentence that is stored in the results."""
    marked: bool = False
    """For `run`: the results that were measured before a change that altered them."""
    seeds: int | None = None
    """Runs of each side. Default: the claim's, usually 5."""
    jobs: int | None = None
    """Number of parallel runs. Default: the number of processors."""
    folder: str = "claims"
    """Folder of the stored results."""
    out: str = ""
    """For `run`: folder for a report of each claim. For `table`: folder of the tables. Default: build/claims."""
    fresh: bool = False
    """Run everything again, finished runs included."""

    def __call__(self) -> int:
        """Run the command."""
        if self.action in ("table", "check") and self.names:
            raise UserError(f"claims {self.action} takes no names; it applies to all results")
        for name, action in (("figures", "show"), ("because", "bless"), ("marked", "run")):
            if getattr(self, name) and self.action != action:
                raise UserError(f"--{name} goes with claims {action}, not with claims {self.action}")
        actions = {
            "run": self._run,
            "show": self._show,
            "table": self._table,
            "check": self._check,
            "bless": self._bless,
        }
        return actions[self.action]()

    def _chosen(self) -> list[Stated]:
        from vantage.study import claims

        if not self.names:
            raise UserError(f"nothing to {self.action}: give methods (ppo), single claims (ppo/hopper), or all")
        if self.names == ("all",):
            return claims.all_stated()
        return [one for name in self.names for one in claims.stated(name)]

    def _run(self) -> int:
        from vantage.study import claims
        from vantage.study.live import Live

        folder = Path(self.folder)
        chosen = self._chosen() if self.names or not self.marked else claims.all_stated()
        if self.marked:
            marked = claims.marked(folder)
            chosen = [one for one in chosen if one in marked]
        for one in chosen:
            label = f"{one.page.name}/{one.claim.label}"
            contest = claims.contest_of(one, self.seeds)
            out = Path(self.out) / label.replace("/", "-") if self.out else None
            with Live(label, contest.works, self.jobs) as live:
                result = claims.run(one, contest, folder, jobs=self.jobs, fresh=self.fresh, out=out, watchers=[live])
            print(claims.sentence(label, result))
        return 0

    def _bless(self) -> int:
        if not self.because.strip():
            raise UserError(
                'claims bless needs --because "...": a description of the change, for the readers of the result'
            )
        from vantage.study import probes

        pages = {one.page.name: one.page for one in self._chosen()}
        for page in pages.values():
            for line in probes.bless(Path(self.folder), page, self.because.strip()):
                print(line)
        return 0

    def _show(self) -> int:
        from vantage.study import claims
        from vantage.study.cache import Cache, default_folder

        cache = Cache(default_folder())
        for one in self._chosen():
            label, runs = f"{one.page.name}/{one.claim.label}", claims.kept(one, cache, self.seeds)
            there = [run for _, _, run in runs if run is not None]
            print(f"{label}: {one.words}")
            if not there:
                print(f"none of its {len(runs)} runs is kept here: vantage claims run {label}")
                continue
            known = sorted({name for run in there for name in run.diagnostics})
            for name in self.figures:
                if name not in known:
                    raise unknown("figure", name, known, label)
            columns = [point.samples for point in max((run.curve for run in there), key=len)]
            rows = []
            for side, seed, run in runs:
                if run is None:
                    rows.append([side.arm.name, str(seed), "", "not kept here"])
                    continue
                for name in ("", *self.figures):
                    cells = ["" if x is None else f"{x:.3g}" for x in claims.course(run, name, columns)]
                    rows.append([side.arm.name, str(seed), name or one.arena.scoring.metric, *cells])
            heads = [f"{column:,.0f}" for column in columns]
            print_table(["side", "seed", f"after {one.arena.budget.unit}", *heads], rows)
        return 0

    def _table(self) -> int:
        from vantage.study import systems

        out = Path(self.out or "build/claims")
        number = systems.write_tables(out, Path(self.folder))
        print(f"wrote {out / systems.INDEX}: {number} systems")
        return 0

    def _check(self) -> int:
        from vantage.study import claims

        found = claims.check(Path(self.folder))
        for problem in found.problems:
            print(problem)
        for names, said in (
            (found.missing, "claims have no result yet"),
            (found.marked, "results were measured before a change that altered them (vantage claims run --marked)"),
            (found.unseen, 'results do not hold and lack remarks on their runs ("seen" in their file)'),
        ):
            if names:
                print(f"{len(names)} {said}: {', '.join(names)}")
        if not (found.problems or found.missing or found.marked):
            print("every claim has a result that no accepted change has altered")
        return 1 if found.problems else 0


@dataclass
class Watch:
    """Serve the report of a running comparison, with refreshes, on this machine only."""

    folder: Text
    """The comparison's --out folder."""
    port: int = 8321
    """Port on 127.0.0.1; 0 for any free one."""
    every: float = 5.0
    """Seconds between refreshes."""

    def __call__(self) -> int:
        """Run the command."""
        from vantage.study.watch import serve

        serve(Path(self.folder), self.port, self.every)
        return 0


def _default_out(arena: str, methods: tuple[str, ...]) -> str:
    joined = "-".join(methods)
    clean = "".join(c if c.isalnum() or c in "-._=" else "-" for c in joined)
    if len(clean) > 60 or clean != joined:
        clean = f"{clean[:50]}-{hashlib.sha256(joined.encode()).hexdigest()[:6]}"
    return f"runs/compare-{arena}-{clean}"


def _print_summary(study: object) -> None:
    from vantage.study.results import Study
    from vantage.study.summary import summarise

    assert isinstance(study, Study)
    summary = summarise(study)
    rows = []
    for arm in sorted(
        summary.arms,
        key=lambda one: (
            one.mean is None,
            (-1 if study.direction == "higher" else 1) * (one.mean.value if one.mean else 0),
        ),
    ):
        mean, better = arm.mean, arm.better
        rows.append(
            [
                arm.name,
                f"{arm.ok}" + (f" ({arm.crashed} crashed)" if arm.crashed else ""),
                _interval(mean, summary.decimals),
                _interval(arm.iqm, summary.decimals),
                _interval(better, 2),
                "" if arm.duration is None else f"{arm.duration:.0f} s",
            ]
        )
    header = [
        "method",
        "seeds",
        f"{study.metric}, mean",
        "interquartile mean",
        f"P(better than {study.reference})",
        "a run",
    ]
    print_table(header, rows)
    print(summary.headline)


def _interval(figure: object, decimals: int) -> str:
    value, low, high = figure if isinstance(figure, tuple) else (None, None, None)
    if value is None:
        return ""
    return f"{value:.{decimals}f}" + (
        "" if low is None or high is None else f" [{low:.{decimals}f}, {high:.{decimals}f}]"
    )


COMMANDS = {"compare": Compare, "arenas": Arenas, "claims": Claims, "watch": Watch}
