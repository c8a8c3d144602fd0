"""Index of the pages, read from their source without importing them: names, first lines, settings, needs.

A listing needs neither torch nor the components of a page. What is read here is compared with the pages themselves by a test.
"""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vantage.core.errors import UserError, nearest, unknown
from vantage.methods.recipes import explained

ROOT = Path(__file__).parent
"""Folder of the families."""
_OWN = ("papers", "base", "without", "family", "id", "kind", "name", "needs", "source")
"""Arguments of `@method`; all others change defaults of the base."""


@dataclass(frozen=True)
class Setting:
    """A setting of a recipe: name, default as written, explanation, and the page of the explanation."""

    name: str
    default: str
    text: str
    page: str


@dataclass(frozen=True)
class Entry:
    """Entry of a method in the index, read from the source of its page.

    Attributes:
        name, family, kind, id, summary, needs, source: as of `registry.Page`; the summary without the id.
        path: of the file.
        trains: whether the recipe returns a `Method`, which is trained; False in fields without a rollout loop.
        base: the page that it starts from.
        settings: in the order of the recipe's signature, inherited ones first.
        fixed: settings of the base that callers cannot give, and the values that the page gives them.
        doc: docstring of the page, without its first line.
        recipe: source of what the recipe does, without its docstring.
        title, arxiv: of the first paper, "" where the page does not write them out.
    """

    name: str
    family: str
    kind: str
    id: str
    summary: str
    path: Path
    trains: bool
    base: Entry | None
    needs: frozenset[str]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)
    doc: str = ""
    recipe: str = ""
    title: str = ""
    arxiv: str = ""
    source: str = ""

    def bases(self) -> Iterator[Entry]:
        """Yield the page that it starts from, that page's, and so on."""
        held = self.base
        while held is not None:
            yield held
            held = held.base


@functools.cache
def modules() -> dict[str, str]:
    """Return method name -> module, from the files' names alone.

    Raises:
        UserError: two pages have one name.
    """
    found: dict[str, str] = {}
    for path in sorted(ROOT.glob("[!_]*/[!_]*.py")):
        name, module = path.stem.replace("_", "-"), f"vantage.methods.{path.parent.name}.{path.stem}"
        if name in found:
            files = " and ".join(f"{one.replace('.', '/')}.py" for one in (found[name], module))
            raise UserError(f"two pages have the name {name!r}: {files}; rename one")
        found[name] = module
    return found


def module_of(name: str) -> tuple[str, str]:
    """Return the name of a method as its page has it, and the page's module.

    Raises:
        UserError: no method has this name; the message gives the nearest.
    """
    key, known = name.strip().lower().replace("_", "-"), modules()
    if key not in known:
        raise unknown("method", name, known)
    return key, known[key]


def entry(name: str) -> Entry:
    """Return the entry of a method, by its name or by the path of a file that defines one.

    Raises:
        UserError: there is no such method or file, or the file cannot be read as a page.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"there is no file {name}")
        inside = module_of_file(path)
        if inside:
            return _entry_of(inside)
        found = _read(path)
        check_own_name(found.name, f"{name}: ")
        return found
    return _entry_of(module_of(name)[1])


def not_one(path: Path, count: int) -> str:
    """Return the error for a file with no method or several."""
    return f"{path} defines {count} methods; exactly one recipe must be marked with @method(papers=..., ...)"


def module_of_file(path: Path) -> str:
    """Return the module of a file that is a page of the package, "" for any other."""
    resolved = path.resolve().with_suffix("")
    if not resolved.is_relative_to(ROOT):
        return ""
    inside = ".".join(("vantage.methods", *resolved.relative_to(ROOT).parts))
    return inside if inside in modules().values() else ""


def check_own_name(name: str, where: str = "") -> None:
    """Refuse the name of a method of the package for a method in a user's own file; `where` begins the message.

    Raises:
        UserError: the name is taken.
    """
    if name in modules():
        taken = f"src/{modules()[name].replace('.', '/')}.py"
        raise UserError(
            f"{where}the name {name!r} is that of a method of the package ({taken}): rename the file, or give"
            " @method(name=...)"
        )


def entries(
    *, family: str = "", pattern: str = "", base: str = "", offers: frozenset[str] | None = None
) -> list[Entry]:
    """Return the entries of all pages, sorted by name, or of those that fit all filters.

    Args:
        family: only this family.
        pattern: only names that match, with * and ? (`*grpo*`).
        base: only methods that start from this one, directly or not.
        offers: only methods that are trained and need of a task no more than this.

    Raises:
        UserError: the family or the base is not known.
    """
    found = [_entry_of(module) for _, module in sorted(modules().items())]
    families = sorted({one.family for one in found})
    if family and family not in families:
        raise UserError(f"unknown family {family!r}{nearest(family, families)} (known: {', '.join(families)})")
    start = module_of(base)[0] if base else ""
    return [
        one
        for one in found
        if (not family or one.family == family)
        and (not pattern or fnmatch(one.name, pattern))
        and (not start or start in (held.name for held in one.bases()))
        and (offers is None or (one.trains and one.needs <= offers))
    ]


def first_line(doc: str) -> str:
    """Return the first line of a page's docstring, without the id at its end."""
    return re.sub(r"\s*\(S\d+\)$", "", doc.split("\n", 1)[0].strip())


@functools.cache
def _entry_of(module: str) -> Entry:
    return _read(_path(module), module)


