"""Components: frozen dataclasses whose ranges, choices and memory are declared beside the fields.

The vocabulary is that of `annotated_types`. The check is ours: attrs makes no dataclasses, of which `fields` and `replace` are used
everywhere; pydantic (156 ms to import) and beartype (110 ms; 1 is no float to it) report in texts of their own and refuse settings
that follow the run. Both also refuse names that a module imports for type checkers alone; here such a name lets everything pass.
"""

from __future__ import annotations

import builtins
import copy
import dataclasses
import inspect
import sys
import types
from collections.abc import Callable, Collection, Mapping
from functools import cache
from numbers import Integral, Real
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    overload,
)

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt

from vantage.core.errors import UserError, nearest

C = TypeVar("C", bound=type)
M = TypeVar("M")
Number = int | float


def above(low: Number) -> Gt:
    """Range of a number: above `low`. Combine it as in `Annotated[float, above(0), at_most(1)]`."""
    return Gt(low)


def at_least(low: Number) -> Ge:
    """Range of a number: `low` or more."""
    return Ge(low)


def below(high: Number) -> Lt:
    """Range of a number: below `high`."""
    return Lt(high)


def at_most(high: Number) -> Le:
    """Range of a number: `high` or less."""
    return Le(high)


def between(low: Number, high: Number) -> Interval:
    """Range of a number: `low` to `high`, both ends included."""
    return Interval(ge=low, le=high)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Choices that a collection holds; a `Literal` names them where they are few and fixed."""

    known: Collection[Any]


def one_of(known: Collection[Any]) -> OneOf:
    """Choices: the members (or keys) of `known`, as they are when a value is checked."""
    return OneOf(known)


def out_of_range(place: str, value: Any, allowed: str) -> UserError:
    """Build the error for a value that is out of its range; for conditions over several fields."""
    return UserError(f"{place}={value!r} is out of range: {allowed}")


def not_known(place: str, value: Any, known: Collection[Any]) -> UserError:
    """Build the error for a value that is none of the choices."""
    names = [str(name) for name in known]
    return UserError(f"{place}={value!r} is not known{nearest(str(value), names)} (known: {', '.join(names)})")


@overload
def memory(*, init: Literal[False] = False) -> dict[str, Any]: ...
@overload
def memory(default_factory: Callable[[], M], *, init: Literal[False] = False) -> M: ...
def memory(default_factory: Callable[[], Any] = dict, *, init: Literal[False] = False) -> Any:
    """Declare a field in which a component remembers from step to step; not a setting, not shown, not compared.

    Args:
        default_factory: makes its first value: a dictionary, or an object with `state_dict` and `load_state_dict`.
        init: always False, for type checkers.

    `dataclasses.replace` begins with an empty memory, `copy.deepcopy` with a copy.
    """
    return dataclasses.field(
        default_factory=default_factory, init=init, repr=False, compare=False, metadata={"memory": True}
    )


@overload
def component(cls: C, /) -> C: ...
@overload
def component(*, label: str) -> Callable[[C], C]: ...
@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, memory))
def component(cls: Any = None, /, *, label: str = "") -> Any:
    """Make a class a frozen dataclass whose fields are checked against their annotations when it is made.

    Checked are `int`, `float`, `bool`, `str`, `Literal[...]`, these with ranges (`Annotated[float, above(0)]`), or none,
    and tuples of them; every other annotation lets everything pass. A number may also be a callable: a setting that
    follows the run. A whole number is a float, True is no number, and NaN is out of every range. The class's own
    `__post_init__` runs afterwards, for conditions over several fields.

    A class with a field `memory()` gets `state_dict` and `load_state_dict`, unless it has them.

    Args:
        cls: the class.
        label: what errors call it; its name by default.

    Raises:
        UserError: when an instance is made with a value that does not fit; it names class, field, value and what fits.
    """
    if cls is None:
        return lambda made: _component(made, label)
    return _component(cls, label)


def _component(cls: Any, label: str) -> Any:
    own = cls.__dict__.get("__post_init__")
    if own is not None or not hasattr(cls, "__post_init__"):

        def checked(self: Any) -> None:
            check(self)
            if own is not None:
                own(self)

        cls.__post_init__ = checked
    cls.__label__ = label or cls.__name__
    made = dataclasses.dataclass(frozen=True)(cls)
    if any(f.metadata.get("memory") for f in dataclasses.fields(made)):
        for name, method in (("state_dict", state_of), ("load_state_dict", restore)):
            if not hasattr(made, name):
                setattr(made, name, method)
    return made


def check(self: Any) -> None:
    """Check the fields of a dataclass against their annotations, as `component` says.

    Raises:
        UserError: a value does not fit.
    """
    made: Any = type(self)
    for name, place, fits in _checks(made):
        value = getattr(self, name)
        if not fits.right(value):
            raise fits.explain(place, value)


def check_value(place: str, value: Any, annotation: Any) -> None:
    """Check one value, as a field of a component is checked: `check_value("train.steps", 0, Annotated[int, at_least(1)])`.

    Raises:
        UserError: the value does not fit.
    """
    fits = _compile(annotation)
    if fits is not None and not fits.right(value):
        raise fits.explain(place, value)


def state_of(self: Any) -> dict[str, Any]:
    """Return what a component remembers, tensors copied: the content of its memory; of several, by name."""
    fields = _memories(self)
    if len(fields) == 1:
        state: dict[str, Any] = _saved(getattr(self, fields[0]))
        return state
    return {name.strip("_"): _saved(getattr(self, name)) for name in fields}


def restore(self: Any, state: Mapping[str, Any]) -> None:
    """Restore what `state_of` returned; objects with `load_state_dict` that the memory holds already are loaded in place."""
    fields = _memories(self)
    for name in fields:
        part = state if len(fields) == 1 else state[name.strip("_")]
        object.__setattr__(self, name, _restored(getattr(self, name), part))


def _memories(self: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(self) if f.metadata.get("memory")]


def _saved(value: Any) -> Any:
    if hasattr(value, "state_dict"):
        return value.state_dict()
    if hasattr(value, "detach"):
        return value.detach().clone()
    if type(value) is dict:
        return {key: _saved(held) for key, held in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_saved(held) for held in value)
    return copy.deepcopy(value)


def _restored(held: Any, state: Any) -> Any:
    if hasattr(held, "load_state_dict"):
        held.load_state_dict(state)
        return held
    if type(held) is dict:
        found = {key: _restored(held.get(key), value) for key, value in state.items()}
        held.clear()
        held.update(found)
        return held
    return _saved(state)


class _Check(NamedTuple):
    """How values of one annotation are checked."""

    noun: str
    fits: Callable[[Any], bool]  # whether the value is of the kind
    right: Callable[[Any], bool]  # whether it is of the kind and in its range
    explain: Callable[[str, Any], UserError]  # the error of one that is not right


@cache
def _checks(cls: type) -> tuple[tuple[str, str, _Check], ...]:
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        names = _Names(vars(sys.modules.get(base.__module__, types)))
        for name, hint in inspect.get_annotations(base).items():
            hints[name] = eval(hint, {}, names) if isinstance(hint, str) else hint
    label = cls.__dict__.get("__label__", cls.__name__)
    found = ((f.name, _compile(hints[f.name])) for f in dataclasses.fields(cls) if f.init)
    return tuple((name, f"{label}.{name}", one) for name, one in found if one is not None)


class _Elsewhere(type):
    """Stands for a name that is imported for type checkers alone, whatever is done with it in an annotation."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, key: Any) -> Any:
        return cls


