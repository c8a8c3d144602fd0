"""Fingerprint of the code that determines a run: a digest of every module that it can reach, and of its data and versions. Part
of the key of a finished run in the cache (`vantage.study.cache`).

A module's digest is of its source without comments, docstrings, blank lines and its `claim`, which do not affect a run. What is
reached follows from the imports written in the files, those inside functions included and those under `if TYPE_CHECKING` left
out; of a package that imports its names when they are asked for, only those asked for are followed. Modules named in text alone
(a task's, a hook's) are given as roots.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import platform
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vantage.core.errors import UserError

LIBRARIES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "transformers",
    "tokenizers",
    "gymnasium",
    "mujoco",
    "stable-baselines3",
    "pyvrp",
)
"""Libraries whose version may change a result."""

TABLES = frozenset(
    {
        "vantage",
        "vantage.methods.claim",
        "vantage.methods.registry",
        "vantage.tasks.language.problems",
        "vantage.tasks.registry",
    }
)
"""Modules that find others by their names. What a job finds there is a root of its own, so they are neither followed nor part of
the digest; neither is the form of a claim, which no run reads."""


def code_of(roots: Iterable[str]) -> dict[str, str]:
    """Return module -> digest for the roots (dotted names, or paths of Python files) and all that they import.

    Followed are modules of the packages that the roots are in, and of vantage.

    Raises:
        UserError: a root is no module that can be found, or a file cannot be read as Python.
    """
    waiting = list(dict.fromkeys(roots))
    packages = {"vantage"} | {root.partition(".")[0] for root in waiting if not root.endswith(".py")}
    found: dict[str, str] = {}
    for root in waiting:
        if _file_of(root) is None:
            raise UserError(f"there is no module {root!r} to take the digest of")
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if path is None or name in found:
            continue
        digest, imported = _read(str(path), path.stat().st_mtime_ns, name)
        found[name] = "" if name in TABLES else digest
        if name in TABLES:
            continue
        waiting += [module for module in imported if module.partition(".")[0] in packages and module not in found]
    return {name: digest for name, digest in sorted(found.items()) if digest}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that may change a result."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value, in hexadecimal; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def files_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder with their names.

    Raises:
        UserError: there is no such file or folder.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(b"" if file == path else str(file.relative_to(path)).encode())
        with open(file, "rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()


# one module ------------------------------------------------------------------------------------------------------------


def _file_of(name: str) -> Path | None:
    """Return the source file of a module without importing it; None where there is none (a compiled or missing module)."""
    if name.endswith(".py"):
        path = Path(name)
        return path if path.is_file() else None
    top, _, rest = name.partition(".")
    for location in _locations(top):
        if not rest:
            candidates = [location] if location.suffix == ".py" else [location / "__init__.py"]
        else:
            inner = location.joinpath(*rest.split("."))
            candidates = [inner.with_suffix(".py"), inner / "__init__.py"]
        for path in candidates:
            if path.is_file():
                return path
    return None


@functools.cache
def _locations(top: str) -> tuple[Path, ...]:
    """Return the folders of a top-level package, or the one file of a top-level module."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    if spec.submodule_search_locations:
        return tuple(Path(place) for place in spec.submodule_search_locations)
    return (Path(spec.origin),) if spec.origin and spec.origin.endswith(".py") else ()


@functools.lru_cache(maxsize=4096)
def _read(path: str, modified: int, name: str) -> tuple[str, tuple[str, ...]]:
    """Return the digest of a file and the modules that it imports; `modified` invalidates the cache of a changed file."""
    source = Path(path).read_text(encoding="utf-8")
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"{path} is not Python: {error}") from error
    runs = essence(source, tree)
    digest = hashlib.sha256(runs.encode()).hexdigest()[:16] if runs else ""
    return digest, tuple(sorted(_imports(tree, name, path.endswith("__init__.py"))))


def essence(source: str, tree: ast.Module | None = None) -> str:
    """Return Python source without comments, docstrings, blank lines, and assignments to `claim` at the top level.

    Args:
        source: the source.
        tree: the same, parsed, where that is done already.
    """
    tree = tree or ast.parse(source)
    lines = source.splitlines()
    for node in ast.walk(tree):
        # A string that stands alone is documentation, wherever it stands.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            _blank(lines, node)
    for node in tree.body:
        if _says_only(node):
            _blank(lines, node)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _says_only(node: ast.stmt) -> bool:
    """Return whether a top-level statement is the page's claim, or an import on which no result depends."""
    if isinstance(node, ast.ImportFrom):
        return node.module in TABLES
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == "claim" for target in targets)


def _blank(lines: list[str], node: ast.stmt) -> None:
    """Empty the lines of a statement that has them for itself."""
    first = node.lineno - 1
    if lines[first].encode()[: node.col_offset].strip():
        return
    for row in range(first, node.end_lineno or node.lineno):
        lines[row] = ""


@functools.cache
def _handed_on(package: str) -> Mapping[str, str]:
    """Return the lazily imported names of a package -> their modules.

    They are those of its file's `if TYPE_CHECKING` block.
    """
    path = _file_of(package)
    if path is None or path.name != "__init__.py":
        return {}
    found: dict[str, str] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for inner in node.body:
                if isinstance(inner, ast.ImportFrom) and inner.module:
                    found |= {alias.asname or alias.name: inner.module for alias in inner.names}
    return found


def _imports(tree: ast.Module, name: str, package: bool) -> set[str]:
    """Return the modules that a file imports, with their packages."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= {alias.name, *_handed_on(alias.name).values()}  # any of its names may be asked for
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: None if package else -1]
                parents = parents[: len(parents) - (node.level - 1)]
                base = ".".join([*parents, base] if base else parents)
            found.add(base)
            found |= {_handed_on(base).get(alias.name, f"{base}.{alias.name}") for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    return {
        ".".join(parts[:end]) for parts in (module.split(".") for module in found) for end in range(1, len(parts) + 1)
    }
