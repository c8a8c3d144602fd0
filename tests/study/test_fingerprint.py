"""The digest changes with what a run executes, and with nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vantage.core.errors import UserError
from vantage.study.arenas import arena
from vantage.study.cache import code_of_job, key_of_job
from vantage.study.contest import entrant
from vantage.study.fingerprint import code_of, essence, files_digest

PAGE = '''"""A page."""
from house.parts import rule  # what it uses

def recipe(lr=0.1):
    """Compose."""
    return rule(lr)
'''


INNER = """import json
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import house.other

scale = abs
"""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a page, a part, what the part imports inside a function, and a bystander."""
    name = f"house_{tmp_path.name.replace('-', '_')}"
    root = tmp_path / name
    (root / "deep").mkdir(parents=True)
    for file, text in {
        "__init__.py": "",
        "page.py": PAGE,
        "parts.py": "def rule(lr):\n    from . import deep\n    from .deep.inner import scale\n    return scale(lr)\n",
        "deep/__init__.py": "",
        "deep/inner.py": INNER,
        "other.py": "raise RuntimeError\n",
    }.items():
        (root / file).write_text(text.replace("house", name))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return root


def changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The modules whose digests differ, with those that are only on one side."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def edit(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_imports_are_followed_wherever_they_stand_and_nothing_is_imported(house: Path) -> None:
    name = house.name
    found = code_of([f"{name}.page"])
    # Left out are what only a type checker reads, the standard library, and packages' files that hold nothing.
    assert set(found) == {f"{name}.page", f"{name}.parts", f"{name}.deep.inner"}
    assert name not in sys.modules


PACKAGE = """from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from house.parts import rule
    from house.other import nothing as waste
def __getattr__(name):
    ...
"""


@pytest.mark.parametrize(
    ("asked", "reached"),
    [
        ("from house.lazy import rule", {"parts", "deep.inner"}),
        ("from house.lazy import waste", {"other"}),
        ("import house.lazy", {"parts", "deep.inner", "other"}),
        ("from house.lazy.own import x", {"lazy.own"}),
    ],
)
def test_of_a_package_that_imports_its_names_when_asked_only_those_are_followed(
    house: Path, asked: str, reached: set[str]
) -> None:
    (house / "lazy").mkdir()
    (house / "lazy/__init__.py").write_text(PACKAGE.replace("house", house.name))
    (house / "lazy/own.py").write_text("x = 1\n")
    (house / "asks.py").write_text(asked.replace("house", house.name))
    found = {name.removeprefix(f"{house.name}.") for name in code_of([f"{house.name}.asks"])}
    assert found == {"asks", "lazy", *reached}


