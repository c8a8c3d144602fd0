"""Components: frozen dataclasses whose ranges, choices and memory are declared beside the fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, dataclass_transform, overload

from vantage.annotations import checks_of, compiled
from vantage.core.errors import UserError

C = TypeVar("C", bound=type)
M = TypeVar("M")
E = TypeVar("E")


@overload
def memory(*, init: Literal[False] = False) -> dict[str, Any]: ...
@overload
def memory(default_factory: Callable[[], M], *, init: Literal[False] = False) -> M: ...
def memory(default_factory: Callable[[], Any] = dict, *, init: Literal[False] = False) -> Any:
    """Declare a field for state that a component keeps between steps; not a setting, not shown, not compared.

    Args:
        default_factory: makes its initial value: a dictionary, or an object with `state_dict` and `load_state_dict`.
        init: always False, for type checkers.

    `dataclasses.replace` starts with an empty memory, `copy.deepcopy` with a copy. It holds tensors, numbers, texts, lists and
    dictionaries, and objects with `state_dict`, which `prepare` makes so that a checkpoint finds them.
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
    and tuples of them; other annotations are not checked. A number may also be a callable: a setting that
    changes during the run. A whole number is a float, True is no number, and NaN is out of every range. The class's own
    `__post_init__` runs afterwards, for conditions over several fields.

    A class with a field `memory()` gets `state_dict` and `load_state_dict`, unless it has them.

    Args:
        cls: the class.
        label: what errors call it, as in `task flow2d: radius=0 is out of range: above 0`; the class by default.

    Raises:
        UserError: when an instance is made with a value that does not fit; it names class, field, value and what fits.
    """
    if cls is None:
        return lambda made: _component(made, label)
    return _component(cls, label)


def _component(cls: Any, label: str) -> Any:
    after = getattr(cls, "__post_init__", None)  # its own, or that of a plain dataclass which it extends
    if not hasattr(after, "checks_first"):

        def checked(self: Any) -> None:
            check(self)
            if after is not None:
                after(self)

        checked.checks_first = True  # type: ignore[attr-defined]
        cls.__post_init__ = checked
    cls.__place__ = f"{label}: " if label else f"{cls.__name__}."
    made = dataclasses.dataclass(frozen=True)(cls)
    if any(f.metadata.get("memory") for f in dataclasses.fields(made)):
        for name, method in (("state_dict", state_of), ("load_state_dict", restore)):
            if not hasattr(made, name):
                setattr(made, name, method)
    return made


def extended(held: Any, kind: type[E], **settings: Any) -> E:
    """Return a component of a class that extends that of `held`, with the settings of `held` and those given."""
    kept = {f.name: getattr(held, f.name) for f in dataclasses.fields(held) if f.init}
    return kind(**{**kept, **settings})


def check(self: Any) -> None:
    """Check the fields of a dataclass against their annotations, as `component` says.

    Raises:
        UserError: a value does not fit.
    """
    made: Any = type(self)
    for name, place, fits in checks_of(made):
        problem = fits.wrong(place, getattr(self, name))
        if problem is not None:
            raise UserError(problem)


def check_value(place: str, value: Any, annotation: Any) -> None:
    """Check one value, as a field of a component is checked: `check_value("train.steps", 0, Annotated[int, at_least(1)])`.

    Raises:
        UserError: the value does not fit.
    """
    fits = compiled(annotation)
    problem = fits.wrong(place, value) if fits is not None else None
    if problem is not None:
        raise UserError(problem)


def state_of(self: Any) -> dict[str, Any]:
    """Return the state of a component, tensors copied: the content of its memory field; of several fields, by name."""
    fields = _memories(self)
    if len(fields) == 1:
        state: dict[str, Any] = _saved(getattr(self, fields[0]))
        return state
    return {name.strip("_"): _saved(getattr(self, name)) for name in fields}


def restore(self: Any, state: Mapping[str, Any]) -> None:
    """Restore what `state_of` returned; objects with `load_state_dict` that are already in memory are loaded in place."""
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
    if value is not None and type(value) not in (bool, int, float, str):
        raise TypeError(
            f"a checkpoint cannot hold a {type(value).__name__}: define `state_dict` on it, or on the component"
        )
    return value


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
