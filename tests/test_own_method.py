"""A method in one file outside the package: composed, shown, trained and resumed by its path."""

from __future__ import annotations

from pathlib import Path

import pytest

import vantage
from vantage.cli import main
from vantage.config import read_config
from vantage.core import UserError
from vantage.methods import index, registry

PAGE = '''"""Half-clip: PPO whose clip holds on one side only."""
from dataclasses import dataclass

import torch

from vantage.core import Method
from vantage.methods.control.ppo import ppo
from vantage.methods.registry import Paper, method


@dataclass(frozen=True)
class OneSided:
    high: float = 0.2
    wants = frozenset({"logp"})

    def __call__(self, evaluation, batch, context):
        ratio = (evaluation.logp - batch.logp_old).exp()
        return -torch.minimum(ratio * batch.advantage, ratio.clamp(max=1 + self.high) * batch.advantage)


@method(family="mine", papers=Paper("Half-clip", "A. Person", 2026))
def half_clip(high: float = 0.2, length: int = 64) -> Method:
    return ppo(rows=4, length=length, minibatches=2, epochs=2).replace(objective=OneSided(high))
'''


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "half_clip.py"
    path.write_text(PAGE)
    return path


def test_a_file_outside_the_package_is_a_method(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = [
        "train",
        str(page),
        "--task",
        "cartpole",
        "--steps",
        "1024",
        "--out",
        str(out),
        "--set",
        "high=0.3",
        "--eval-samples",
        "1",
    ]
    assert main(command) == 0
    assert read_config(out).settings == {"high": 0.3}
    assert (out / "model").is_dir()
    assert main(["show", str(page), "--full"]) == 0
    shown = capsys.readouterr().out
    assert "parent    ppo" in shown
    assert "* objective     OneSided(high=0.2)" in shown
    assert vantage.method(str(page), high=0.5).objective.high == 0.5


def test_a_file_without_a_method_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    assert main(["train", str(empty), "--task", "cartpole"]) == 2
    assert "defines 0 methods" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "none.py"), "--task", "cartpole"]) == 2
    assert "there is no file" in capsys.readouterr().err


