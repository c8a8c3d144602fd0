"""Tables of all systems in Markdown, one per family: page, claim and record of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from vantage.methods import registry
from vantage.study.claims import of_page
from vantage.study.records import Result, Results
from vantage.study.schema import write_atomically

NO_PAGE, NO_CLAIM, NOT_RUN = "no page yet", "no claim yet", "not run yet"
INDEX = "index.md"
VERDICTS = ("holds", "not shown", "contradicted")
UP = "../.."
"""From the folder of the tables to the repository's root."""


@dataclass(frozen=True)
class System:
    """Published system: name and publication."""

    id: str
    family: str
    name: str
    kind: str
    arxiv: str
    title: str


@dataclass(frozen=True)
class Row:
    """Line of the table: a system (or a page of no listed system) with one of its claims.

    Args:
        name, family, id, title, arxiv: those of the system, or of the page.
        page: its file in the repository, "" where there is none.
        verdict: verdict of the claim's result, or the reason why there is none.
        claim: claim in words, "" where there is none.
        result: stored result.
    """

    name: str
    family: str
    id: str
    title: str
    arxiv: str
    page: str
    verdict: str
    claim: str = ""
    result: Result | None = None


def systems() -> list[System]:
    """Return all published systems of the project's list, by family and name."""
    text = resources.files("vantage.study").joinpath("systems.tsv").read_text(encoding="utf-8")
    return [System(*line.split("\t")) for line in text.splitlines()[1:]]


def rows(folder: Path) -> list[Row]:
    """Return the table's lines, sorted by family and name.

    Args:
        folder: of the stored results.

    Raises:
        UserError: a stored result cannot be read.
    """
    known = {system.name: system for system in systems()}
    found = [row for page in registry.pages() for row in _of_page(page, known.get(page.name), folder)]
    paged = {row.name for row in found}
    found += [
        Row(one.name, one.family, one.id, one.title, one.arxiv, "", NO_PAGE)
        for one in known.values()
        if one.name not in paged
    ]
    return sorted(found, key=lambda row: (row.family, row.name))


def _of_page(page: registry.Page, system: System | None, folder: Path) -> Iterator[Row]:
    paper = page.papers[0] if page.papers else None
    title = system.title if system else paper.title if paper else page.summary
    arxiv = system.arxiv if system else paper.arxiv if paper else ""
    known = (page.name, page.family, page.id or (system.id if system else ""), title, arxiv)
    where = f"src/{page.module.replace('.', '/')}.py"
    held = Results.of(folder, page).claims
    claims = of_page(page)
    if not claims:
        yield Row(*known, where, NO_CLAIM)
    for one in claims:
        result = held.get(one.claim.label)
        yield Row(*known, where, result.verdict if result else NOT_RUN, one.words, result)


def write_tables(out: Path, folder: Path) -> int:
    """Write the tables of all systems: `index.md` and a file a family; return the number of systems and pages in them.

    Args:
        out: folder of the tables, two below the repository's root (`build/claims`), which their links go by.
        folder: of the stored results.
    """
    found = rows(folder)
    write_atomically(out / INDEX, index(found))
    for family in sorted({row.family for row in found}):
        write_atomically(out / f"{family}.md", table(family, [row for row in found if row.family == family]))
    return len({(row.family, row.name) for row in found})


def index(found: Iterable[Row]) -> str:
    """Return the list of families as Markdown."""
    found = list(found)
    lines = [
        "# Claims",
        "",
        f"{_counted(found)}.",
        "",
        "Written by `make docs-claims` from the records under `claims/`. A claim is run at a small size, with the baseline at",
        "equal budget; the difference is of the means, with its 95 % interval; a record is of the commit that it names. How claims",
        f"are tested: [study.md]({UP}/docs/study.md).",
        "",
    ]
    for family in sorted({row.family for row in found}):
        lines.append(f"- [{family}]({family}.md): {_counted([row for row in found if row.family == family])}")
    return "\n".join(lines) + "\n"


def table(family: str, own: Sequence[Row]) -> str:
    """Return the table of a family as Markdown."""
    lines = [
        f"# {family}",
        "",
        f"{_counted(own)}.",
        "",
        "| System | | Claim | Verdict | Difference | Seeds | Measured |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in own]
    seen = [(row, row.result.seen) for row in own if row.result is not None and row.result.seen]
    if seen:
        lines += ["", "Remarks on the runs:", ""]
        lines += [f"- {row.name}, {_text(row.claim)} ({row.verdict}): {text}" for row, text in seen]
    return "\n".join(lines) + "\n"


def _counted(found: Sequence[Row]) -> str:
    names = {(row.family, row.name) for row in found}
    paged = {(row.family, row.name) for row in found if row.page}
    verdicts = Counter(row.verdict for row in found if row.result is not None)
    counts = ", ".join(f"{verdicts[kind]} {kind}" for kind in VERDICTS)
    return f"{len(names)} systems, {len(paged)} with a page; {sum(verdicts.values())} claims with a result: {counts}"


def _line(row: Row) -> str:
    name = f"[{row.name}]({UP}/{row.page})" if row.page else row.name
    title = f"[{_text(row.title)}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else _text(row.title)
    verdict = f"**{row.verdict}**" if row.result is not None else row.verdict
    effect = seeds = measured = ""
    if row.result is not None:
        effect, seeds = _effect(row.result), str(len(row.result.seeds))
        measured = _text(row.result.measured)
    system = f"{name}{f' {row.id}' if row.id else ''}"
    return f"| {system} | {title} | {_text(row.claim)} | {verdict} | {effect} | {seeds} | {measured} |"


def _effect(result: Result) -> str:
    if result.effect is None:
        return _text(result.reason)
    shown = f"{result.effect:+.3g}"
    if result.interval is not None:
        shown += f" [{result.interval[0]:+.3g}, {result.interval[1]:+.3g}]"
    return shown


def _text(text: str) -> str:
    """Return text escaped for a table cell in Markdown."""
    for mark in ("\\", "|", "[", "]", "*", "_", "<", "`"):
        text = text.replace(mark, f"\\{mark}")
    return text
