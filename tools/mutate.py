"""Mutation test of the pages: change one thing on a page, in a copy of the sources, and see whether a test fails.

    python tools/mutate.py --seed 0 --count 10 [--own]

Each page that is drawn gets one change of its composition (an argument of a call in the recipe is dropped, or a wrapped
component stands alone) and one of a default. What runs is the page's own test file and what `test_compositions` says of the
page, or with `--own` the file alone. A change with which the page no longer composes at its defaults is not counted, nor is
dropping an argument whose value is the default anyway: the one is seen by anybody, the other changes nothing. A change for
which no test ran is reported as such, and counted neither as caught nor as missed.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import copy
import inspect
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from vantage.core.method import PLACES  # noqa: E402
from vantage.methods import index, registry  # noqa: E402

KINDS = ("composition", "default")
SURVIVED, NONE_RAN = "SURVIVED", "NO TEST RAN"


@dataclass(frozen=True)
class Mutation:
    """One change of a page: its kind, the source before and after in short, and the whole source of the changed page."""

    kind: str
    before: str
    after: str
    source: str


def mutations(page: registry.Page, source: str) -> list[Mutation]:
    """Return all changes of a page's recipe, in the order of its source."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    recipe = next(function for function in functions if function.name == page.recipe.__name__)
    return [*_compositions(page, recipe, source), *_defaults(page, recipe, source)]


def _compositions(page: registry.Page, recipe: ast.FunctionDef, source: str) -> Iterator[Mutation]:
    for call in [call for statement in recipe.body for call in _calls(statement)]:
        name = ast.unparse(call.func)
        if call.args and _is_component(call.args[0]) and not name.startswith("base."):
            inner = ast.unparse(call.args[0])
            yield Mutation("composition", ast.unparse(call), inner, _spliced(source, call, inner))
        last = [len(call.args) - 1] if call.args and not isinstance(call.args[-1], ast.Starred) else []
        for place in [*last, *(one.arg for one in call.keywords if one.arg)]:
            left = copy.copy(call)
            left.args = call.args[:-1] if isinstance(place, int) else call.args
            left.keywords = [one for one in call.keywords if one.arg != place]
            gone = call.args[-1] if isinstance(place, int) else next(k.value for k in call.keywords if k.arg == place)
            if not _is_default(page, name, place, gone):
                shown = ["..."] if left.args or left.keywords else []
                text = ast.unparse(gone) if isinstance(place, int) else f"{place}={ast.unparse(gone)}"
                before, after = f"{name}({', '.join([*shown, text])})", f"{name}({', '.join(shown)})"
                yield Mutation("composition", before, after, _spliced(source, call, ast.unparse(left)))


def _defaults(page: registry.Page, recipe: ast.FunctionDef, source: str) -> Iterator[Mutation]:
    own = recipe.args.args[len(recipe.args.args) - len(recipe.args.defaults) :]
    given = [(argument.arg, value) for argument, value in zip(own, recipe.args.defaults)]
    marks = [one for one in recipe.decorator_list if isinstance(one, ast.Call)]
    given += [(one.arg, one.value) for mark in marks for one in mark.keywords if one.arg and one.arg not in index._OWN]
    hints = get_type_hints(page.recipe)
    for name, node in given:
        for value in _others(_literal(node), hints.get(name)):
            changed = _spliced(source, node, repr(value))
            yield Mutation("default", f"{name}={ast.unparse(node)}", f"{name}={value!r}", changed)


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls below a node, but not those of errors and of Python's own functions."""
    if isinstance(node, ast.Raise):
        return
    if isinstance(node, ast.Call) and not hasattr(builtins, ast.unparse(node.func)):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _calls(child)


