"""Shapes and types of tensor arguments, checked at the door of every function of this package."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from vantage.core.errors import ShapeError

F = TypeVar("F", bound=Callable[..., Any])

_KINDS: dict[str, tuple[str, Callable[[torch.dtype], bool]]] = {
    "float": ("a floating type", lambda dtype: dtype.is_floating_point),
    "bool": ("bool", lambda dtype: dtype == torch.bool),
    "int": ("an integer type", lambda dtype: not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)),
}


def checked(**expected: str) -> Callable[[F], F]:
    """Decorate a function so that its tensor arguments are checked before it runs.

    An expectation names the dimensions in order, as in "N T" or "N 1", and may begin with `float`, `bool` or `int`. A name
    stands for the same size wherever the function's expectations use it, a number for that size; "..." for any dimensions, the
    same ones wherever it stands (at the front only). Arguments that are None or a Python number are not checked.

        @checked(values="float N T", mask="bool N T")
        def masked_mean(values: Tensor, mask: Tensor) -> Tensor: ...

    Raises:
        ShapeError: when the decorated function is called with something else; names function, argument, shape found and expected.
    """

    def decorate(function: F) -> F:
        parameters = list(inspect.signature(function).parameters)
        plan = []
        for name, text in expected.items():
            words = text.split()
            kind = words.pop(0) if words[0] in _KINDS else None
            rest = words[:1] == ["..."]
            sizes = tuple(int(word) if word.isdigit() else word for word in words[rest:])
            test = None if kind is None else _KINDS[kind][1]
            plan.append((parameters.index(name), name, test, rest, sizes, len(sizes), text))

        @functools.wraps(function)
        def called(*arguments: Any, **named: Any) -> Any:
            known: dict[Any, Any] = {}
            given = len(arguments)
            for place, name, test, rest, sizes, rank, text in plan:
                value = arguments[place] if place < given else named.get(name)
                if value is None or type(value) is float or type(value) is int:
                    continue
                if not isinstance(value, Tensor):
                    raise _wrong(function, name, text, value, known)
                shape = value.shape
                if (test is not None and not test(value.dtype)) or (len(shape) < rank if rest else len(shape) != rank):
                    raise _wrong(function, name, text, value, known)
                if rest:
                    split = len(shape) - rank
                    front = shape[:split]
                    if known.setdefault("...", front) != front:
                        raise _wrong(function, name, text, value, known)
                    shape = shape[split:]
                for size, found in zip(sizes, shape):
                    if (size if type(size) is int else known.setdefault(size, found)) != found:
                        raise _wrong(function, name, text, value, known)
            return function(*arguments, **named)

        return called  # type: ignore[return-value]

    return decorate


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
