"""Which tests a change selects: change sets on this repository's imports, and a repository of a few files under git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tools import impact

ROOT = Path(__file__).parents[1]
PAGE = "src/vantage/methods/control/pdppo.py"
REGISTRY_WIDE = {
    "tests/methods/test_compositions.py",
    "tests/methods/test_index.py",
    "tests/methods/test_micro_batches.py",
    "tests/methods/test_registry.py",
    "tests/study/test_claims.py",
    "tests/study/test_probes.py",
    "tests/tasks/control/test_method_options.py",
    "tests/test_any_method.py",
    "tests/test_architecture.py",
    "tests/test_every_loss.py",
}


@pytest.fixture(scope="module")
def graph() -> impact.Graph:
    return impact.Graph(ROOT)


def selected(graph: impact.Graph, *paths: str, code: bool = True) -> set[str]:
    return set(impact.select(graph, dict.fromkeys(paths, code)))


def test_a_leaf_page_selects_its_own_test_and_those_of_all_pages(graph: impact.Graph) -> None:
    found = selected(graph, PAGE)
    assert found >= REGISTRY_WIDE | {"tests/methods/control/test_pdppo.py"}
    assert not [
        test for test in found if test.startswith(("tests/rewards/", "tests/functions/", "tests/methods/objectives/"))
    ]
    assert len(found) < len(graph.tests) / 8


def test_a_page_that_others_start_from_selects_theirs_too(graph: impact.Graph) -> None:
    found = selected(graph, "src/vantage/methods/objectives/grpo.py")
    assert found >= {"tests/methods/objectives/test_dr_grpo.py", "tests/test_docs.py", "tests/test_readme.py"}


def probes(graph: impact.Graph, *paths: str) -> set[str]:
    """Names of the pages whose probes a change selects."""
    found = selected(graph, *paths)
    if impact.PROBES in found:
        return set(graph.probes)
    return {test.partition("[")[2].removesuffix("]") for test in found if "::test_probe[" in test}


def test_single_probes_are_selected_where_only_they_can_differ(graph: impact.Graph) -> None:
    stored = {path.name.removesuffix(".probe.json") for path in (ROOT / "claims").glob("*/*.probe.json")}
    assert set(graph.probes) == stored
    assert probes(graph, PAGE) == {"pdppo"}
    assert probes(graph, "claims/control/ppo.probe.json") == {"ppo"}
    assert probes(graph, "src/vantage/study/runs/search.py") == {"mcts-regularized"}
    # Of an arena: the claims that name it; of a baseline: those against it too.
    assert probes(graph, f"{impact.ARENAS}riverswim-tabular.toml") >= {"ucbvi"}
    assert "ucbvi" in probes(graph, "src/vantage/methods/theory/softmax_pg.py")
    environments = probes(graph, "src/vantage/rollouts/environments.py")
    assert environments >= {"ppo", "reinforce", "trpo"}
    assert not environments & {"dapo", "dpo", "obd", "ucbvi"}
    assert not probes(graph, "src/vantage/curves.py", "docs/study.md")
    # The code that measures probes, and what pages share at the bottom, select all.
    every = set(graph.probes)
    for path in ("study/probes.py", "study/tiny_runs.py", "study/draws.py", "methods/registry.py", "core/loss.py"):
        assert probes(graph, f"src/vantage/{path}") == every, path
    assert impact.PROBES in selected(graph, impact.PROBES)
    assert probes(graph, impact.PROBES) == every


def test_a_reward_selects_its_users(graph: impact.Graph) -> None:
    found = selected(graph, "src/vantage/rewards/choice.py")
    assert found >= {
        "tests/rewards/test_choice.py",
        "tests/rewards/test_verifiers.py",
        "tests/tasks/language/test_data.py",
    }
    assert not [test for test in found if test.startswith(("tests/functions/", "tests/fields/tabular/"))]


def test_names_in_strings_are_imports(graph: impact.Graph) -> None:
    # `registry.page("obd")`, TASKS["lake"], `compare ... --arena`: nothing imports these where they are used.
    assert "src/vantage/methods/compression/obd.py" in graph.reached["tests/methods/compression/test_obd.py"]
    assert graph.called["lake"] == {"src/vantage/tasks/control/lake.py"}
    assert graph.called["dr-grpo"] == {"src/vantage/methods/objectives/dr_grpo.py"}
    assert "src/vantage/study/runs/search.py" in graph.imports["src/vantage/study/arena_files/tictactoe-4.toml"]
    assert "src/vantage/tasks/routing/task.py" in graph.imports["src/vantage/study/arena_files/cvrp20.toml"]


@pytest.mark.parametrize(
    "path",
    [
        "src/vantage/core/loss.py",
        "src/vantage/functions/ratios.py",
        "src/vantage/annotations.py",
        "tests/harness.py",
        "tests/__init__.py",
        "pyproject.toml",
        "constraints.txt",
        "src/vantage/rewards/no_more.py",
        "src/vantage/weights.bin",
        "nobody_knows.yaml",
    ],
)
def test_the_lowest_layers_and_what_no_rule_knows_select_all(graph: impact.Graph, path: str) -> None:
    assert selected(graph, PAGE, path) == set(graph.tests)


def test_data_selects_what_reads_it(graph: impact.Graph) -> None:
    always = {"tests/test_architecture.py"}
    assert selected(graph) == always
    assert selected(graph, "tests/data/old_runs/start/config.json") == always | {"tests/test_old_runs.py"}
    assert selected(graph, "tests/methods/varied.json") == always | {"tests/methods/test_compositions.py"}
    routes = selected(graph, f"{impact.ARENAS}cvrp20.toml")
    assert routes >= {"tests/study/test_arenas.py", "tests/study/test_claims.py", "tests/study/test_probes.py"}
    assert len(routes) < 10
    assert selected(graph, "tools/impact.py") == always | {"tests/test_impact.py"}
    assert selected(graph, "docs/study.md") == always | {"tests/test_docs.py", "tests/test_readme.py"}
    assert selected(graph, "src/vantage/study/report_assets/main.js") == selected(graph, "src/vantage/study/report.py")
    assert "tests/rollouts/tokens/test_native.py" in selected(graph, "src/vantage/rollouts/tokens/decode.c")
    assert selected(graph, "tests/rewards/test_that_is_no_more.py") == always


def test_the_tests_and_modules_that_tables_name_exist(graph: impact.Graph) -> None:
    for pattern, readers in impact.DATA:
        assert set(readers) <= set(graph.names), pattern
    assert set(graph.tests) >= impact.WORDS
    assert {test for test in graph.tests if impact.REGISTRY.match(test)} <= REGISTRY_WIDE


def test_every_test_file_is_selected_by_its_own_change_and_by_a_module(graph: impact.Graph) -> None:
    assert set(graph.tests) == {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    for test in graph.tests:
        assert test in selected(graph, test)
    apart = {test for test in graph.tests if not any(path.startswith("src/") for path in graph.reached[test])}
    assert apart <= {"tests/test_architecture.py", "tests/test_impact.py"}


def test_words_alone_select_few(graph: impact.Graph) -> None:
    assert selected(graph, "src/vantage/core/loss.py", PAGE, code=False) == impact.WORDS
    assert impact.code_of('"""A."""\nx = 1  # a\n') == impact.code_of('"""B."""\n\nx = 1\n"""What x is."""\n')
    assert impact.code_of("def f():\n    '''A.'''\n    return 1\n") == impact.code_of("def f():\n    return 1\n")
    assert impact.code_of("x = 'a'") != impact.code_of("x = 'b'")


FILES = {
    "src/vantage/__init__.py": '_LAZY = {"train": "vantage.api"}\n',
    "src/vantage/api.py": "def train():\n    from vantage.tools import saw\n",
    "src/vantage/tools/__init__.py": "",
    "src/vantage/tools/saw.py": "from .blade import sharp\n",
    "src/vantage/tools/blade.py": "sharp = 1\n",
    "src/vantage/tasks/registry.py": '_LANGUAGE = "vantage.tools.saw"\nTASKS = [TaskInfo("wood", "", "", _LANGUAGE)]\n',
    "src/vantage/other.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vantage.tools import blade\n",
    "tests/__init__.py": "",
    "tests/helper.py": "from vantage.tools import blade\n",
    "tests/test_helped.py": "def test():\n    from tests.helper import blade\n",
    "tests/test_lazy.py": "import vantage\nvantage.train()\n",
    "tests/test_named.py": 'task = "wood:size=3"\n',
    "tests/test_other.py": '"""About wood."""\nimport vantage.other\n',
    "tests/test_architecture.py": "",
}


def test_changes_are_those_since_the_merge_base_with_what_is_not_committed(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    def commit() -> None:
        git("add", "--all")
        git("commit", "--quiet", "--message", "a step")

    for path, text in FILES.items():
        write(path, text)
    git("init", "--quiet", "--initial-branch", "main")
    commit()
    git("checkout", "--quiet", "-b", "work")
    write("src/vantage/other.py", '"""Other."""\n' + FILES["src/vantage/other.py"])
    commit()
    # What main did since is none of this branch's changes.
    git("checkout", "--quiet", "main")
    write("src/vantage/api.py", "")
    commit()
    git("checkout", "--quiet", "work")
    assert impact.changes(tmp_path, "main") == {"src/vantage/other.py": False}
    write("src/vantage/tools/blade.py", "sharp = 2\n")
    write("new file.txt", "")
    git("rm", "--quiet", "tests/test_other.py")
    found = impact.changes(tmp_path, "main")
    assert found == {
        "src/vantage/other.py": False,
        "src/vantage/tools/blade.py": True,
        "new file.txt": True,
        "tests/test_other.py": True,
    }
    with pytest.raises(SystemExit, match="BASE=nowhere"):
        impact.changes(tmp_path, "nowhere")
    git("reset", "--quiet", "--hard")
    small = impact.Graph(tmp_path)
    reaching = {f"tests/test_{name}.py" for name in ("architecture", "helped", "lazy", "named")}
    assert selected(small, "src/vantage/tools/blade.py") == reaching
    assert selected(small, "src/vantage/api.py") == {"tests/test_architecture.py", "tests/test_lazy.py"}
    assert selected(small, "src/vantage/other.py") == {"tests/test_architecture.py", "tests/test_other.py"}
