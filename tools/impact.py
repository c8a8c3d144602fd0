"""Tests that a change can affect: `python tools/impact.py BASE` prints their files, or `tests` where that is all of them.

The change is what differs between the working tree and the merge base of BASE and HEAD, with files that git does not know yet.
A test file is selected if it changed or if its imports, followed through src/vantage and tests, reach a changed module. Modules
are also reached by name (`vantage.method("grpo")`, `--task cartpole`), so names of methods, tasks, arenas and modules in the
strings of a test count as imports. Of the file that compares every page's probe, single tests are selected: those of pages that
reach a changed module, or whose claim's arena or other side does. Whatever no rule knows selects every test.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

_LOWEST = r"src/vantage/((core|functions)/|(annotations|metrics|randomness)\.py$)"
EVERYTHING = re.compile(rf"{_LOWEST}|tests/harness|(.*/)?conftest\.py$|pyproject\.toml$|constraints\.txt$")
"""Files whose change selects all tests, unless only words of a module changed."""
_QUICK = ("test_architecture", "test_docs", "test_cli", "methods/test_index", "methods/test_registry")
WORDS = {f"tests/{name}.py" for name in _QUICK}
"""Tests that read docstrings, or measure files: what a change of docstrings and comments alone selects."""
REGISTRY = re.compile(
    r"tests/methods/test_(compositions|index|micro_batches|registry)|tests/test_(any_method|every_loss)"
    "|tests/study/test_(claims|probes)"
)
"""Tests of every page, those of study/ in every arena; others that call `registry.names` or its like are found."""
PROBES = "tests/study/test_every_probe.py"
"""Test of every page's probe, `test_probe[NAME]`."""
ARENAS = "src/vantage/study/arena_files/"
DATA: tuple[tuple[str, tuple[str, ...]], ...] = (
    (ARENAS, ("tests/study/test_arenas.py",)),
    ("src/vantage/study/report_assets/", ("src/vantage/study/report.py",)),
    (r"src/vantage/study/systems\.tsv$", ("src/vantage/study/systems.py",)),
    (r"src/vantage/rollouts/tokens/decode\.c$", ("src/vantage/rollouts/tokens/native.py",)),
    ("tests/data/old_runs/", ("tests/test_old_runs.py",)),
    (r"tests/methods/(.*/)?(compositions|varied)\.json$", ("tests/methods/test_compositions.py",)),
    (r"tests/reference/[^/]+\.json$", ("tests/reference/__init__.py",)),
    (r"tests/peers/(sides/|[^/]+\.txt$)", ("tests/peers/test_remote.py",)),
    ("claims/", ("tests/study/test_claims.py", "tests/study/test_probes.py", "tests/test_readme.py")),
    (
        r"docs/|benchmarks/|(README\.md|CHANGELOG\.md|LICENSE|\.gitignore)$",
        ("tests/test_docs.py", "tests/test_readme.py"),
    ),
    (r"(Makefile|\.ci/run)$", ("tests/test_readme.py", "tests/test_impact.py")),
)
"""Files that are no modules, and what reads them: tests, or modules, which then count as changed."""
TEXTS = {"tests/test_docs.py": "docs/architecture.md", "tests/test_readme.py": "README.md"}
"""Tests that run the commands of a text: the names in the text are theirs."""
LAZY = {"vantage", "vantage.core", "vantage.tasks.registry"}
"""Modules that name others in strings and import the one that is asked for; who asks has the edge."""
NAMING = {"vantage.demo", "vantage.study.models"}
"""Modules of the package that name methods and tasks in strings, as tests do."""
LISTINGS = ("names", "pages", "entries")
IS_TEST = re.compile(r"tests/(.*/)?test_[^/]*\.py$")
IS_PAGE = re.compile(r"src/vantage/methods/[^/]+/(?!__init__)[^/]+\.py$")