@pytest.mark.parametrize(
    ("where", "name"), [("tictactoe-4", "mcts-regularized"), ("riverswim-tabular", "ucbvi"), ("transport", "sparse-ot")]
)
def test_a_field_without_a_rollout_loop_depends_on_nothing_of_the_training_loop(where: str, name: str) -> None:
    code = code_of_job(entrant(arena(where), name, {}).job(arena(where), 0))
    loop = {"vantage.core.trainer", "vantage.core.checkpoint", "vantage.core.runlog", "vantage.study.training"}
    assert not loop & set(code)


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("page.py", "lr=0.1", "lr=0.2"),
        ("parts.py", "scale(lr)", "scale(-lr)"),
        ("deep/inner.py", "scale = abs", "scale = float"),
    ],
)
def test_a_changed_line_that_runs_changes_its_module_alone(house: Path, file: str, before: str, after: str) -> None:
    old = code_of([f"{house.name}.page"])
    edit(house / file, before, after)
    module = f"{house.name}.{file.removesuffix('.py').replace('/', '.')}"
    assert changed(old, code_of([f"{house.name}.page"])) == [module]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""A page."""', '"""Another text,\non two lines."""'),
        ('    """Compose."""\n', ""),
        ("  # what it uses", ""),
        ("def recipe", "\n\n# more\n\ndef recipe"),
        ("def recipe", "from vantage.methods.claim import Claim\n\n\ndef recipe"),
        ("    return rule(lr)\n", "    return rule(lr)\n\n\nclaim = dict(\n    arena='x',\n)\n"),
    ],
)
def test_texts_comments_and_the_claim_change_nothing(house: Path, before: str, after: str) -> None:
    old = code_of([f"{house.name}.page"])
    edit(house / "page.py", before, after)
    assert code_of([f"{house.name}.page"]) == old


def test_a_bystander_changes_nothing_and_a_new_import_does(house: Path) -> None:
    old = code_of([f"{house.name}.page"])
    edit(house / "other.py", "raise RuntimeError", "pass")
    assert code_of([f"{house.name}.page"]) == old
    edit(house / "page.py", "def recipe", f"import {house.name}.other\ndef recipe")
    assert changed(old, code_of([f"{house.name}.page"])) == [f"{house.name}.other", f"{house.name}.page"]


def test_a_string_that_is_data_stays_and_its_hash_sign_is_no_comment() -> None:
    assert essence('x = "# not a comment"\n') == 'x = "# not a comment"'
    assert essence('def f(): "told"\n') == 'def f(): "told"'
    assert essence("x = 1  # one\n\n\ny = 2\n") == "x = 1\ny = 2"


def test_a_missing_module_is_named() -> None:
    with pytest.raises(UserError, match=r"no module 'vantage\.nowhere'"):
        code_of(["vantage.nowhere"])


def test_digests_of_files_see_contents_and_names(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1")
    first = files_digest(folder)
    (folder / "weights").rename(folder / "weight")
    second = files_digest(folder)
    (folder / "weight").write_bytes(b"2")
    assert len({first, second, files_digest(folder)}) == 3
    with pytest.raises(UserError, match="there is no file"):
        files_digest(tmp_path / "none")


def test_a_run_depends_on_its_page_and_parts_and_not_on_other_pages_or_the_report() -> None:
    code = code_of_job(entrant(arena("cartpole"), "ppo", {}).job(arena("cartpole"), 0))
    assert {
        "vantage.methods.control.ppo",
        "vantage.objectives.surrogates",
        "vantage.core.trainer",
        "vantage.policies.control",
        "vantage.rollouts.environments",
        "vantage.study.training",
        "vantage.study.evaluation",
    } <= set(code)
    assert not {
        "vantage.methods.control.trpo",
        "vantage.study.report",
        "vantage.study.runner",
        "vantage.cli",
        "vantage.tasks.language.task",
        "vantage.methods.claim",
    } & set(code)
    # The child of a page depends on its parent, and a peer on no page of ours.
    words = entrant(arena("arithmetic"), "dapo", {}).job(arena("arithmetic"), 0)
    assert {"vantage.methods.objectives.grpo", "vantage.study.models"} <= set(code_of_job(words))
    peer = code_of_job(entrant(arena("cartpole"), "sb3-ppo", {}).job(arena("cartpole"), 0))
    assert not [name for name in peer if name.startswith("vantage.methods.control")]


def test_the_key_of_a_run_sees_everything_that_decides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    where = arena("cartpole")
    code = {"vantage.core.trainer": "0"}

    def key(settings: dict[str, object], seed: int, code: dict[str, str] = code) -> str:
        return key_of_job(entrant(where, "ppo", settings).job(where, seed), code)

    base = key({}, 0)
    assert key({"lr": 3e-4}, 0) == base  # the default, said aloud
    assert len({base, key({"lr": 1e-3}, 0), key({}, 1), key({}, 0, {"vantage.core.trainer": "1"})}) == 4
    monkeypatch.setattr("vantage.study.fingerprint.versions", lambda: {"torch": "1.0"})
    assert key({}, 0) != base
