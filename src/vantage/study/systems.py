"""All systems that the project knows, and what is known of each: page, claim, verdict. The table `docs/claims.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from vantage.methods import registry
from vantage.study.claims import Result, Results, of_page
from vantage.study.schema import write_atomically
from vantage.study.staleness import stale

NO_PAGE, NO_CLAIM, NOT_RUN = "no page yet", "no claim yet", "not run yet"
OLDER = "of older code"


@dataclass(frozen=True)
class System:
    """A published system: what it is called, and where it was published."""

    id: str
    family: str
    name: str
    kind: str
    arxiv: str
    title: str


@dataclass(frozen=True)
class Row:
    """One line of the table: a system (or a page that is none of them) with one of its claims.

    Args:
        name, family, id, title, arxiv: of the system, or of the page.
        page: its file in the repository, "" where there is none.
        verdict: of the claim's result, or why there is none.
        claim: in words, "" where there is none.
        result: what is stored.
        older: whether the result was made by code that has since changed.
        seen: why a result does not hold, as far as looking at its runs showed.
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
    older: bool = False
    seen: str = ""


def systems() -> list[System]:
    """Return all published systems that the project is to hold, by family and name."""
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
    path = Results.path(folder, page)
    held = Results.load(path).claims if path.is_file() else {}
    claims = of_page(page)
    if not claims:
        yield Row(*known, where, NO_CLAIM)
    for one in claims:
        result = held.get(one.claim.label)
        if result is None:
            yield Row(*known, where, NOT_RUN, one.words)
        else:
            yield Row(*known, where, result.verdict, one.words, result, bool(stale(one, result)), one.claim.seen)


def write_table(path: Path, folder: Path) -> int:
    """Write the table of all systems as Markdown; return the number of systems and pages in it."""
    found = rows(folder)
    write_atomically(path, markdown(found))
    return len({(row.family, row.name) for row in found})


def markdown(found: Iterable[Row]) -> str:
    """Return the table as Markdown, one section a family."""
    found = list(found)
    names = {(row.family, row.name) for row in found}
    paged = {(row.family, row.name) for row in found if row.page}
    verdicts = Counter(row.verdict for row in found if row.result is not None)
    told = ", ".join(f"{verdicts[kind]} {kind}" for kind in ("holds", "not shown", "contradicted"))
    lines = [
        "# Claims",
        "",
        f"{len(names)} systems, {len(paged)} with a page; {sum(verdicts.values())} claims with a result: {told}.",
        "",
        "Written by `vantage claims table` from the results under `claims/`. A claim is run at a small size, with the baseline at",
        "equal budget; the difference is of the means, with its 95 % interval. How claims are judged: [study.md](study.md).",
    ]
    families = sorted({row.family for row in found})
    for family in families:
        lines += [
            "",
            f"## {family}",
            "",
            "| System | | Claim | Verdict | Difference | Seeds | Date |",
            "|---|---|---|---|---|---|---|",
        ]
        own = [row for row in found if row.family == family]
        lines += [_line(row) for row in own]
        looked = [row for row in own if row.result is not None and row.seen]
        if looked:
            lines += ["", "What looking at the runs showed:", ""]
            lines += [f"- {row.name}, {_text(row.claim)} ({row.verdict}): {row.seen}" for row in looked]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    name = f"[{row.name}](../{row.page})" if row.page else row.name
    title = f"[{_text(row.title)}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else _text(row.title)
    verdict = f"**{row.verdict}**" if row.result is not None else row.verdict
    if row.older:
        verdict += f" ({OLDER})"
    effect = seeds = date = ""
    if row.result is not None:
        effect, seeds, date = _effect(row.result), str(len(row.result.seeds)), row.result.date[:10]
    system = f"{name}{f' {row.id}' if row.id else ''}"
    return f"| {system} | {title} | {_text(row.claim)} | {verdict} | {effect} | {seeds} | {date} |"


def _effect(result: Result) -> str:
    if result.effect is None:
        return _text(result.reason)
    shown = f"{result.effect:+.3g}"
    if result.interval is not None:
        shown += f" [{result.interval[0]:+.3g}, {result.interval[1]:+.3g}]"
    return shown


def _text(text: str) -> str:
    """Text that means nothing to Markdown inside a table's cell."""
    for mark in ("\\", "|", "[", "]", "*", "_", "<", "`"):
        text = text.replace(mark, f"\\{mark}")
    return text
