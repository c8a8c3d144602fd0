"""Grading of a program by tests, run so that the program cannot know the expected values.

Two ways, both apart from the program's process:

- Where every assertion of the tests compares an expression with a literal (`assert f(3) == 9`, `assert 9 in f(3)`, several of them
  with `and`), the program evaluates the expressions, and the values are compared here.
- Any other test (`check(candidate)`, tolerances, loops, exceptions) runs in a second sandbox, whose calls of the program's
  functions go to the first (`vantage.rewards.isolation.examiner`).

Values cross as descriptions (`isolation.values`) and are compared as Python compares them: a list is no tuple, a Counter
equals a dict, a float equals only itself.
"""

from __future__ import annotations

import ast
import functools
import json
import operator
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vantage.rewards.isolation import values
from vantage.rewards.sandbox import Limits, run_pair, run_python


class Noted(float):
    """Score with further numbers to record (`verifier/NAME`), which are no rewards."""

    notes: Mapping[str, float]

    def __new__(cls, score: float, notes: Mapping[str, float]) -> Noted:
        """Return a score with notes."""
        made = super().__new__(cls, score)
        made.notes = notes
        return made


@dataclass(frozen=True)
class Check:
    """Expression that the program evaluates, and a comparison of its value with a literal.

    Attributes:
        expression: Python text.
        compare: `(value) -> bool`.
    """

    expression: str
    compare: Callable[[Any], bool]


@dataclass(frozen=True)
class Test:
    """One test: its text, and where all its assertions can be split into checks, these and the statements between them.

    Attributes:
        text: text of the test; "" for a call with its expected value.
        parts: statements (texts) and checks in order, or None where the test has to run in a process of its own.
    """

    text: str
    parts: tuple[str | Check, ...] | None


@dataclass(frozen=True)
class Grades:
    """Results of tests.

    Attributes:
        passed: whether each test passed.
        unsafe: number of tests that ran in the program's process.
    """

    passed: list[bool]
    unsafe: int = 0


_OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda value, container: value in container,
    ast.NotIn: lambda value, container: value not in container,
}
_TELLING = (
    ast.BinOp,
    ast.BoolOp,
    ast.Compare,
    ast.IfExp,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)
"""Nodes of an expression whose constants may reveal the expected value, as in `abs(f(3) - 9)`."""


def read_tests(tests: Any) -> tuple[list[tuple[str, str]], list[Test]]:
    """Return the (input, output) pairs of whole programs, and the tests that run after the program has.

    Raises:
        ValueError: there are none, or one cannot be read.
    """
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except ValueError:
            tests = [tests]
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
        raise ValueError("the problem has no field `tests`: a list of tests, or their text")
    programs: list[tuple[str, str]] = []
    found: list[Test] = []
    for test in tests:
        if isinstance(test, str):
            found.append(_of_text(test))
        elif isinstance(test, Mapping) and "call" in test and "expect" in test:
            wanted = functools.partial(alike, wanted=test["expect"])
            found.append(Test("", (Check(str(test["call"]), wanted),)))
        elif isinstance(test, Mapping) and "input" in test and "output" in test:
            programs.append((str(test["input"]), str(test["output"])))
        else:
            raise ValueError(
                f"cannot read the test {str(test)[:80]!r}: it has neither input and output nor call and expect"
            )
    return programs, found


def _of_text(text: str) -> Test:
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the test {text[:80]!r} is not Python: {error}") from None
    parts: list[str | Check] = []
    for statement in statements:
        if isinstance(statement, ast.Assert):
            checks = _checks(statement.test)
            if checks is None:
                return Test(text, None)
            parts += checks
        elif any(isinstance(node, ast.Assert) for node in ast.walk(statement)):
            return Test(text, None)
        else:
            parts.append(ast.unparse(statement))
    return Test(text, tuple(parts)) if any(isinstance(part, Check) for part in parts) else Test(text, None)


