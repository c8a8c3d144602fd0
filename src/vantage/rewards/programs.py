"""Verifiers that run something: a function of the user's, or the completion's own code in the sandbox."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from vantage.core import between, checked_by, component, one_of
from vantage.core.errors import UserError, nearest
from vantage.rewards.fences import answer_block
from vantage.rewards.sandbox import ISOLATION, Limits, run_python, strongest_isolation
from vantage.rewards.textual import Graded


@functools.cache
def load_function(path: str) -> Callable[..., Any]:
    """Return the function that `package.module:function` or `file.py:function` names.

    Raises:
        UserError: no such module, file or function; the message names the nearest functions.
    """
    place, colon, name = path.rpartition(":")
    if not colon or not place or not name:
        raise UserError(f"{path!r} does not name a function: write package.module:function or file.py:function")
    try:
        if place.endswith(".py"):
            file = Path(place).resolve()
            if not file.is_file():
                raise UserError(f"{path!r}: there is no file {place}")
            spec = importlib.util.spec_from_file_location(file.stem, file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            # Registered before it runs, as an ordinary import does: dataclasses look their module up.
            sys.modules.setdefault(file.stem, module)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path!r}: importing {place} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise UserError(f"{path!r}: {place} has no function {name!r}{nearest(name, known)}")
    return function  # type: ignore[no-any-return]


@component(label="verifier python")
class PythonFunction:
    """A function of the user's, called with (problem, completion): a number, a truth value, named numbers, or None.

    Raises:
        UserError: the path names no function.
    """

    path: Annotated[str, checked_by(load_function)]
    isolated: ClassVar[bool] = True

    def prepare(self) -> None:
        """Import the module ahead of the first call."""
        load_function(self.path)

    def __call__(self, problem: Graded, completion: str) -> Any:
        """Return what the function returns."""
        return load_function(self.path)(problem, completion)


PYTHON = frozenset({"python", "python3", "py", "py3"})


def _is_program(text: str) -> bool:
    """Whether a text is Python that does something: more than a value, as an output is."""
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    value = (ast.Constant, ast.Name, ast.UnaryOp, ast.BinOp, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.Compare)
    return any(not (isinstance(each, ast.Expr) and isinstance(each.value, value)) for each in statements)


# The completion runs first, in a module of its own, and then each call; what a call returns goes out as a literal behind a
# mark that did not exist before, and is compared by the caller. An object that claims to equal everything, an early exit
# or a changed built-in cannot make a wrong literal right: the right answers are not in this process.
_CALLS = """
import sys as _sys
_out, _ascii, _exec, _compile, _eval = _sys.__stdout__, ascii, exec, compile, eval
_module = _sys.modules["solution"] = type(_sys)("solution")
_exec(_compile({source!r}, "solution.py", "exec"), _module.__dict__)
for _kind, _text in {steps!r}:
    try:
        if _kind == "call":
            _value = _ascii(_eval(_compile(_text, "test.py", "eval"), _module.__dict__))
        else:
            _exec(_compile(_text, "test.py", "exec"), _module.__dict__)
            _value = "True"
    except Exception as _error:
        _value = "!" + type(_error).__name__
    _out.write("\\n" + {mark!r} + _value + "\\n")