def _is_component(node: ast.expr) -> bool:
    """Whether an expression is a component: a class that is called, or a component of the base (`base.rollout`)."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id[:1].isupper()
    return isinstance(node, ast.Attribute) and ast.unparse(node.value) == "base" and node.attr in PLACES


def _is_default(page: registry.Page, called: str, place: int | str, node: ast.expr) -> bool:
    """Whether an argument is a literal that holds without being given."""
    value = _literal(node)
    if value is ...:
        return False
    if called == "base.replace" and page.base is not None:
        return bool(getattr(page.base.make(), str(place), ...) == value)
    target = getattr(sys.modules[page.module], called, None)
    parameters = inspect.signature(target).parameters if callable(target) else {}
    key = list(parameters)[place] if isinstance(place, int) and place < len(parameters) else place
    return key in parameters and bool(parameters[str(key)].default == value)


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal, `...` for anything else."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...


def _others(value: Any, hint: Any) -> list[Any]:
    """Return other values of a default: the other choices, the opposite, one more, the double or the half."""
    choices = [choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)]
    if choices:
        return [choice for choice in choices if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        found = (value + 1, 2 * value) if isinstance(value, int) or not value else (2 * value, value / 2)
        return [one for one in dict.fromkeys(found) if one != value]
    return []


def _spliced(source: str, node: ast.expr, text: str) -> str:
    """Return the source with an expression replaced. The columns of `ast` count bytes."""
    lines = source.encode().splitlines(keepends=True)
    segment = ast.get_source_segment(source, node) or ""
    begin = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    return (source.encode()[:begin] + text.encode() + source.encode()[begin + len(segment.encode()) :]).decode()


class Copy:
    """A copy of the sources in a folder of its own; the working tree is only read."""

    def __init__(self, folder: Path) -> None:
        self.src = folder / "src"
        shutil.copytree(ROOT / "src", self.src, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        self.environment = {**os.environ, "PYTHONPATH": str(self.src), "PYTHONPYCACHEPREFIX": str(folder / "cache")}
        self._time = 10**9

    def write(self, page: registry.Page, source: str) -> None:
        """Write a page, with a time of its own: Python tells stale byte code by whole seconds."""
        path = self.src / f"{page.module.replace('.', '/')}.py"
        path.write_text(source, encoding="utf-8")
        self._time += 1
        os.utime(path, (self._time, self._time))

    def composes(self, page: registry.Page) -> bool:
        """Whether the page composes at its defaults."""
        code = f"from vantage.methods import registry; registry.page({page.name!r}).make()"
        return not self._run("-c", code).returncode

    def failing(self, tests: list[str]) -> str:
        """Return the first test that fails, or what pytest says where it could not run them; SURVIVED if all pass, NONE_RAN where
        there was none to run."""
        if not tests:
            return NONE_RAN
        done = self._run("-m", "pytest", "-q", "-x", "-p", "no:xdist", "--no-header", "--tb=no", "-rfE", *tests)
        found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
        passed = {0: SURVIVED, 5: NONE_RAN}
        return found[1] if found else passed.get(done.returncode) or done.stdout[-300:] + done.stderr[-300:]

    def _run(self, *code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *code]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)


def tests_of(page: registry.Page, own: bool) -> list[str]:
    """Return the tests of a page: its own file, and unless `own`, what the tables of compositions say of it."""
    files = sorted((ROOT / "tests").rglob(f"test_{page.module.rpartition('.')[2]}.py"))
    checks = () if own else ("test_a_page_composes_what_was_meant", "test_every_setting_reaches_a_component")
    tables = [f"tests/methods/test_compositions.py::{name}[{page.name}]" for name in checks]
    return [*tables, *(str(file.relative_to(ROOT)) for file in files)]


def seen_by(sources: Copy, tests: list[str]) -> str:
    """Return the first test that fails; SURVIVED if all pass, NONE_RAN where not one of them ran."""
    outcomes = (sources.failing([test]) for test in tests)
    found = NONE_RAN
    for outcome in outcomes:
        if outcome not in (SURVIVED, NONE_RAN):
            return outcome
        found = SURVIVED if SURVIVED in (found, outcome) else NONE_RAN
    return found


def missing(page: registry.Page, own: bool) -> str:
    """Return why no test of a page ran."""
    files = [test for test in tests_of(page, own) if "::" not in test]
    return (
        f"{', '.join(files)} holds none" if files else f"there is no tests/**/test_{page.module.rpartition('.')[2]}.py"
    )


def main() -> None:
    """Print one line a mutation, and how many of each kind were caught."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10, help="pages")
    parser.add_argument("--own", action="store_true", help="the page's own test file alone")
    asked = parser.parse_args()
    sound: set[str] = set()  # tests that pass without a mutation
    caught, made = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    with tempfile.TemporaryDirectory() as folder:
        sources = Copy(Path(folder))
        drawn = [registry.page(name) for name in random.Random(asked.seed).sample(registry.names(), asked.count)]
        tables = [test for page in drawn for test in tests_of(page, asked.own) if "::" in test]
        if tables and (broken := sources.failing(tables)) != SURVIVED:
            raise SystemExit(f"{broken} fails without a mutation")
        sound.update(tables)
        for page in drawn:
            name, draw = page.name, random.Random(f"{asked.seed}:{page.name}")
            source = (ROOT / "src" / f"{page.module.replace('.', '/')}.py").read_text(encoding="utf-8")
            tests, found = tests_of(page, asked.own), mutations(page, source)
            for kind in KINDS:
                candidates = [one for one in found if one.kind == kind]
                draw.shuffle(candidates)
                for one in candidates:
                    sources.write(page, one.source)
                    composes = sources.composes(page)
                    by = seen_by(sources, tests) if composes else ""
                    sources.write(page, source)
                    seen = by not in ("", SURVIVED, NONE_RAN)
                    if seen and by not in sound and sources.failing([by]) != SURVIVED:
                        raise SystemExit(f"{name}: {by} fails without a mutation too")
                    sound.add(by)
                    if composes:
                        made[kind], caught[kind] = made[kind] + (by != NONE_RAN), caught[kind] + seen
                        why = f" ({missing(page, asked.own)})" if by == NONE_RAN else ""
                        print(f"{name} | {kind} | {one.before} -> {one.after} | {by}{why}", flush=True)
                        break
                else:
                    print(f"{name} | {kind} | nothing to change that composes", flush=True)
    print(", ".join(f"{kind}: {caught[kind]} of {made[kind]}" for kind in KINDS))


if __name__ == "__main__":
    main()
