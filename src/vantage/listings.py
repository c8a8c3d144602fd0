"""Commands that list and show methods and tasks: `methods`, `show`, `tasks`, `cite`."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vantage.console import print_table
from vantage.core.errors import UserError

if TYPE_CHECKING:
    from vantage.methods.index import Entry

Text = tyro.conf.Positional[str]


@dataclass
class Methods:
    """List the methods."""

    task: str = ""
    """Only methods that can run on this task (cartpole, addition:digits=3)."""
    family: str = ""
    """Only this family."""
    filter: str = ""
    """Only methods whose name matches a pattern: '*grpo*'."""
    base: str = ""
    """Only methods with this base."""
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
                    f"--task {self.task}: its offers to methods are not known; the built-in tasks are {', '.join(TASKS)}"
                )
        found = index.entries(family=self.family, pattern=self.filter, base=self.base, offers=offered)
        if self.json:
            print(json.dumps([_as_json(one) for one in found], indent=1))
        else:
            print_table(
                ["name", "id", "family", "description"],
                [[one.name, one.id, one.family, _after_colon(one.summary)] for one in found],
            )
        return 0


@dataclass
class Show:
    """Show a method's description, settings and recipe; with --full also its components."""

    method: Text
    """Name of a method, or path of a Python file that defines one."""
    full: bool = False
    """Compose the method, and print all components with their settings, and which differ from the base's."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Print the components, as with --full, with these settings, written as in `vantage train`."""

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
            print_table(["name", "field", "description", "example"], [list(row.values()) for row in rows])
        return 0


@dataclass
class Cite:
    """Print the BibTeX of a method, of its bases and of its components."""

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


def _after_colon(summary: str) -> str:
    return summary.partition(": ")[2] or summary


COMMANDS: dict[str, Any] = {"methods": Methods, "show": Show, "tasks": Tasks, "cite": Cite}