_out.flush()
"""


def _works_here(isolation: str) -> None:
    if isolation == "auto":
        strongest_isolation()


@component(label="verifier code")
class Code:
    """Run the completion's Python against the problem's tests in the sandbox.

    The program is the last closed block that is fenced as Python; without one, the last block without a language that is a
    program; without any block, the whole completion (`vantage.rewards.fences`).

    The problem's field `tests` is a list (or its JSON text) of

    - `{"input": text, "output": text}`: a whole program, fed on standard input; its output is compared line by line
      without trailing white space;
    - `{"call": "f(3)", "expect": 9}`: an expression after the code has run; its value is compared with the literal;
    - a text such as `assert f(3) == 9`, or several lines with set-up.

    An `assert EXPRESSION == LITERAL` is turned into a call, so that the expected value is never in the program's reach.
    Any other text is judged inside of the program's own process, which code made for it could deceive.

    Attributes:
        seconds: CPU time; twice as much wall time. For each input, or for all calls together.
        memory_mb: address space in MiB.
        partial: return the share of tests passed, instead of whether all passed.
        isolation: as in `run_python`.

    Raises:
        UserError: a setting out of range, or the machine has no such isolation.
        ValueError (when called): the problem has no tests, or they cannot be read.
    """

    seconds: Annotated[float, between(0.01, 3600)] = 2.0
    memory_mb: Annotated[int, between(64, 1 << 20)] = 512
    partial: bool = False
    isolation: Annotated[str, one_of(("auto", *ISOLATION)), checked_by(_works_here)] = "auto"
    isolated: ClassVar[bool] = True

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when all tests pass, else 0.0; with `partial`, the share that passes."""
        source = answer_block(completion, PYTHON, _is_program)
        programs, steps, expected = _tests(problem)
        passed = []
        for given, wanted in programs:
            result = self._run(source, given)
            passed.append(result.ok and _lines(result.stdout) == _lines(wanted))
            if not passed[-1] and not self.partial:
                return 0.0
        if steps:
            mark = f"{secrets.token_hex(8)}:"
            result = self._run(_CALLS.format(source=source, steps=steps, mark=mark), "")
            values = [line[len(mark) :] for line in result.stdout.splitlines() if line.startswith(mark)]
            values += [""] * (len(steps) - len(values))
            passed += [
                _same(value, wanted) for (kind, _), value, wanted in zip(steps, values, expected) if kind != "setup"
            ]
        return sum(passed) / len(passed) if self.partial else float(all(passed))

    def _run(self, source: str, given: str) -> Any:
        limits = Limits(cpu_seconds=self.seconds, wall_seconds=2 * self.seconds, memory_bytes=self.memory_mb << 20)
        return run_python(source, given, limits, isolation=self.isolation)


Step = tuple[str, str]


def _tests(problem: Graded) -> tuple[list[tuple[str, str]], list[Step], list[Any]]:
    """Return the (input, output) pairs, the steps after the code has run, and what each step must give."""
    tests = problem.fields.get("tests", problem.fields.get("test_list"))
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except ValueError:
            tests = [tests]
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
        raise ValueError("the problem has no field `tests`: a list of tests, or their text")
    programs: list[tuple[str, str]] = []
    steps: list[Step] = []
    expected: list[Any] = []
    for test in tests:
        if isinstance(test, str):
            for step, value in _split(test):
                steps.append(step)
                expected.append(value)
        elif isinstance(test, Mapping) and "call" in test and "expect" in test:
            steps.append(("call", str(test["call"])))
            expected.append(test["expect"])
        elif isinstance(test, Mapping) and "input" in test and "output" in test:
            programs.append((str(test["input"]), str(test["output"])))
        else:
            raise ValueError(
                f"cannot read the test {str(test)[:80]!r}: it has neither input and output nor call and expect"
            )
    return programs, steps, expected


def _split(text: str) -> list[tuple[Step, Any]]:
    """Split a test's text into its statements; `assert EXPRESSION == LITERAL` becomes a call with what it must give."""
    found: list[tuple[Step, Any]] = []
    try:
        statements = ast.parse(text).body
    except SyntaxError as error:
        raise ValueError(f"the test {text[:80]!r} is not Python: {error}") from None
    for statement in statements:
        match statement:
            case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
                try:
                    found.append((("call", ast.unparse(left)), ast.literal_eval(right)))
                    continue
                except ValueError:
                    pass
        kind = "assert" if isinstance(statement, ast.Assert) else "setup"
        found.append(((kind, ast.unparse(statement)), True))
    if found and all(kind == "setup" for (kind, _), _ in found):
        # Nothing but statements: that they all run is the test.
        found = [((("assert", step[1]), True)) for step, _ in found]
    return found


def _same(text: str, wanted: Any) -> bool:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return _equal(value, wanted)


def _equal(value: Any, wanted: Any) -> bool:
    """Equality of literals; floating-point numbers may differ by 1e-9 of their size, and JSON's lists equal tuples."""
    if isinstance(wanted, bool) or isinstance(value, bool):
        return bool(value == wanted)
    if isinstance(wanted, float) or isinstance(value, float):
        numeric = isinstance(value, (int, float)) and isinstance(wanted, (int, float))
        return numeric and (value == wanted or abs(value - wanted) <= 1e-9 * max(1.0, abs(wanted)))
    if isinstance(wanted, (list, tuple)):
        same = isinstance(value, (list, tuple)) and len(value) == len(wanted)
        return same and all(_equal(one, other) for one, other in zip(value, wanted))
    if isinstance(wanted, dict):
        same = isinstance(value, dict) and value.keys() == wanted.keys()
        return same and all(_equal(value[key], wanted[key]) for key in wanted)
    return bool(value == wanted)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
