"""Registry of methods: the `@method` decorator, and lookup by name or file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from vantage.core.errors import UserError, nearest
from vantage.core.method import PLACES, Method
from vantage.methods import index
from vantage.methods.composition import configure, describe
from vantage.methods.recipes import checked, explained, hints_of, inherit
from vantage.userfile import PREFIX, called, errors_in, is_own, load, shown

M = TypeVar("M")


@dataclass(frozen=True)
class Paper:
    """A publication, enough for BibTeX."""

    title: str
    authors: str
    year: int
    arxiv: str = ""
    venue: str = ""
    url: str = ""

    @property
    def key(self) -> str:
        """BibTeX key: first author's last name, year, first word of the title."""
        first = self.authors.split(" and ")[0].split(",")[0].split()[-1]
        word = next((w for w in self.title.split() if len(w) > 3), "paper")
        return "".join(c for c in f"{first}{self.year}{word}".lower() if c.isalnum())

    def bibtex(self) -> str:
        """Return the BibTeX entry."""
        rows = [f"  title = {{{self.title}}}", f"  author = {{{self.authors}}}", f"  year = {{{self.year}}}"]
        if self.arxiv:
            rows += [f"  eprint = {{{self.arxiv}}}", "  archivePrefix = {arXiv}"]
        if self.venue:
            rows.append(f"  booktitle = {{{self.venue}}}")
        if self.url:
            rows.append(f"  url = {{{self.url}}}")
        kind = "inproceedings" if self.venue else "misc"
        return f"@{kind}{{{self.key},\n" + ",\n".join(rows) + "\n}"


@dataclass(frozen=True)
class Page:
    """A method as its page declares it."""

    name: str
    family: str
    kind: str
    id: str
    papers: tuple[Paper, ...]
    recipe: Callable[..., Any] = field(compare=False)
    module: str
    summary: str
    base: Page | None = None
    needs: frozenset[str] = frozenset()
    """Needs of the method from a task at default settings, in the words of `vantage.tasks.offers`."""
    source: str = ""
    """Code that the page was compared with; see `method`."""
    explained: Mapping[str, str] = field(default_factory=dict)
    """Explanations of settings in the recipe's own docstring."""

    def explanation(self, setting: str) -> tuple[str, Page]:
        """Return the explanation of a setting, "" if there is none, and its page: this one or one that it starts from."""
        if setting in self.explained:
            return self.explained[setting], self
        return self.base.explanation(setting) if self.base is not None else ("", self)

    def settings(self) -> dict[str, Any]:
        """Return the recipe's settings and their defaults, the paper's values."""
        return {name: p.default for name, p in inspect.signature(self.recipe).parameters.items()}

    def make(self, settings: Mapping[str, Any] | None = None) -> Any:
        """Return what the recipe makes: a `Method`, or in a field without a rollout loop what that field runs.

        Args:
            settings: of the recipe (`group_size`), and with dots in their names of components (`update.optimizer.lr`), which are
                set afterwards, in the order given.

        Raises:
            UserError: a setting is not known, of the wrong kind or out of range.
        """
        given = dict(settings or {})
        known = self.settings()
        own = {name: value for name, value in given.items() if "." not in name}
        for name in own:
            if name not in known:
                raise UserError(
                    f"{self.name} has no setting {name!r}{nearest(name, known)} (settings: {', '.join(known) or 'none'};"
                    " a setting of a component is written component.field)"
                )
        file = getattr(sys.modules.get(self.module), "__file__", None) if is_own(self.module) else None
        with errors_in(shown(file)) if file else contextlib.nullcontext():
            composed = made = self.recipe(**own)
        for path, value in given.items():
            if path not in own:
                made = configure(made, path, value)
        return dataclasses.replace(made, name=self.name, parent=composed.parent) if isinstance(made, Method) else made

    def build(self, settings: Mapping[str, Any] | None = None) -> Method:
        """Compose the method.

        Raises:
            UserError: a setting is not known or of the wrong kind, or it is not a `Method`.
        """
        return self.as_method(self.make(settings))

    def as_method(self, made: Any) -> Method:
        """Return what the recipe made, if it is a method.

        Raises:
            UserError: it has no rollout loop.
        """
        if made is None:
            raise UserError(f"{self.name}: the recipe returns nothing; it must return a Method")
        if not isinstance(made, Method):
            raise UserError(
                f"{self.name} has no rollout loop, so it cannot be trained: `vantage show {self.name}` describes it, and"
                f" `vantage compare {self.name} --arena ...` runs it where its field is studied"
            )
        return made


def parts_of(made: Any) -> dict[str, str]:
    """Return the components of a method as text, in the order of the training loop, or the fields of any other recipe's result."""
    if isinstance(made, Method):
        return {place: describe(getattr(made, place)) for place in PLACES}
    if is_dataclass(made):
        return {f.name: describe(getattr(made, f.name)) for f in fields(made) if f.repr}
    return {"runs": describe(made)}


def parent_of(made: Any) -> Method | None:
    """Return the nearest method with another name that this one was made from; None where there is none."""
    parent = getattr(made, "parent", None)
    while isinstance(parent, Method) and parent.name in ("", made.name):
        parent = parent.parent
    return parent if isinstance(parent, Method) else None


def _named(made: Any, name: str) -> Any:
    return made.replace(name=name) if isinstance(made, Method) else made


