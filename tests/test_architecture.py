"""The arrows of the design hold: core imports nothing above it, parts do not import methods, nothing heavy at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "vantage"
PARTS = {"rollouts", "rewards", "advantages", "selection", "objectives", "regularizers", "updates", "policies"}


def imports(path: Path) -> set[str]:
    """First package below `vantage` of every import in a file, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("vantage.")}
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_core_imports_nothing_above_it() -> None:
    for path in files("core"):
        assert imports(path) <= {"core", "annotations"}, path


@pytest.mark.parametrize("package", sorted(PARTS))
def test_parts_do_not_import_methods_study_or_the_command_line(package: str) -> None:
    for path in files(package):
        assert not imports(path) & {"methods", "study", "cli", "api"}, path


def test_methods_import_parts_and_core_only() -> None:
    for path in files("methods"):
        assert not imports(path) & {"study", "cli", "api"}, path


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
