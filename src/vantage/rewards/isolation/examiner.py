"""Process of the tests: runs tests that call functions of a program in another process. Standard library alone.

The program's process receives the arguments of calls and nothing else, and its results are rebuilt here from plain values. An
object of one of its own classes is represented by a proxy, whose methods are called in the program's process, and which is
equal only to itself.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys

from .values import NotPlainError, build, describe, from_text, to_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class UnsendableError(TypeError):
    """A test passes the program an argument that cannot be sent to another process, such as a function."""


class GoneError(BaseException):
    """The program has ended."""


class Remote:
    """Proxy of an object, or of a function (`target` None), of the program."""

    def __init__(self, target: Any, name: str = "") -> None:
        self.__dict__.update(_target=target, _name=name)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Call it in the program's process; lists, dictionaries and sets that it changed are changed here too."""
        target, name = (None, self._name) if self._target is None else (self._target, "__call__")
        return _call(target, name, args, keywords)

    def __getattr__(self, name: str) -> Any:
        """Return a plain attribute, or a proxy of it."""
        if self._target is None:
            raise AttributeError(name)
        return _answer(("get", self._target, name))

    def __iter__(self) -> Iterator[Any]:
        """Iterate over it."""
        return iter(_call(self._target, "__iter__", (), {}))

    def __len__(self) -> int:
        """Return its length."""
        return int(_call(self._target, "__len__", (), {}))

    def __getitem__(self, key: Any) -> Any:
        """Return an item."""
        return _call(self._target, "__getitem__", (key,), {})

    def __bool__(self) -> bool:
        """Return True, as of an object."""
        return True

    def __str__(self) -> str:
        """Return its text."""
        return str(_call(self._target, "__str__", (), {}))

    def __eq__(self, other: object) -> bool:
        """Return whether two objects of the program are equal by its own `==`; nothing else equals one."""
        if not isinstance(other, Remote):
            return False
        same = (self._target, self._name) == (other._target, other._name)
        return same or bool(self._target and other._target and _call(self._target, "__eq__", (other,), {}) is True)

    def __instancecheck__(self, instance: Any) -> bool:
        """Return whether an object of the program is an instance of this class of the program."""
        return isinstance(instance, Remote) and _call(None, "isinstance", (instance, self), {}) is True

    def __hash__(self) -> int:
        """Return a hash that is consistent with `==`."""
        return hash((self._target, self._name))


def _between(name: str) -> Any:
    def operate(self: Remote, other: Any) -> Any:
        """Return the program's result of the operation on two of its own objects."""
        return _call(self._target, name, (other,), {}) if isinstance(other, Remote) and self._target else NotImplemented

    return operate


# Not with a plain value: an object whose difference to any number is 0 would be within any tolerance of it.
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _between(f"__{_name}__"))

_asked: Any = None
_answers: Any = None


def _remote(described: Any) -> Any:
    match described:
        case ("object", int()):
            return Remote(described)
    raise NotPlainError("no description")


def _sent(value: Any) -> Any:
    def other(one: Any) -> Any:
        if isinstance(one, Remote):
            return one._target or ("name", one._name)
        raise UnsendableError(f"a {type(one).__name__} cannot be sent to the program")

    return describe(value, other)


def _ask(request: Any) -> Any:
    try:
        _asked.write(to_text(request) + "\n")
        _asked.flush()
        line = _answers.readline()
    except OSError:
        line = ""
    if not line:
        raise GoneError
    return from_text(line)


def _answer(request: Any, given: tuple[Any, ...] = ()) -> Any:
    match _ask(request):
        case ("value", described):
            return build(described, _remote)
        case ("value", described, list(after)):
            for mine, theirs in zip(given, after):
                _adopt(mine, build(theirs, _remote))
            return build(described, _remote)
        case ("raise", str(kind), str(text)):
            error = getattr(builtins, kind, Exception)
            raise error(text) if isinstance(error, type) and issubclass(error, Exception) else Exception(text)
    raise NotPlainError("the program gave no answer")


def _adopt(mine: Any, theirs: Any) -> None:
    """Update a container argument to its state after the call in the program."""
    if type(mine) is not type(theirs):
        return
    if isinstance(mine, list | bytearray):
        mine[:] = theirs
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(theirs)


def _call(target: Any, name: str, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    sent = [_sent(one) for one in args]
    return _answer(("call", target, name, sent, [(key, _sent(one)) for key, one in keywords.items()]), args)


def _unbound(tree: ast.AST) -> list[str]:
    """Return the names that a test reads and does not define."""
    read, bound = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                read.append(node.id)
            else:
                bound.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return [name for name in dict.fromkeys(read) if name not in bound]


def examine(tests: list[str], mark: str) -> None:
    """Run tests in order, in one namespace; write a line to standard error for each: mark, then yes, no or unsendable."""
    global _asked, _answers
    _asked, _answers = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0), "r")
    verdicts = os.fdopen(os.dup(2), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    space: dict[str, Any] = {"__name__": "tests"}
    trees = [ast.parse(text) for text in tests]
    wanted = [
        name for name in _unbound(ast.Module([s for tree in trees for s in tree.body], type_ignores=[])) if name != "_"
    ]
    own = [name for name in wanted if not hasattr(builtins, name)]
    for name in own or wanted:
        _look_up(name, space)
    for text in tests:
        try:
            exec(compile(text, "test.py", "exec", dont_inherit=True), space)
            verdict = "yes"
        except UnsendableError:
            verdict = "unsendable"
        except GoneError:
            verdict = "no"
        except (Exception, SystemExit):
            verdict = "no"
        verdicts.write(f"{mark}{verdict}\n")
        verdicts.flush()


def _look_up(name: str, space: dict[str, Any]) -> None:
    """Add the program's object of this name to the tests' namespace, if there is one."""
    match _ask(("see", name)):
        case ("value", ("object", int())):
            space[name] = Remote(None, name)
        case ("value", described):
            space[name] = build(described, _remote)
        case ("module", str(module)) if module.partition(".")[0] in sys.stdlib_module_names:
            space[name] = __import__(module, fromlist=["_"])
        case ("class", str(module), str(path)) if (
            module.partition(".")[0] in sys.stdlib_module_names and "." not in path
        ):
            space[name] = getattr(__import__(module, fromlist=["_"]), path)