def method(
    marked: Callable[..., Any] | None = None,
    *,
    papers: tuple[Paper, ...] | Paper | None = None,
    base: Callable[..., Any] | None = None,
    without: Iterable[str] = (),
    family: str = "",
    id: str = "",
    kind: str = "algorithm",
    name: str = "",
    needs: Iterable[str] | str | None = None,
    source: str = "",
    **changed: Any,
) -> Callable[[Callable[..., M]], Callable[..., M]]:
    """Mark a recipe as the page's.

    A recipe returns a `Method`; in a field without a rollout loop, a frozen dataclass that the field's function runs. Called
    directly it returns the method with its name set, so that a child knows its parent. Its docstring explains its settings:
    `name: text; other, third: text.`

    Args:
        marked: none; @method is written with its arguments.
        papers: publications to cite, at least one.
        base: the recipe that this one starts from: it gets what `base` made as first argument, `base`, and has the settings
            of the base beside its own. A setting that both have is given to both, unless hidden.
        without: settings of the base that this one fixes or replaces; they cannot be given.
        family: of a method in a user's own file, "mine" by default. In the package the family is the folder.
        id: S-number in the list of systems.
        kind: algorithm, framework, theory, recipe, ...
        name: by default that of the module, with hyphens.
        needs: what the method needs of a task, in the words of `vantage.tasks.offers`; that of the base by default. It says
            what its components declare at the defaults, for listings; a test compares. What counts in a run is what the
            components of that run declare.
        source: code that the page was compared with, `repository@commit file`: the script that the authors ran, or where they
            published none the implementation that people take; more than one are separated by "; ". Where there is no public
            code: "none: " and what the page follows. Of each page in the package, tests/reference has the comparison. A base's
            source is not that of this page.
        **changed: defaults that differ from those of the base, fixed values of hidden settings included.

    Raises:
        UserError: a name in `without` or `changed` is none of the base's settings, `papers` is missing, the base is no recipe, a
            setting has no default, a page in the package gives `family`, or a user's own file has the name of a method of the
            package.
    """
    cited = papers if isinstance(papers, tuple) else (papers,)
    if marked is not None or not cited or not all(isinstance(paper, Paper) for paper in cited):
        raise UserError("@method needs papers=, what to cite: @method(papers=Paper(TITLE, AUTHORS, YEAR), ...)")

    def mark(recipe: Callable[..., M]) -> Callable[..., M]:
        module = recipe.__module__
        if base is None and (changed or without):
            raise UserError(
                f"{called(recipe)}: {', '.join([*changed, *without])} can be given to @method only together with base="
            )
        given = list(inspect.signature(recipe).parameters.values())[base is not None :]
        for one in given:
            if one.default is one.empty:
                raise UserError(f"{called(recipe)}: the setting {str(one)!r} needs a default")
        page_name = name or module.rsplit(".", 1)[-1].removeprefix(f"{PREFIX}page_").replace("_", "-")
        if is_own(module):
            index.check_own_name(page_name)
        doc = inspect.getdoc(sys.modules[module]) or inspect.getdoc(recipe) or ""
        whole = checked(recipe if base is None else inherit(recipe, base, without, changed), page_name)
        if is_own(module):
            hints_of(whole)  # those of the package are read when they are first needed

        @functools.wraps(whole)
        def named(*args: Any, **kwargs: Any) -> M:
            made: M = _named(whole(*args, **kwargs), page_name)
            return made

        own = [p for p in inspect.signature(recipe).parameters if base is None or p != "base"]
        parent: Page | None = getattr(base, "page", None)
        said = (needs,) if isinstance(needs, str) else needs
        page = Page(
            name=page_name,
            family=_family(module, family),
            kind=kind,
            id=id,
            papers=tuple(paper for paper in cited if paper is not None),
            recipe=named,
            module=module,
            summary=index.first_line(doc),
            base=parent,
            needs=frozenset(said) if said is not None else parent.needs if parent is not None else frozenset(),
            source=source,
            explained=explained(recipe.__doc__ or "", own),
        )
        named.page = page  # type: ignore[attr-defined]
        return named

    return mark


def _family(module: str, given: str) -> str:
    """Return the family of a page: its folder in the package, elsewhere what it says."""
    if not module.startswith("vantage.methods."):
        return given or "mine"
    if given:
        raise UserError(f"{module}: the family of a page is its folder; leave out family={given!r}")
    return module.split(".")[2]


def _pages_of(module: Any) -> list[Page]:
    return [held.page for held in vars(module).values() if isinstance(getattr(held, "page", None), Page)
            and held.page.module == module.__name__]  # fmt: skip


def names() -> list[str]:
    """Return the names of all methods."""
    return sorted(index.modules())


def page(name: str) -> Page:
    """Return the page of a method, by its name or by the path of a file that defines one.

    Raises:
        UserError: no method has this name; the message gives the nearest.
    """
    if name.endswith(".py"):
        return _page_of_file(Path(name))
    key, module = index.module_of(name)
    found = [p for p in _pages_of(importlib.import_module(module)) if p.name == key]
    if not found:
        raise UserError(f"the module {module} defines no method {key!r}: mark its recipe with @method")
    return found[0]


def _page_of_file(path: Path) -> Page:
    inside = index.module_of_file(path)
    if inside:
        return page(index.module_of(path.stem)[0])
    found = _pages_of(load(path, "page"))
    if len(found) != 1:
        raise UserError(index.not_one(path, len(found)))
    return found[0]


def pages(family: str | None = None) -> list[Page]:
    """Return all pages, or those of a family, by name.

    Raises:
        UserError: there is no such family.
    """
    return [page(one.name) for one in index.entries(family=family or "")]
