from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vantage.core.errors import UserError
from vantage.rewards import sandbox
from vantage.rewards.verifiers import (
    Code,
    Exact,
    JsonSchema,
    Math,
    MultipleChoice,
    Numeric,
    PythonFunction,
    Regex,
    Rewards,
    rewards,
    verifier,
)


@dataclass(frozen=True)
class Asked:
    answer: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    prompt: str = "?"


def test_exact() -> None:
    assert Exact()(Asked("a b"), "  a \n b ") == 1.0
    assert Exact()(Asked("a b"), "A b") == 0.0
    assert Exact(case=False)(Asked("STRASSE"), "straße") == 1.0
    assert Exact(space=True)(Asked("a b"), " a  b ") == 0.0
    assert Exact(after="Answer:")(Asked("7"), "Answer: 3, no. Answer: 7") == 1.0
    assert Exact(after="Answer:")(Asked("7"), "7") == 0.0


@pytest.mark.parametrize(
    ("answer", "completion", "score"),
    [
        ("72", r"The answer is $\boxed{72}$.", 1.0),
        ("\\frac{1}{2}", "so we get 0.5", 1.0),
        ("x^2+1", r"$(x+1)^2 - 2x$", 1.0),
        ("x^2+1", r"\boxed{x^2-1}", 0.0),
        ("(1,2)", "$(1, 2)$", 1.0),
        ("\\boxed{3}", "3", 1.0),
        ("\\{1,2\\}", "$\\{2,1\\}$", 1.0),
        ("72", "no idea", 0.0),
    ],
)
def test_math(answer: str, completion: str, score: float) -> None:
    pytest.importorskip("math_verify")
    assert Math()(Asked(answer), completion) == score


def test_math_has_its_own_clock() -> None:
    pytest.importorskip("math_verify")
    import time

    started = time.monotonic()
    Math(seconds=1)(Asked("1"), r"\boxed{" + "+".join(f"\\sqrt{{{i}}}^{{{i}}}" for i in range(2, 400)) + "}")
    assert time.monotonic() - started < 20
    with pytest.raises(UserError, match="seconds=0"):
        Math(seconds=0)


def test_regex() -> None:
    assert Regex(r"<answer>.*</answer>")(Asked(), "so <answer>\n3\n</answer>") == 1.0
    assert Regex(r"<answer>.*</answer>", full=True)(Asked(), "so <answer>3</answer>") == 0.0
    graded = Regex(r"<answer>(?P<answer>.*?)</answer>", case=False)
    assert graded(Asked("b"), "<ANSWER> B </ANSWER>") == 1.0
    assert graded(Asked("b"), "<answer>c</answer>") == 0.0
    with pytest.raises(UserError, match=r"pattern='\(': not a regular expression"):
        Regex("(")


SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def test_json_schema(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    for check, asked in ((JsonSchema(str(path)), Asked()), (JsonSchema(), Asked(fields={"schema": SCHEMA}))):
        assert check(asked, '{"age": 3}') == 1.0
        assert check(asked, 'Here:\n```json\n{"age": 3}\n```\n') == 1.0
        assert check(asked, 'Here:\r\n```json\r\n{"age": 3}\r\n```\r\nRun\n```bash\nls\n```') == 1.0
        assert check(asked, '```\n{"age": 3}\n```\nIt prints\n```\nthree') == 1.0
        assert check(asked, '{"age": "3"}') == 0.0
        assert check(asked, "{age: 3}") == 0.0
        assert check(asked, "[" * 100_000) == 0.0
    with pytest.raises(ValueError, match="no schema"):
        JsonSchema()(Asked(), "{}")
    path.write_text('{"type": 7}')
    with pytest.raises(UserError, match="not a JSON schema"):
        JsonSchema(str(path))
    with pytest.raises(UserError, match="No such file"):
        JsonSchema(str(tmp_path / "none.json"))
    remote = JsonSchema()
    with pytest.raises(Exception, match=r"[Uu]nresolvable"):
        remote(Asked(fields={"schema": {"$ref": "http://localhost:1/schema.json"}}), "{}")


@pytest.mark.parametrize(
    ("answer", "completion", "score"),
    [
        ("B", r"so \boxed{B}", 1.0),
        ("B", r"\boxed{\text{B}}", 1.0),
        ("B", "The answer is (B).", 1.0),
        ("(b)", "Answer: **B**", 1.0),
        ("B", "The answer is C. No: the answer is B", 1.0),
        ("B", "B", 1.0),
        ("B", "Reasoning.\nB) Paris", 1.0),
        ("1", "B.", 1.0),
        ("Paris", "(B)", 1.0),
        ("B", "A bird is not it", 0.0),
        ("B", "the answer is Bonn", 0.0),
        ("B", "", 0.0),
        ("B", "The answer is A", 0.0),
    ],
)
def test_multiple_choice(answer: str, completion: str, score: float) -> None:
    assert MultipleChoice()(Asked(answer, {"choices": ["Rome", "Paris"]}), completion) == score


def test_multiple_choice_needs_a_letter() -> None:
    with pytest.raises(ValueError, match="neither a letter"):
        MultipleChoice()(Asked("Lyon", {"choices": ["Rome", "Paris"]}), "A")
    assert MultipleChoice(letters=3)(Asked("A"), "answer: D") == 0.0


def test_python_function(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(problem, completion):\n    return {'length': len(completion), 'none': None}\n")
    assert PythonFunction(f"{file}:score")(Asked(), "four") == {"length": 4, "none": None}
    assert PythonFunction("operator:eq")(1, 1) is True
    for path, message in (
        ("nonsense", "does not name a function"),
        (f"{file}:scor", "did you mean score"),
        (f"{tmp_path}/none.py:f", "there is no file"),
        ("no_such_package.x:f", "No module named"),
    ):
        with pytest.raises(UserError, match=message):
            PythonFunction(path)
    file = tmp_path / "broken.py"
    file.write_text("1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        PythonFunction(f"{file}:f")


def runs_code() -> None:
    if all(sandbox._missing(name) for name in ("namespaces", "landlock")):
        pytest.skip("no isolation works here")


GOOD = "Here it is:\n```python\ndef f(n):\n    return n * n\n```\nDone."


def test_code_with_calls() -> None:
    runs_code()
    tests = [{"call": "f(3)", "expect": 9}, "assert f(2) == 4", "x = f(5)\nassert x == 25", "assert f(1) < 2"]
    assert Code()(Asked(fields={"tests": tests}), GOOD) == 1.0
    assert Code()(Asked(fields={"tests": json.dumps(tests)}), GOOD) == 1.0
    assert Code()(Asked(fields={"test_list": ["assert f(2) == 5"]}), GOOD) == 0.0
    half = ["assert f(2) == 4", "assert f(2) == 5", "assert g(1) == 1", "assert f(3) == 9"]
    assert Code(partial=True)(Asked(fields={"tests": half}), GOOD) == 0.5
    floats = [{"call": "[f(0.1), (1, 2)]", "expect": [0.01, [1, 2]]}]
    assert Code()(Asked(fields={"tests": floats}), GOOD) == 1.0


def test_code_is_the_program_among_other_blocks() -> None:
    runs_code()
    text = f"```bash\npip install x\n```\n{GOOD}\n```\n9\n```".replace("\n", "\r\n")
    assert Code()(Asked(fields={"tests": ["assert f(3) == 9"]}), text) == 1.0


def test_code_with_input_and_output() -> None:
    runs_code()
    tests = [{"input": "1 2\n", "output": "3"}, {"input": "5 6\n", "output": "11\n"}]
    assert Code()(Asked(fields={"tests": tests}), "print(sum(map(int, input().split())))  ") == 1.0
    assert Code()(Asked(fields={"tests": tests}), "print(3)") == 0.0
    assert Code(partial=True)(Asked(fields={"tests": tests}), "print(3)") == 0.5


@pytest.mark.parametrize(
    "cheat",
    [
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "class Any:\n    def __eq__(self, other): return True\ndef f(n): return Any()",
        "import builtins\nbuiltins.ascii = builtins.repr = lambda x: '9'\ndef f(n): return 0",
        "import sys, atexit\ndef f(n): return None\natexit.register(lambda: print('True'))",
        "import os, signal; os.kill(os.getpid(), 9)",
        "while True: pass",
        "def f(n):\n    import sys\n    sys.exit(0)",
        "def f(n): return '9'",
        "",
        "not python at all",
    ],
)
def test_code_that_cheats_fails(cheat: str) -> None:
    runs_code()
    assert Code(seconds=0.5)(Asked(fields={"tests": ["assert f(3) == 9"]}), cheat) == 0.0


def test_code_needs_tests() -> None:
    runs_code()
    with pytest.raises(ValueError, match="no field `tests`"):
        Code()(Asked(), GOOD)
    with pytest.raises(ValueError, match="neither input and output"):
        Code()(Asked(fields={"tests": [{"inputs": 1}]}), GOOD)
    with pytest.raises(ValueError, match="is not Python"):
        Code()(Asked(fields={"tests": ["assert ("]}), GOOD)


def test_verifier_from_text() -> None:
    assert verifier("exact") == Exact()
    assert verifier("numeric:tolerance=1e-3,after=####") == Numeric(1e-3, after="####")
    assert verifier("exact:case=no, after=Answer:") == Exact("Answer:", False)
    assert verifier("regex:pattern=a{1,2}:b=c,full=true") == Regex("a{1,2}:b=c", True)
    assert verifier("regex:<answer>(.*),x=1</answer>") == Regex("<answer>(.*),x=1</answer>")
    assert verifier("math:seconds=3") == Math(3)
    assert verifier("choice:letters=4") == verifier("multiple-choice:letters=4")
    assert verifier("python:operator:eq") == PythonFunction("operator:eq")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("numerc", "unknown verifier 'numerc'; did you mean numeric"),
        (
            "numeric:tolerence=1",
            r"has no setting 'tolerence'; did you mean tolerance\? \(settings: tolerance, relative, after\)",
        ),
        ("numeric:tolerance=small", "tolerance='small' is not a number"),
        ("numeric:tolerance=-7", "out of range"),
        ("numeric:0.1", "write numeric:setting=value"),
        ("exact:case=maybe", "write true or false"),
        ("exact:case=no,case=yes", "given twice"),
        ("regex", "needs pattern: write regex:pattern="),
        ("math:seconds=1.5", "not an integer"),
    ],
)
def test_bad_verifiers_say_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        verifier(spec)


def test_rewards() -> None:
    mixed = rewards(["correct=numeric:tolerance=0", "format*0.2=regex:<a>.*</a>", "exact"])
    assert set(mixed.verifiers) == {"correct", "format", "exact"}
    scores = mixed(Asked("7"), "<a>7</a>")
    assert scores == {"correct": 1.0, "format": 1.0, "exact": 0.0}
    assert mixed.total(scores) == pytest.approx(1.2)
    assert mixed.total({"correct": math.nan, "format": 1.0, "errors": 5.0}) == pytest.approx(0.2)
    assert math.isnan(mixed.total({"correct": math.nan}))
    parts = Rewards({"x": lambda problem, text: {"a": 1, "b": None}}, {"x/a": 3.0, "x": 2.0})
    assert parts(Asked(), "")["x/a"] == 1.0
    assert math.isnan(parts(Asked(), "")["x/b"])
    assert parts.total({"x/a": 1.0, "x/b": 1.0}) == 5.0
    for bad, message in (
        (["math", "math"], "'math' is taken"),
        (["=math"], "empty"),
        (["a*x=math"], "weight 'x' is not a number"),
        ([], "verifiers is empty"),
        (["a=mth"], "did you mean math"),
    ):
        with pytest.raises(UserError, match=message):
            rewards(bad)
    with pytest.raises(UserError, match="unknown reward 'y'"):
        Rewards({"x": Exact()}, {"y": 1.0})
    with pytest.raises(UserError, match="must be finite"):
        Rewards({"x": Exact()}, {"x": math.inf})