def code_of(text: str) -> str:
    """Return a module's syntax tree as text, without docstrings and comments."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(_value(n.value), str))]
    return ast.dump(tree)


def _value(node: ast.AST) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _counted(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below one, without docstrings and what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(_value(child.value), str):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from (other, *_counted(other))
            continue
        yield child
        yield from _counted(child)


class Graph:
    """Which file of src/vantage, tests and tools imports which, as paths relative to the repository."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = [
            p.relative_to(root) for top in ("src/vantage", "tests", "tools") for p in sorted((root / top).rglob("*.py"))
        ]
        self.modules = {".".join(p.with_suffix("").parts[p.parts[0] == "src" :]): p.as_posix() for p in paths}
        self.modules = {name.removesuffix(".__init__"): path for name, path in self.modules.items()}
        self.names = {path: name for name, path in self.modules.items()}
        self.tests = sorted(path for path in self.names if IS_TEST.match(path))
        self.pages = {path for path in self.names if IS_PAGE.match(path)}
        lazy = [n for n in self._tree(self.modules["vantage"]).body if ast.unparse(n).startswith("_LAZY = ")]
        self.lazy: dict[str, str] = ast.literal_eval(ast.unparse(lazy[0]).removeprefix("_LAZY = "))
        self.arenas = {p.relative_to(root).as_posix() for p in (root / ARENAS).glob("*.toml")}
        self.called = self._called()
        self.imports = {path: self._imports(path) for path in self.names}
        # What an arena runs: its task, or its function and the methods that it names.
        self.imports |= {path: self._words((root / path).read_text(encoding="utf-8")) for path in self.arenas}
        self.reached = {test: self._from(test) for test in self.tests}
        self.probes = self._probes()
        # What pages reach themselves is theirs: all probes are selected by the code that measures them, and by what only it needs.
        theirs = set().union(*self.probes.values())
        self.reached[PROBES] = {
            path
            for path in self.reached.get(PROBES, set())
            if path not in theirs or path.startswith(("src/vantage/study/", "tests/"))
        }

    def _tree(self, path: str) -> ast.Module:
        return ast.parse((self.root / path).read_text(encoding="utf-8"), path)

    def _called(self) -> dict[str, set[str]]:
        """Return what the names of methods, tasks and arenas stand for."""
        called: dict[str, set[str]] = {}
        for page in self.pages:
            called.setdefault(Path(page).stem.replace("_", "-"), set()).add(page)
            for node in ast.walk(self._tree(page)):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "method":
                    for said in (_value(word.value) for word in node.keywords if word.arg == "name"):
                        called.setdefault(str(said), set()).add(page)
        tree = self._tree(self.modules["vantage.tasks.registry"])
        constants = {getattr(n.targets[0], "id", ""): _value(n.value) for n in tree.body if isinstance(n, ast.Assign)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "TaskInfo":
                module = constants.get(getattr(node.args[3], "id", ""), _value(node.args[3]))
                called.setdefault(str(_value(node.args[0])), set()).add(self.modules[str(module)])
        # Data of one's own is a task without a name.
        called.setdefault("data", set()).add(self.modules[str(constants["_LANGUAGE"])])
        for arena in self.arenas:
            called.setdefault(Path(arena).stem, set()).add(arena)
        return called

    def _resolve(self, name: str) -> set[str]:
        """Return the file of a dotted name, or of the longest part of it that is a module, with the packages around it."""
        parts, found = name.split("."), set()
        for end in range(1, len(parts) + 1):
            found |= {self.modules.get(".".join(parts[:end]), "")} - {""}
        if parts[0] == "vantage" and len(parts) > 1 and parts[1] in self.lazy:
            found |= self._resolve(self.lazy[parts[1]])
        return found

    def _words(self, text: str) -> set[str]:
        """Return the files that a text names: modules by their dotted names, methods, tasks and arenas."""
        found: set[str] = set()
        for word in re.findall(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", text):
            word = word.strip(".-")
            word = "gym" if re.search(r"-v\d+$", word) else word  # An environment of Gymnasium.
            found |= self.called.get(word.lower().replace("_", "-"), self.called.get(word.removesuffix(".toml"), set()))
            if word == "vantage":
                found |= self._resolve("vantage.__main__")
            elif word.startswith(("vantage.", "tests.")):
                found |= self._resolve(word)
        return found

    def _imports(self, path: str) -> set[str]:
        # The file of probes lists the pages and names methods in messages; what each probe needs, `_probes` says.
        name, test = self.names[path], path.startswith("tests/") and path != PROBES
        package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
        found = self._resolve(package)
        wide = test and REGISTRY.match(path) is not None
        for node in _counted(self._tree(path)):
            if isinstance(node, ast.Import):
                found |= {path for alias in node.names for path in self._resolve(alias.name)}
            elif isinstance(node, ast.ImportFrom):
                above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
                source = ".".join(part for part in (above, node.module) if part)
                for alias in node.names:
                    wide |= test and source.startswith("vantage.methods.") and alias.name in LISTINGS
                    found |= self._resolve(f"{source}.{alias.name}")
            elif isinstance(node, ast.Attribute):
                holder = getattr(node.value, "id", "")
                wide |= test and holder in ("registry", "index") and node.attr in LISTINGS
                if holder == "vantage":
                    found |= self._resolve(f"vantage.{node.attr}")
                elif test and node.attr in ("walk_packages", "iter_modules"):
                    found |= {other for other in self.names if other.startswith("src/")}
            elif isinstance(node, ast.keyword) and test and node.arg == "data":
                found |= self.called.get("data", set())
            elif isinstance(said := _value(node), str):
                if test or name in NAMING:
                    found |= self._words(said)
                elif name not in LAZY and re.fullmatch(r"vantage(\.\w+)+", said):
                    found |= self._resolve(said)
        text = self.root / TEXTS.get(path, "")
        found |= self._words(text.read_text(encoding="utf-8")) if text.is_file() else set()
        every = self.pages | (self.arenas if path.startswith("tests/study/") else set())
        return (found | (every if wide else set())) - {path}

    def _from(self, start: str) -> set[str]:
        seen, new = {start}, [start]
        while new:
            more = self.imports[new.pop()] - seen
            seen |= more
            new += more
        return seen

    def _probes(self) -> dict[str, set[str]]:
        """Return, by the name of a page that makes a claim, what its probe runs, and the files that hold its result and probe."""
        found = {}
        for page in self.pages:
            tree, name = self._tree(page), Path(page).stem.replace("_", "-")
            targets = {
                getattr(target, "id", "") for n in tree.body if isinstance(n, ast.Assign) for target in n.targets
            }
            if "claim" not in targets:
                continue
            said = {str(_value(node)) for node in _counted(tree) if isinstance(node, ast.Constant)}
            runs = {page}.union(*(self.called.get(word, set()) for word in said))
            stored = f"claims/{Path(page).parent.name}/{name}"
            found[name] = {f"{stored}.json", f"{stored}.probe.json"}.union(*(self._from(start) for start in runs))
        return found


def select(graph: Graph, changed: Mapping[str, bool]) -> list[str]:
    """Return the test files that a change selects, and single probes, as pytest takes them.

    Args:
        graph: imports of the working tree.
        changed: of each changed file, whether more than docstrings and comments changed.
    """
    # One test is always run, which is about all files: pytest would take an empty selection for everything.
    chosen, sources = {"tests/test_architecture.py"}, set()
    for path, code in changed.items():
        readers = next((found for pattern, found in DATA if re.match(pattern, path)), ())
        if not code:
            chosen |= {path} | WORDS
        elif IS_TEST.match(path) and path not in graph.names:
            continue  # A test that is no more. Of any other module that is no more nobody can say what needed it.
        elif EVERYTHING.match(path) or (path not in graph.names and not readers):
            return graph.tests
        else:
            sources |= {path, *readers}
    tests = [test for test in graph.tests if test in chosen or graph.reached[test] & sources]
    if PROBES in tests:
        return tests
    return tests + [f"{PROBES}::test_probe[{name}]" for name, runs in sorted(graph.probes.items()) if runs & sources]


def changes(root: Path, base: str) -> dict[str, bool]:
    """Return the files that differ from the merge base, and of each whether more than docstrings and comments changed.

    Raises:
        SystemExit: git does not know the base, or it has no commit in common with HEAD.
    """

    def git(*words: str) -> str:
        ran = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, encoding="utf-8")
        if ran.returncode:
            said = ran.stderr.strip() or "no commit in common"
            raise SystemExit(f"tests by impact since BASE={base}: git {words[0]}: {said}")
        return ran.stdout

    start = git("merge-base", base, "HEAD").strip()
    known = git("diff", "--name-only", "--no-renames", "-z", start).split("\0")
    unknown = git("ls-files", "--others", "--exclude-standard", "-z").split("\0")
    before = set(git("ls-tree", "-r", "-z", "--name-only", start).split("\0"))
    found: dict[str, bool] = {}
    for path in filter(None, (*known, *unknown)):
        module = path.endswith(".py") and path in before and (root / path).is_file()
        found[path] = not module or code_of(git("show", f"{start}:{path}")) != code_of((root / path).read_text("utf-8"))
    return found


def main(base: str) -> None:
    """Print the test files that the change since a base selects, and to stderr how many they are."""
    graph = Graph(Path(__file__).resolve().parents[1])
    chosen = select(graph, changes(graph.root, base))
    files = [test for test in chosen if "::" not in test]
    said = f"{len(files)} of {len(graph.tests)} test files"
    if len(chosen) > len(files):
        said += f", {len(chosen) - len(files)} of {len(graph.probes)} probes"
    print(f"tests by impact since {base}: {said}", file=sys.stderr)
    print("tests" if len(files) == len(graph.tests) else "\n".join(chosen))


if __name__ == "__main__":
    main(*sys.argv[1:])
