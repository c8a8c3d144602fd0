"""The arrows of the design hold, no module imports in a circle, core is small, nothing heavy is loaded at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "vantage"

LOWEST = {"annotations", "metrics", "randomness", "core", "functions"}
"""What everything but core may import: checks of settings, means of a step, the values and protocols, pure functions of tensors."""
COMPONENTS = {"advantages", "objectives", "regularizers", "rewards", "selection", "updates"}
BELOW_METHODS = LOWEST | COMPONENTS | {"policies", "rollouts", "fields"}
BELOW_STUDY = BELOW_METHODS | {"methods", "tasks", "settings", "userfile", "console", "config", "folders", "progress"}
ARROWS: dict[str, set[str]] = {
    "annotations": set(),
    "randomness": set(),
    "metrics": set(),
    "core": {"annotations", "metrics", "randomness"},
    "functions": {"core"},  # of it the errors alone, see below
    **dict.fromkeys(COMPONENTS, LOWEST),
    "policies": LOWEST,
    "rollouts": LOWEST | {"policies"},
    "fields": LOWEST | {"settings"},
    "integrations": LOWEST | {"rollouts"},
    "settings": {"core"},
    "userfile": {"core"},
    "tasks": LOWEST | {"settings", "userfile", "policies", "rollouts", "rewards"},
    "methods": BELOW_METHODS | {"settings", "userfile"},
    "study": BELOW_STUDY,
    "config": {"core", "settings", "upgrade"},
    "upgrade": set(),
    "console": set(),
    "devices": {"core"},
    "folders": {"core"},
    "progress": {"core"},
    "curves": {"core"},
    "api": BELOW_STUDY | {"integrations", "curves", "devices"},
    "listings": {"core", "methods", "tasks", "settings", "console"},
    "cli": BELOW_STUDY | {"api", "study", "listings"},
    "demo": {"core", "cli"},
}
"""Package or module below `vantage` -> what it may import, besides itself."""

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("methods/preference/sft.py", "tasks"): "its rollout reads the worked solutions of a language task",
    ("integrations/vllm.py", "policies"): "the engine is given the weights with their adapters merged",
    ("fields/compression/task.py", "policies"): "a pruned language model is written as every other",
    ("fields/compression/text.py", "policies"): "the language model that is pruned is read or made as every other",
    ("fields/compression/policy.py", "policies"): "a folder of tensors is written whole or not at all, as every other",
}
"""(file, package): why it is imported against the arrows."""


@cache
def targets(path: Path) -> frozenset[str]:
    """Modules below `vantage` that a file imports, at any depth, `if TYPE_CHECKING` included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.removeprefix("vantage.") for name in names if name.startswith("vantage.")}
    return frozenset(found)


def files(package: str) -> list[Path]:
    module = ROOT / f"{package}.py"
    return [module] if module.is_file() else sorted((ROOT / package).rglob("*.py"))


def packages() -> list[str]:
    found = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    return sorted(found - {"__init__", "__main__"})


@pytest.mark.parametrize("package", packages())
def test_arrows_run_one_way(package: str) -> None:
    allowed = ARROWS[package] | {package}
    for path in files(package):
        name = str(path.relative_to(ROOT))
        for target in sorted(targets(path)):
            first = target.split(".")[0]
            if not (ROOT / first).is_dir() and not (ROOT / f"{first}.py").is_file():
                first = "api"  # a name that `vantage` itself offers
            assert first in allowed or (name, first) in EXCEPTIONS, f"{name} imports {target}"


def test_functions_know_nothing_of_vantage_but_its_errors() -> None:
    for path in files("functions"):
        odd = {name for name in targets(path) if not name.startswith(("functions.", "core.errors."))}
        assert not odd, f"{path.name} imports {odd}"


@pytest.mark.parametrize(("name", "package"), sorted(EXCEPTIONS))
def test_exceptions_are_still_needed(name: str, package: str) -> None:
    assert any(target.split(".")[0] == package for target in targets(ROOT / name)), "the exception can go"


def test_no_module_imports_in_a_circle() -> None:
    modules = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    left = {}
    for name, path in modules.items():
        found = {target if target in modules else target.rpartition(".")[0] for target in _at_run_time(path)}
        left[name] = {target for target in found if target in modules and target != name}
    # Take away what imports nothing that is left, until nothing changes: what stays is in a circle or imports one.
    while gone := {name for name, wanted in left.items() if not wanted & left.keys()}:
        left = {name: wanted for name, wanted in left.items() if name not in gone}
    assert not left, f"circles among: {sorted(left)}"


def _at_run_time(path: Path) -> set[str]:
    """As `targets`, without what only type checkers read."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("vantage.") for name in found if name.startswith("vantage.")}


def test_core_names_no_method_task_or_field() -> None:
    words = ("grpo", "ppo", "dapo", "cartpole", "gymnasium", "transformers", "language", "robot", "token engine")
    for path in files("core"):
        text = path.read_text().lower()
        assert not [word for word in words if word in text], path


def test_core_is_small() -> None:
    assert sum(len(path.read_text().splitlines()) for path in files("core")) <= 2500


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, vantage, vantage.core, vantage.methods.registry as r; r.pages(); "
        "print([m for m in ('transformers', 'gymnasium', 'matplotlib', 'datasets', 'peft', 'scipy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
