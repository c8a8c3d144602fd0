"""Every command and every program of README.md is run, with the least budget that shows that it works."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from vantage import demo
from vantage.cli import main

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHELL = [line.partition("#")[0].strip() for line in re.findall(r"^ {4}(\S.*)$", README, flags=re.MULTILINE)]
"""The commands of the indented blocks, without their comments."""
INLINE = re.findall(r"`((?:vantage|make) [^`]+)`", README) + re.findall(r"(?<=then: )(vantage [^\n]+)", README)
"""Those within the text, and those that a comment goes on with."""
COMMANDS = list(dict.fromkeys([*SHELL, *INLINE]))
PROGRAMS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)

ANSWERS = ("--steps", "1", "--eval-samples", "1", "--set", "prompts=2", "group_size=2", "--option", "max_new_tokens=4")
SMALL: dict[str, tuple[str, ...]] = {
    "vantage train grpo --model DIR --data train.jsonl --verifier math": ANSWERS,
    "vantage train grpo --model DIR --data train.jsonl --verifier math --engine vllm": ANSWERS,
    "vantage train dpo --model DIR --data pairs.jsonl": ("--steps", "1", "--set", "prompts=2"),
    "vantage train ppo --task gym:LunarLander-v3 --steps 200000": (
        "--steps", "64", "--eval-samples", "1", "--set", "rows=2", "length=16", "minibatches=1", "epochs=1",
    ),
    "vantage train pomo --task tsp:nodes=50 --steps 500": ("--steps", "1", "--eval-samples", "1", "--set", "prompts=2"),
    "vantage train ./my_method.py --task cartpole": (
        "--steps", "64", "--eval-samples", "1", "--set", "rows=2", "length=16", "minibatches=1", "epochs=1",
    ),
}  # fmt: skip
"""What is added to a command so that it is short."""
NEEDS = {
    "--engine vllm": ("vllm", "vllm"),
    "LunarLander": ("Box2D", "control"),
    "math": ("math_verify", "language"),
}
"""(library, extra) without which a command is refused."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo has run, with a user's files and a finished run RUN of each kind that the README names."""
    folder = tmp_path_factory.mktemp("readme")
    assert (
        demo.main(["--out", str(folder / "demo"), "--task", "addition:digits=1", "--warm-steps", "2", "--steps", "1"])
        == 0
    )
    (folder / "DIR").symlink_to(folder / "demo" / "sft" / "model")
    problems = [{"question": f"{n}+1=", "answer": str(n + 1)} for n in range(8)]
    pairs = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": str(n)} for n in range(4)]
    for name, rows in (("train", problems), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my_method.py").write_text(
        "from vantage.core import Method\nfrom vantage.methods.control.ppo import ppo\n"
        "from vantage.methods.registry import Paper, method\n\n\n"
        '@method(family="mine", papers=Paper("Mine", "A. Person", 2026), base=ppo)\n'
        'def mine(base: Method) -> Method:\n    """Compose it."""\n    return base\n'
    )
    (folder / "FOLDER").mkdir()
    nodes = "".join(f"{i} {i * i % 7} {i}\n" for i in range(1, 7))
    (folder / "FOLDER" / "six.tsp").write_text(
        f"NAME: six\nTYPE: TSP\nDIMENSION: 6\nEDGE_WEIGHT_TYPE: EUC_2D\nNODE_COORD_SECTION\n{nodes}EOF\n"
    )
    return folder


def test_the_readme_holds_what_is_run_here() -> None:
    assert len(SHELL) >= 10
    assert len(PROGRAMS) == 1
    assert not set(SMALL) - set(COMMANDS), "the README has another command now"


def shortened(words: list[str], small: tuple[str, ...]) -> list[str]:
    """The command with what makes it short; its own --steps gives way."""
    if "--steps" in small and "--steps" in words:
        at = words.index("--steps")
        words = words[:at] + words[at + 2 :]
    return [*words, *small]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_runs(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = shlex.split(command)
    if words[0] == "make":
        made = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
        assert re.search(
            r"-m (vantage\.demo|pytest)|vantage claims table|Nothing to be done|\.peers/\w+/bin/python -m pip",
            made.stdout,
        )
        return
    assert words[0] == "vantage"
    if words[1] == "compare":
        pytest.skip("below, as it starts processes")
    if command.startswith("vantage eval RUN"):
        assert (
            main(shlex.split("train pomo --task tsp:nodes=6 --steps 1 --eval-samples 0 --set prompts=2 --out RUN-pomo"))
            == 0
        )
        words[2] = "RUN-pomo"
        words += ["--samples", "1"]
    elif "RUN" in words:
        words[words.index("RUN")] = "demo/grpo"
    words = shortened(words, SMALL.get(command, ()))
    if words[1] == "train":
        words += ["--out", f"run-{COMMANDS.index(command)}"]
    missing = next(
        (need for mark, need in NEEDS.items() if mark in command and not importlib.util.find_spec(need[0])),
        None,
    )
    code = main(words[1:])
    said = " ".join(capsys.readouterr().err.split())
    if missing is not None:
        assert code == 2
        assert f"pip install 'vantage[{missing[1]}]'" in said
        pytest.skip(f"{missing[0]} is not installed; the refusal names the extra {missing[1]}")
    assert code == 0, said


@pytest.mark.slow
def test_the_comparison_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = (command for command in COMMANDS if command.startswith("vantage compare"))
    monkeypatch.chdir(place)
    monkeypatch.setenv("VANTAGE_CACHE", str(place / "cache"))
    arena = (ROOT / "src" / "vantage" / "study" / "arena_files" / "arithmetic.toml").read_text()
    small = {"size = 64_000": "size = 32", "steps = 400": "steps = 2", "prompts = 32": "prompts = 2"}
    small |= {"points = 10": "points = 1", "evaluated = 256": "evaluated = 4", "samples = 8": "samples = 1"}
    for old, new in small.items():
        assert old in arena
        arena = arena.replace(old, new)
    (place / "arithmetic.toml").write_text(arena)
    words = [word.replace("arithmetic", "arithmetic.toml") for word in shlex.split(command)]
    assert main([*words[1:], "--seeds", "2", "--out", "comparison"]) == 0
    assert (place / "comparison" / "report.html").is_file()


def test_the_program_runs(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = PROGRAMS
    monkeypatch.chdir(place)
    for old, new in (("prompts=32", "prompts=2"), ("steps=100", "steps=1")):
        assert old in program
        program = program.replace(old, new)
    exec(compile(program, "README.md", "exec"), {})
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 1
