"""Verifiers that run code: a function of the user's, or the completion's program in the sandbox."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from vantage.core import between, checked_by, component, one_of
from vantage.core.errors import UserError, nearest
from vantage.rewards.fences import answer_block
from vantage.rewards.grading import Noted, grade, read_tests
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
            # Registered before it runs, as in an ordinary import: dataclasses look up their module.
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
    """Verifier that calls a function of the user's with (problem, completion): a number, a boolean, named numbers, or None.

    Raises:
        UserError: the path names no function.
    """

    path: Annotated[str, checked_by(load_function)]
    isolated: ClassVar[bool] = True

    def prepare(self) -> None:
        """Import the module ahead of the first call."""
        load_function(self.path)

    def __call__(self, problem: Graded, completion: str) -> Any:
        """Return the function's result."""
        return load_function(self.path)(problem, completion)


PYTHON = frozenset({"python", "python3", "py", "py3"})


def _is_program(text: str) -> bool:
    """Return whether a text is a Python program, not just a value as an output is."""
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    value = (ast.Constant, ast.Name, ast.UnaryOp, ast.BinOp, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.Compare)
    return any(not (isinstance(each, ast.Expr) and isinstance(each.value, value)) for each in statements)


def _works_here(isolation: str) -> None:
    if isolation == "auto":
        strongest_isolation()


@component(label="verifier code")
class Code:
    """Verifier that runs the completion's Python program against the problem's tests in the sandbox.

    The program is the last closed block that is fenced as Python; without one, the last block without a language that is a
    program; without any block, the whole completion (`vantage.rewards.fences`).

    The problem's field `tests` is a list (or its JSON text) of

    - `{"input": text, "output": text}`: a whole program, fed on standard input; its output is compared line by line
      without trailing white space;
    - `{"call": "f(3)", "expect": 9}`: an expression after the code has run; its value is compared with the literal;
    - a text such as `assert f(3) == 9`, or several lines with set-up, or `def check(candidate): ...` and `check(f)`.

    The expected values are never in the program's process (`vantage.rewards.grading`). A test with arguments that cannot be sent
    to another process, such as a function, runs in the program's process, which could manipulate it: the metric
    `verifier/unsafe_tests` counts such tests, and `strict` refuses them.

    Attributes:
        seconds: CPU time; twice as much wall time. For each input, or for all calls together.
        memory_mb: address space in MiB.
        partial: return the share of tests passed, instead of whether all passed.
        strict: a test that cannot be run in another process than the program is an error.
        isolation: as in `run_python`.

    Raises:
        UserError: a setting out of range, or the machine has no such isolation.
        ValueError (when called): the problem has no tests, or they cannot be read.
    """

    seconds: Annotated[float, between(0.01, 3600)] = 2.0
    memory_mb: Annotated[int, between(64, 1 << 20)] = 512
    partial: bool = False
    strict: bool = False
    isolation: Annotated[str, one_of(("auto", *ISOLATION)), checked_by(_works_here)] = "auto"
    isolated: ClassVar[bool] = True

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when all tests pass, else 0.0; with `partial`, the share that passes."""
        source = answer_block(completion, PYTHON, _is_program)
        programs, tests = read_tests(problem.fields.get("tests", problem.fields.get("test_list")))
        passed: list[bool] = []
        for given, wanted in programs:
            result = run_python(source, given, self._limits(), isolation=self.isolation)
            passed.append(result.ok and _lines(result.stdout) == _lines(wanted))
            if not passed[-1] and not self.partial:
                return 0.0
        graded = grade(source, tests, self._limits(), self.isolation)
        passed += graded.passed
        if graded.unsafe and self.strict:
            raise ValueError(
                f"{graded.unsafe} tests cannot be run apart from the program (they give it a function or an object of their own);"
                " code:strict=no runs them beside it"
            )
        score = sum(passed) / len(passed) if self.partial else float(all(passed))
        return Noted(score, {"unsafe_tests": float(graded.unsafe)}) if graded.unsafe else score

    def row_seconds(self, problem: Graded) -> float:
        """Return the seconds allowed for the tests of a problem: every run at its limit, and the time of the sandboxes."""
        tests = problem.fields.get("tests", problem.fields.get("test_list"))
        count = (
            len(tests) if isinstance(tests, Sequence) and not isinstance(tests, str) else str(tests).count('"input"')
        )
        return (2 * self.seconds + 3) * (count + 3)

    def _limits(self) -> Limits:
        return Limits(cpu_seconds=self.seconds, wall_seconds=2 * self.seconds, memory_bytes=self.memory_mb << 20)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
