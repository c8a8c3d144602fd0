"""What is read from the source of pages is what the pages say; a listing imports nothing heavy."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vantage.cli import main
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.methods import index, registry

MINE = '''
"""Mild GRPO: smaller steps. (S900)"""

from vantage.core.method import Method
from vantage.methods.objectives.dcpo import dcpo
from vantage.methods.registry import Paper, method

FACTOR = 0.5


@method(papers=Paper("Mildness", "A. Person", 2026, arxiv="2601.00001"), base=dcpo, without=("limit",), lr=FACTOR, kind="theory")
def mild(base: Method, epochs: int = 3, eps_low: float = -1e-3, names: tuple[str, ...] = ("a", "b")) -> Method:
    """names: of nothing; eps_low: another bound."""
    return base
'''


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mild_one.py"
    path.write_text(MINE)
    return str(path)


@pytest.mark.parametrize("name", registry.names())
def test_the_source_says_what_the_page_says(name: str) -> None:
    page, entry = registry.page(name), index.entry(name)
    same = ("name", "family", "kind", "id", "summary", "needs", "source")
    assert [getattr(entry, each) for each in same] == [getattr(page, each) for each in same]
    assert [base.name for base in entry.bases()][:1] == ([page.base.name] if page.base is not None else [])
    assert {one.name: one.default for one in entry.settings.values()} == {
        k: repr(v) for k, v in page.settings().items()
    }
    explanations = {setting: page.explanation(setting) for setting in page.settings()}
    assert {one.name: (one.text, one.page) for one in entry.settings.values()} == {
        setting: (text, source.name) for setting, (text, source) in explanations.items()
    }
    assert list(entry.settings) == list(page.settings())
    doc = inspect.getdoc(sys.modules[page.module]) or ""
    assert entry.doc == doc.partition("\n")[2].strip()
    recipe = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(page.recipe)))).body[0]
    assert isinstance(recipe, ast.FunctionDef)
    shown = recipe.body[ast.get_docstring(recipe) is not None :]
    assert ast.dump(ast.parse(entry.recipe)) == ast.dump(ast.Module(shown, []))
    assert entry.trains == isinstance(page.make(), Method)
    assert (entry.title, entry.arxiv) == (page.papers[0].title, page.papers[0].arxiv)
    assert entry.path.with_suffix("").as_posix().replace("/", ".") == page.module


def test_a_file_of_ones_own_is_read_too(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry, page = index.entry(mine), registry.page(mine)
    assert (entry.name, entry.family, entry.kind, entry.arxiv) == ("mild-one", "mine", "theory", "2601.00001")
    assert [base.name for base in entry.bases()] == ["dcpo", "grpo"]
    assert {one.name: one.default for one in entry.settings.values()} == {
        k: repr(v) for k, v in page.settings().items()
    }
    settings = entry.settings
    assert "limit" not in settings
    assert (settings["lr"].default, settings["lr"].page) == ("0.5", "grpo")
    assert settings["epochs"] == index.Setting("epochs", "3", "passes over a batch", "grpo")
    assert settings["eps_low"] == index.Setting("eps_low", "-0.001", "another bound", "mild-one")
    assert settings["names"].default == "('a', 'b')"
    assert main(["show", mine, "--full"]) == 0
    shown = capsys.readouterr().out
    assert f"page      {mine}\n" in shown
    assert "passes over a batch (of grpo)" in shown
    assert "parent    dcpo; components that differ are marked *" in shown


def test_a_file_that_is_no_page_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text("x = 1\n")
    with pytest.raises(UserError, match=r"odd.py defines 0 methods; exactly one recipe must be marked with @method"):
        index.entry(str(path))
    path.write_text("def (:\n")
    with pytest.raises(UserError, match=r"odd.py, line 1: "):
        index.entry(str(path))
    with pytest.raises(UserError, match=r"there is no file nowhere.py"):
        index.entry("nowhere.py")


def test_listings_are_narrowed_by_family_name_base_and_task(capsys: pytest.CaptureFixture[str]) -> None:
    def listed(*arguments: str) -> list[str]:
        assert main(["methods", "--json", *arguments]) == 0
        return [row["name"] for row in json.loads(capsys.readouterr().out)]

    everything = listed()
    assert everything == registry.names()
    assert listed("--family", "search") == ["alphazero-rule", "mcts-regularized", "uct"]
    assert set(listed("--filter", "*grpo*")) == {name for name in everything if "grpo" in name}
    children = listed("--base", "grpo")
    assert {"dapo", "dcpo", "treepo"} <= set(children)  # treepo starts from dapo
    assert not {"grpo", "ppo"} & set(children)
    control = listed("--task", "cartpole")
    assert {"grpo", "ppo", "trpo"} <= set(control)
    assert not {"dpo", "fpo", "otc", "uct", "sft"} & set(control)
    assert {"fpo", "dppo"} <= set(listed("--task", "Pendulum-v1"))
    assert set(listed("--task", "calculator:terms=2", "--filter", "*-ppo")) == {"otc-ppo", "st-ppo"}


def test_wrong_filters_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--family", "objective"], "unknown family 'objective'; did you mean objectives"),
        (["--base", "grop"], "unknown method 'grop'; did you mean grpo"),
        (["--task", "./mine.py"], "--task ./mine.py: its offers to methods are not known"),
    ):
        assert main(["methods", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_no_id_is_printed_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("S146" in line for line in lines)
    assert all(line.count("S146") <= 1 for line in lines)
    assert main(["show", "dcpo"]) == 0
    assert capsys.readouterr().out.count("S146") == 1


@pytest.mark.parametrize(
    "arguments", [["methods"], ["methods", "--task", "cartpole"], ["show", "grpo"], ["show", "ppo"], ["show", "uct"]]
)
def test_a_listing_loads_neither_torch_nor_numpy(arguments: list[str]) -> None:
    code = f"import sys; from vantage.cli import main; main({arguments}); assert not {{'torch', 'numpy'}} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_show_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "dr-grpo"]) == 0
    shown = capsys.readouterr().out
    page = registry.page("dr-grpo")
    module = importlib.import_module(page.module)
    assert "fixed     beta=0.0\n" in shown
    assert shown.startswith(f"{page.summary}\n\n")
    assert (inspect.getdoc(module) or "").partition("\n")[2].strip() in shown
    for name, default in page.settings().items():
        assert f"  {name}={default!r}" in shown
        assert page.explanation(name)[0] in shown
    recipe = textwrap.dedent(inspect.getsource(inspect.unwrap(page.recipe)).partition('"""\n')[2])
    assert shown.endswith(textwrap.indent(recipe, "  "))
