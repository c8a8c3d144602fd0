"""Process of the program: runs it, then calls its functions as the tests' process requests. Standard library alone.

The tests' process trusts nothing here: it receives the result of a call as a description of plain values.
"""

from __future__ import annotations

import builtins
import os
import sys

from .values import NotPlainError, build, describe, from_text, to_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def serve(source: str) -> None:
    """Run the program and answer requests on the original standard input and output until they close."""
    asked, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    module = type(sys)("solution")
    sys.modules["solution"] = module
    objects: list[Any] = []

    def handle(value: Any) -> Any:
        objects.append(value)
        return ("object", len(objects) - 1)

    def held(described: Any) -> Any:
        match described:
            case ("object", int(number)) if 0 <= number < len(objects):
                return objects[number]
            case ("name", str(name)) if name in module.__dict__:
                return module.__dict__[name]
        raise NotPlainError("no such object")

    def seen(name: str) -> Any:
        if name not in module.__dict__:
            return ("missing",)
        value = module.__dict__[name]
        if isinstance(value, type(sys)):
            return ("module", value.__name__)
        if isinstance(value, type) and value.__module__ in sys.stdlib_module_names:
            return ("class", value.__module__, value.__qualname__)
        return ("value", describe(value, handle))

    def run(target: Any, name: str, args: Any, keywords: Any) -> Any:
        try:
            scope = {**builtins.__dict__, **module.__dict__}
            function = scope[name] if target is None else getattr(held(target), name)
            given = [build(one, held) for one in args]
            named = {key: build(one, held) for key, one in keywords}
            returned = function(*given, **named)
            return ("value", describe(returned, handle), [describe(one, handle) for one in given])
        except Exception as error:
            kinds = [one.__name__ for one in type(error).__mro__ if one.__module__ == "builtins"]
            return ("raise", kinds[0], builtins.str(error)[:2000])

    exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)
    for line in asked:
        match from_text(line):
            case ("see", str(name)):
                answer = seen(name)
            case ("call", target, str(name), list(args), list(keywords)):
                answer = run(target, name, args, keywords)
            case ("get", target, str(name)):
                try:
                    answer = ("value", describe(getattr(held(target), name), handle))
                except Exception as error:
                    answer = ("raise", type(error).__name__, builtins.str(error)[:2000])
            case _:
                answer = ("raise", "TypeError", "this cannot be asked")
        answers.write(to_text(answer) + "\n")
        answers.flush()