def _checks(test: ast.expr) -> list[Check] | None:
    """Return the checks that an assertion consists of; None where it cannot be split."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        found = [_checks(one) for one in test.values]
        return None if any(one is None for one in found) else [check for one in found for check in one or ()]
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return None
    compare, (left, right) = _OPERATORS[type(test.ops[0])], (test.left, test.comparators[0])
    for asked, given, turned in ((left, right, False), (right, left, True)):
        wanted = _literal(given)
        if wanted is None or any(isinstance(node, _TELLING) for node in ast.walk(asked)):
            continue
        if isinstance(test.ops[0], ast.Is | ast.IsNot) and wanted[0] not in (None, True, False):
            return None
        one: Callable[[Any], bool] = functools.partial(_compared, compare, wanted[0], turned)
        return [Check(ast.unparse(asked), one)]
    return None


def _literal(node: ast.expr) -> tuple[Any] | None:
    try:
        return (ast.literal_eval(node),)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _compared(compare: Callable[[Any, Any], Any], wanted: Any, turned: bool, value: Any) -> bool:
    try:
        return bool(compare(wanted, value) if turned else compare(value, wanted))
    except Exception:  # values that cannot be compared, as in Python: the assertion fails
        return False


def alike(value: Any, wanted: Any) -> bool:
    """Return whether a value equals a JSON value: numbers to a relative 1e-9, and lists equal tuples."""
    try:
        if isinstance(wanted, bool) or isinstance(value, bool):
            return bool(value == wanted)
        if isinstance(wanted, float) or isinstance(value, float):
            numeric = isinstance(value, (int, float)) and isinstance(wanted, (int, float))
            return numeric and (value == wanted or abs(value - wanted) <= 1e-9 * max(1.0, abs(wanted)))
        if isinstance(wanted, (list, tuple)):
            same = isinstance(value, (list, tuple)) and len(value) == len(wanted)
            return same and all(alike(one, other) for one, other in zip(value, wanted))
        if isinstance(wanted, dict):
            same = isinstance(value, dict) and value.keys() == wanted.keys()
            return same and all(alike(value[key], wanted[key]) for key in wanted)
        return bool(value == wanted)
    except (OverflowError, RecursionError):
        return False


def grade(source: str, tests: Sequence[Test], limits: Limits, isolation: str) -> Grades:
    """Run tests of a program.

    Args:
        source: text of the program.
        tests: tests of `read_tests`, in order: later ones may use definitions of earlier ones.
        limits: limits of the program, for all tests together. The tests' own process has one more second of processor time.
        isolation: as in `run_python`.
    """
    if not tests:
        return Grades([])
    apart = [test for test in tests if test.text]
    if all(test.parts is not None for test in tests):
        return Grades(_evaluated(source, tests, limits, isolation))
    passed = dict.fromkeys(range(len(tests)), False)
    calls = [place for place, test in enumerate(tests) if not test.text]
    if calls:
        passed |= dict(zip(calls, _evaluated(source, [tests[i] for i in calls], limits, isolation), strict=True))
    places = [place for place, test in enumerate(tests) if test.text]
    verdicts = _examined(source, [test.text for test in apart], limits, isolation)
    unsafe = verdicts.count("unsendable")
    if unsafe:
        beside = _beside(source, [test.text for test in apart], limits, isolation)
        verdicts = [two if one == "unsendable" else one for one, two in zip(verdicts, beside, strict=True)]
    passed |= {place: verdict == "yes" for place, verdict in zip(places, verdicts, strict=True)}
    return Grades([passed[place] for place in range(len(tests))], unsafe)


_EVALUATE = """
import sys as _sys
_out, _exec, _compile, _eval = _sys.__stdout__, exec, compile, eval
_module = _sys.modules["solution"] = type(_sys)("solution")
_exec(_compile({source!r}, "solution.py", "exec", dont_inherit=True), _module.__dict__)
for _kind, _text in {steps!r}:
    try:
        if _kind == "check":
            _value = _text_of(describe(_eval(_compile(_text, "test.py", "eval", dont_inherit=True), _module.__dict__)))
        else:
            _exec(_compile(_text, "test.py", "exec", dont_inherit=True), _module.__dict__)
            _value = "None"
    except Exception as _error:
        _value = "!" + type(_error).__name__
    _out.write("\\n" + {mark!r} + _value + "\\n")