class _Anything(metaclass=_Elsewhere):
    pass


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, _Anything)


def _compile(hint: Any) -> _Check | None:
    """Return the check of an annotation, None where everything passes."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _ranged(_compile(arguments[0]), hint.__metadata__)
    if origin is Literal:
        return _literal(arguments)
    if origin is Union or origin is types.UnionType:
        return _union([_compile(one) for one in arguments])
    if origin is tuple and arguments:
        return _sequence(arguments)
    return _PLAIN.get(hint) if isinstance(hint, type) else None


def _kind(noun: str, fits: Callable[[Any], bool]) -> _Check:
    return _Check(noun, fits, fits, lambda place, value: UserError(f"{place}={value!r} is not {noun}"))


_PLAIN = {
    bool: _kind("true or false", lambda value: isinstance(value, bool)),
    int: _kind("a whole number", lambda v: (isinstance(v, Integral) and not isinstance(v, bool)) or callable(v)),
    float: _kind("a number", lambda v: (isinstance(v, Real) and not isinstance(v, bool)) or callable(v)),
    str: _kind("text", lambda value: isinstance(value, str)),
    type(None): _kind("none", lambda value: value is None),
}


def _ranged(inner: _Check | None, metadata: tuple[Any, ...]) -> _Check | None:
    """Add to the check of a kind the ranges or choices that stand beside it."""
    marks = [part for mark in metadata for part in (mark if isinstance(mark, GroupedMetadata) else (mark,))]
    known = next((mark.known for mark in marks if isinstance(mark, OneOf)), None)
    tests = [test for mark in marks if (test := _test(mark)) is not None]
    if inner is None or (known is None and not tests):
        return inner
    text = _range_text(marks)

    def right(value: Any) -> bool:
        if not inner.right(value):
            return False
        if known is not None:
            return value in known
        if not callable(value):
            for test in tests:
                if not test(value):
                    return False
        return True

    def explain(place: str, value: Any) -> UserError:
        if not inner.right(value):
            return inner.explain(place, value)
        return not_known(place, value, known) if known is not None else out_of_range(place, value, text)

    return _Check(inner.noun, inner.fits, right, explain)


def _test(mark: Any) -> Callable[[Any], bool] | None:
    # Each is false of NaN.
    match mark:
        case Gt(gt=low):
            return lambda value: value > low
        case Ge(ge=low):
            return lambda value: value >= low
        case Lt(lt=high):
            return lambda value: value < high
        case Le(le=high):
            return lambda value: value <= high
    return None


def _range_text(marks: list[Any]) -> str:
    match marks:
        case [Ge(ge=low), Le(le=high)]:
            return f"{low} to {high}"
    words = {Gt: "above", Ge: "at least", Lt: "below", Le: "at most"}
    return ", ".join(f"{words[type(mark)]} {dataclasses.astuple(mark)[0]}" for mark in marks if type(mark) in words)


def _literal(known: tuple[Any, ...]) -> _Check:
    kinds = {type(one) for one in known}
    pairs = {(type(one), one) for one in known}  # True is not 1

    def right(value: Any) -> bool:
        return type(value) in kinds and (type(value), value) in pairs

    noun = f"one of {', '.join(map(str, known))}"
    return _Check(noun, lambda value: type(value) in kinds, right, lambda place, value: not_known(place, value, known))


def _union(members: list[_Check | None]) -> _Check | None:
    checks = [one for one in members if one is not None]
    if not checks:
        return None
    anything = len(checks) < len(members)
    noun = " or ".join(one.noun for one in checks)
    none = ", or none" if _PLAIN[type(None)] in checks else ""

    def fits(value: Any) -> bool:
        return anything or any(one.fits(value) for one in checks)

    def right(value: Any) -> bool:
        return any(one.right(value) for one in checks) or (anything and not any(one.fits(value) for one in checks))

    def explain(place: str, value: Any) -> UserError:
        for one in checks:
            if one.fits(value):
                return UserError(f"{one.explain(place, value)}{none}")
        return UserError(f"{place}={value!r} is not {noun}")

    return _Check(noun, fits, right, explain)


def _sequence(arguments: tuple[Any, ...]) -> _Check | None:
    """Check tuples (or lists) of one kind, or of one kind a place."""
    same = len(arguments) == 2 and arguments[1] is Ellipsis
    inner = [_compile(one) for one in (arguments[:1] if same else arguments)]
    noun = "a list" if same else f"a list of {len(inner)}"

    def fits(value: Any) -> bool:
        return isinstance(value, tuple | list) and (same or len(value) == len(inner))

    def wrong(value: Any) -> int | None:
        for place, held in enumerate(value):
            one = inner[0 if same else place]
            if one is not None and not one.right(held):
                return place
        return None

    def explain(place: str, value: Any) -> UserError:
        if not fits(value):
            return UserError(f"{place}={value!r} is not {noun}")
        index = wrong(value)
        assert index is not None
        one = inner[0 if same else index]
        assert one is not None
        return one.explain(f"{place}[{index}]", value[index])

    return _Check(noun, fits, lambda value: fits(value) and wrong(value) is None, explain)