def _read(path: Path, module: str = "") -> Entry:
    """Read a page; `module` is its name in the package, "" for a user's own file.

    Raises:
        UserError: not exactly one function is marked with @method, or the file is not valid Python.
    """
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start + 1}") from error
    marked = [
        (node, mark)
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        for mark in node.decorator_list
        if isinstance(mark, ast.Call) and ast.unparse(mark.func).rpartition(".")[2] == "method"
    ]
    if len(marked) != 1:
        raise UserError(not_one(path, len(marked)))
    recipe, mark = marked[0]
    constants = _constants(tree)
    arguments = {keyword.arg: keyword.value for keyword in mark.keywords if keyword.arg}
    said = {
        name: _plain(arguments[name], constants)
        for name in _OWN
        if name in arguments and name not in ("papers", "base")
    }
    base = _base(arguments["base"], tree, path) if "base" in arguments else None
    own = {p.arg: _text(default, constants) for p, default in _parameters(recipe, skip=base is not None)}
    name = said.get("name") or path.stem.replace("_", "-")
    doc = ast.get_docstring(tree) or ast.get_docstring(recipe) or ""
    texts = explained(ast.get_docstring(recipe, clean=False) or "", own)
    settings: dict[str, Setting] = {}
    changed = {key: _text(value, constants) for key, value in arguments.items() if key not in _OWN}
    if base is not None:
        for one in base.settings.values():
            if one.name not in said.get("without", ()):
                settings[one.name] = Setting(one.name, changed.get(one.name, one.default), one.text, one.page)
    for key, default in own.items():
        inherited = settings.get(key)
        text, of = texts.get(key, ""), name
        if inherited is not None and key not in texts:
            text, of = inherited.text, inherited.page
        settings[key] = Setting(key, default, text, of)
    needs = said.get("needs", base.needs if base is not None else ())
    title, arxiv = _paper(arguments.get("papers"), constants)
    return Entry(
        name=name,
        family=path.parent.name if module else said.get("family") or "mine",
        kind=said.get("kind", "algorithm"),
        id=said.get("id", ""),
        summary=first_line(doc),
        path=Path(*module.split(".")).with_suffix(".py") if module else path,
        trains=recipe.returns is None or ast.unparse(recipe.returns).rpartition(".")[2] == "Method",
        base=base,
        needs=frozenset((needs,) if isinstance(needs, str) else needs),
        settings=settings,
        fixed={key: value for key, value in changed.items() if key in said.get("without", ())},
        doc=doc.partition("\n")[2].strip(),
        recipe=_body(recipe, source),
        title=title,
        arxiv=arxiv,
        source=said.get("source", ""),
    )


def _body(recipe: ast.FunctionDef, source: str) -> str:
    """Return the source of a function's body, without its docstring."""
    body = recipe.body[ast.get_docstring(recipe) is not None :]
    lines = source.splitlines()[body[0].lineno - 1 : body[-1].end_lineno] if body else []
    return textwrap.dedent("\n".join(lines))


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Return the constants of a page, and those that it imports from other pages: name -> expression."""
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vantage.methods."):
            wanted = {one.name: one.asname or one.name for one in node.names if one.name.isupper()}
            path = _path(node.module)
            if wanted and path.is_file():
                theirs = _constants(ast.parse(path.read_text(encoding="utf-8")))
                found |= {shown: theirs[name] for name, shown in wanted.items() if name in theirs}
    return found


def _path(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")[2:]).with_suffix(".py")


def _parameters(recipe: ast.FunctionDef, skip: bool) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Yield the settings of a recipe with their defaults; `skip` leaves out the first, which is no setting."""
    listed = recipe.args.posonlyargs + recipe.args.args
    defaults: list[ast.expr | None] = [None] * (len(listed) - len(recipe.args.defaults)) + [*recipe.args.defaults]
    yield from list(zip(listed, defaults, strict=True))[1 if skip else 0 :]
    yield from zip(recipe.args.kwonlyargs, recipe.args.kw_defaults, strict=True)


def _base(value: ast.expr, tree: ast.Module, path: Path) -> Entry:
    """Return the entry of a base, which is imported by its name, from the package or from a file beside this one."""
    called = ast.unparse(value)
    for node in tree.body:
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and called in (one.asname or one.name for one in node.names)
        ):
            if node.module.startswith("vantage.") and node.module not in modules().values():
                raise UserError(f"{path}, line {node.lineno}: base={called}: {node.module} is no page of a method")
            beside = path.with_name(f"{node.module}.py")
            return _read(beside) if beside.is_file() else _entry_of(node.module)
    raise UserError(f"{path}: base={called}: import it by `from vantage.methods.FAMILY.NAME import {called}`")


def _plain(value: ast.expr, constants: Mapping[str, ast.expr]) -> Any:
    """Return the value of a literal, or of a constant of the page that is one."""
    if isinstance(value, ast.Name) and value.id in constants:
        value = constants[value.id]
    return ast.literal_eval(value)


def _text(value: ast.expr | None, constants: Mapping[str, ast.expr]) -> str:
    """Return a default as text, as `repr` gives it where it is a literal."""
    if value is None:
        return ""
    try:
        return repr(_plain(value, constants))
    except ValueError:
        return ast.unparse(value)


def _paper(value: ast.expr | None, constants: Mapping[str, ast.expr]) -> tuple[str, str]:
    """Return title and arXiv number of the first paper, as far as the page writes them out."""
    first = value.elts[0] if isinstance(value, ast.Tuple) and value.elts else value
    call = constants.get(first.id) if isinstance(first, ast.Name) else first
    if isinstance(call, ast.Tuple) and call.elts:
        return _paper(call, constants)
    if not isinstance(call, ast.Call):
        return "", ""
    title = _plain(call.args[0], constants) if call.args else ""
    return title, next((_plain(one.value, constants) for one in call.keywords if one.arg == "arxiv"), "")
