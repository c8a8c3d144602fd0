"""Shapes and types of tensor arguments, checked on entry of every function of this package."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from vantage.core.errors import ShapeError

F = TypeVar("F", bound=Callable[..., Any])

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
_KINDS: dict[str, tuple[str, frozenset[torch.dtype]]] = {
    "float": ("a floating type", _FLOATS),
    "bool": ("bool", frozenset({torch.bool})),
    "int": ("an integer type", _INTEGERS),
}


def checked(**expected: str) -> Callable[[F], F]:
    """Decorate a function so that its tensor arguments are checked before it runs.

    An expectation names the dimensions in order, as in "N T" or "N 1", and may begin with `float`, `bool` or `int`. A name
    denotes the same size in all of the function's expectations, a number for that size; "..." for any dimensions, the
    same ones in all expectations (at the front only). Arguments that are None or a Python number are not checked.

        @checked(values="float N T", mask="bool N T")
        def masked_mean(values: Tensor, mask: Tensor) -> Tensor: ...

    Raises:
        ShapeError: when the decorated function is called with other arguments; names function, argument, shape found and expected.
    """

    def decorate(function: F) -> F:
        parameters = list(inspect.signature(function).parameters)
        plan = []
        for name, text in expected.items():
            words = text.split()
            types = _KINDS[words.pop(0)][1] if words[0] in _KINDS else None
            plan.append((parameters.index(name), name, types, " ".join(words), text))
        dimensions = {words: _dimensions(words) for *_, words, _ in plan}

        @functools.wraps(function)
        def called(*arguments: Any, **named: Any) -> Any:
            known: dict[Any, Any] = {}
            given = len(arguments)
            right, fitting = "", None
            for place, name, types, words, text in plan:
                value = arguments[place] if place < given else named.get(name)
                if not isinstance(value, Tensor):
                    if value is None or type(value) is float or type(value) is int:
                        continue
                    raise _wrong(function, name, text, value, known)
                if types is not None and value.dtype not in types:
                    raise _wrong(function, name, text, value, known)
                shape = value.shape
                if shape == fitting and words == right:  # as most arguments are to the one before
                    continue
                right, fitting = words, shape
                rest, sizes = dimensions[words]
                if rest:
                    split = len(shape) - len(sizes)
                    if split < 0 or known.setdefault("...", shape[:split]) != shape[:split]:
                        raise _wrong(function, name, text, value, known)
                    shape = shape[split:]
                elif len(shape) != len(sizes):
                    raise _wrong(function, name, text, value, known)
                for size, found in zip(sizes, shape):
                    if (size if type(size) is int else known.setdefault(size, found)) != found:
                        raise _wrong(function, name, text, value, known)
            return function(*arguments, **named)

        return called  # type: ignore[return-value]

    return decorate


def _dimensions(words: str) -> tuple[bool, tuple[int | str, ...]]:
    """Return whether an expectation begins with "...", and the names and sizes of the other dimensions."""
    named = words.split()
    rest = named[:1] == ["..."]
    return rest, tuple(int(word) if word.isdigit() else word for word in named[rest:])


def _wrong(function: Callable[..., Any], name: str, text: str, value: Any, known: dict[Any, Any]) -> ShapeError:
    words = text.split()
    kind = _KINDS[words.pop(0)][0] if words[0] in _KINDS else "a tensor"
    found = f"{list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    bound = ", ".join(f"{k} = {list(v) if isinstance(v, torch.Size) else v}" for k, v in known.items() if k in words)
    where = f" with {bound}" if bound else ""
    return ShapeError(
        f"{function.__module__.removeprefix('vantage.')}.{function.__qualname__}: argument {name!r} is {found}; "
        f"expected [{', '.join(words)}] of {kind}{where}"
    )