_out.flush()
"""


def _evaluated(source: str, tests: Sequence[Test], limits: Limits, isolation: str) -> list[bool]:
    """Evaluate the tests' expressions in the program's process, and compare their values here."""
    steps = [
        ("check", part.expression) if isinstance(part, Check) else ("run", part)
        for test in tests
        for part in test.parts or ()
    ]
    mark = f"{secrets.token_hex(8)}:"
    body = _EVALUATE.format(source=source, steps=steps, mark=mark)
    result = run_python(_program(f"_text_of = to_text\n{body}", "values"), "", limits, isolation=isolation)
    lines = [line[len(mark) :] for line in result.stdout.splitlines() if line.startswith(mark)]
    lines += ["!"] * (len(steps) - len(lines))
    left = iter(lines)
    passed = []
    for test in tests:
        said = [(part, next(left)) for part in test.parts or ()]
        passed.append(all(_holds(part, line) for part, line in said))
    return passed


def _holds(part: str | Check, line: str) -> bool:
    if line.startswith("!"):
        return False
    try:
        return isinstance(part, str) or part.compare(values.build(values.from_text(line)))
    except (values.NotPlainError, TypeError, ValueError, OverflowError, ArithmeticError):
        return False  # a value that equals none of Python's


def _examined(source: str, tests: list[str], limits: Limits, isolation: str) -> list[str]:
    """Run tests in a sandbox of their own against the program in another; return "yes", "no" or "unsendable" for each."""
    mark = f"{secrets.token_hex(8)}:"
    solver = _program(f"serve({source!r})", "values", "solver")
    examiner = _program(f"examine({tests!r}, {mark!r})", "values", "examiner")
    patient = replace(limits, cpu_seconds=limits.cpu_seconds + 1, wall_seconds=limits.wall_seconds + 1)
    _, result = run_pair(solver, examiner, (limits, patient), isolation=isolation)
    lines = [line[len(mark) :] for line in result.stderr.splitlines() if line.startswith(mark)]
    return lines + ["no"] * (len(tests) - len(lines))


_BESIDE = """
import sys as _sys
_out, _exec, _compile = _sys.__stdout__, exec, compile
_module = _sys.modules["solution"] = type(_sys)("solution")
_exec(_compile({source!r}, "solution.py", "exec", dont_inherit=True), _module.__dict__)
for _text in {tests!r}:
    try:
        _exec(_compile(_text, "test.py", "exec", dont_inherit=True), _module.__dict__)
        _value = "yes"
    except Exception:
        _value = "no"
    _out.write("\\n" + {mark!r} + _value + "\\n")
_out.flush()
"""


def _beside(source: str, tests: list[str], limits: Limits, isolation: str) -> list[str]:
    """Run tests in the program's own process, which could manipulate them."""
    mark = f"{secrets.token_hex(8)}:"
    result = run_python(_BESIDE.format(source=source, tests=tests, mark=mark), "", limits, isolation=isolation)
    lines = [line[len(mark) :] for line in result.stdout.splitlines() if line.startswith(mark)]
    return lines + ["no"] * (len(tests) - len(lines))


def _program(last: str, *modules: str) -> str:
    """Return a program that consists of modules of the sandbox and last lines."""
    return "\n".join(["from __future__ import annotations", *map(_module, modules), last, ""])


@functools.cache
def _module(name: str) -> str:
    """Return the source of a module of the sandbox, so that it can be joined with others in one program."""
    text = (Path(values.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.ImportFrom) and (node.level or node.module == "__future__"))
    ]
    return ast.unparse(tree)