HEAD = """from vantage.core import Method
from vantage.methods.objectives.grpo import grpo
from vantage.methods.registry import Paper, method
P = Paper("Title", "A. Person", 2026)

"""
BODY = "def mine(base: Method) -> Method:\n    return base\n"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\n", "mine.py defines 0 methods; exactly one recipe must be marked with @method(papers=..., ...)"),
        (f"@method(papers=P, base=grpo)\n{BODY}\n@method(papers=P, base=grpo)\n{BODY.replace('mine', 'other')}",
         "mine.py defines 2 methods; exactly one recipe"),
        (f"@method(papers=P, base=grpo)\n{BODY.replace('base: Method', 'beta: float = 0.1')}",
         "mine.py, line 6: mine: a recipe with base= takes what its base made as first argument, `base`"),
        (f"@method(base=grpo)\n{BODY}", "mine.py, line 6: @method needs papers=, what to cite: @method(papers=Paper("),
        (f"@method(papers='Title', base=grpo)\n{BODY}", "mine.py, line 6: @method needs papers=, what to cite"),
        ("@method\ndef mine() -> Method:\n    return grpo()\n", "mine.py, line 6: @method needs papers=, what to cite"),
        (f"@method(papers=P, base=Paper)\n{BODY}", "mine.py, line 6: mine: base='Paper' is no recipe that @method marks"),
        (f"@method(papers=P, base=grpo, without=('betaa',))\n{BODY}",
         "mine.py, line 6: mine: without names 'betaa', which grpo does not have; did you mean beta"),
        (f"@method(papers=P, gama=3)\n{BODY.replace('base: Method', '')}",
         "mine.py, line 6: mine: gama can be given to @method only together with base="),
        (f"@method(papers=P, base=grpo)\n{BODY.replace('base: Method', 'base: Method, beta: float')}",
         "mine.py, line 6: mine: the setting 'beta: float' needs a default"),
        (f"@method(papers=P, base=grpo)\n{BODY.replace('base: Method', 'base: Method, rate: Nowhere = 1')}",
         "mine.py, line 7: NameError: name 'Nowhere' is not defined"),
        (f"@method(papers=P, base=grpo)\n{BODY.replace('base: Method', 'base: Method, rate: chr(34) = 1')}",
         "mine.py, line 6: mine: an annotation cannot be read"),
        ('@method(papers=P)\n' + BODY.replace('base: Method', 'rate: "Nowhere" = 1'),
         "mine.py, line 6: mine: an annotation cannot be read: name 'Nowhere' is not defined"),
        (f"@method(papers=P, base=grpo, name='dapo')\n{BODY}",
         "mine.py, line 6: the name 'dapo' is that of a method of the package (src/vantage/methods/objectives/dapo.py): rename"),
        (f"import nowhere_at_all\n{BODY}",
         "mine.py, line 6: ModuleNotFoundError: No module named 'nowhere_at_all'; install it, or put its file beside this one"),
        ("def mine(:\n", "mine.py, line 6: invalid syntax"),
        ("mine = undefined\n", "mine.py, line 6: NameError: name 'undefined' is not defined"),
        (f"@method(papers=P, base=grpo)\n{BODY.replace('return base', 'return base.replace(advantag=3)')}",
         "mine.py, line 8: a method has no component 'advantag'; did you mean advantage?"),
        (f"@method(papers=P, base=grpo)\n{BODY.replace('return base', 'return base + 1')}",
         "mine.py, line 8: TypeError: unsupported operand"),
        (f"@method(papers=P, base=grpo)\n{BODY.replace('return base', 'base')}",
         "mine: the recipe returns nothing; it must return a Method"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_page_is_named_by_file_and_line(
    code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(HEAD + code)
    assert main(["train", "./mine.py", "--task", "addition:digits=1"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")
    assert not (tmp_path / "runs").exists()


def test_show_reads_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(f"{HEAD}@method(papers=P, base=grpo)\n{BODY}")
    assert main(["show", "./mine.py"]) == 0
    assert "\npage      ./mine.py\n" in capsys.readouterr().out
    (tmp_path / "grpo.py").write_text(f"{HEAD}@method(papers=P, base=grpo)\n{BODY}")
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe")
    (tmp_path / "paper.py").write_text(f"{HEAD}@method(papers=P, base=Paper)\n{BODY}")
    for name, told in (
        ("grpo", "./grpo.py: the name 'grpo' is that of a method of the package"),
        ("bytes", "bytes.py: not UTF-8 at byte 1"),
        ("paper", "paper.py, line 3: base=Paper: vantage.methods.registry is no page of a method"),
    ):
        assert main(["show", f"./{name}.py"]) == 2
        assert capsys.readouterr().err.startswith(f"error: {told}")
    # A file of the package is the method itself.
    inside = str(Path(index.ROOT) / "objectives" / "dapo.py")
    assert registry.page(inside) is registry.page("dapo")
    assert index.entry(inside) is index.entry("dapo")


def test_a_setting_that_is_refused_is_the_user_s_mistake_and_not_the_file_s(page: Path) -> None:
    with pytest.raises(UserError, match=r"^half-clip has no setting 'hig'"):
        vantage.method(str(page), hig=0.5)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            "import nowhere_at_all\n",
            "mine.py, line 1: ModuleNotFoundError: No module named 'nowhere_at_all'; install it",
        ),
        ("def task(:\n", "mine.py, line 1: invalid syntax"),
        ("def task():\n    return 1 / 0\n", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("def task():\n    pass\n", "mine.py: the function `task` returns nothing; it must return the task"),
        ("x = 1\n", "mine.py has no function `task` that returns a task"),
    ],
)
def test_a_mistake_in_a_task_is_named_by_file_and_line(
    code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(code)
    assert main(["train", "grpo", "--task", "./mine.py"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")
