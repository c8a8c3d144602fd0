"""Walk over a component and the components inside it: the one place that defines how components hold each other.

A component may hold others in its fields, alone or in tuples, lists and mappings, to any depth. What the training loop does
for a component it does for every one that this walk finds: prepare it, read what it declares, save and restore its state. A
component therefore forwards nothing to those that it holds.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

Component = Any
"""A callable whose arguments depend on its place in the method (see `Method`). It may have `state_dict` and `load_state_dict`,
declare what it reads (`wants`, `columns`, `policies`, `unit`), and have `prepare(context)`, run once before the first step."""


@runtime_checkable
class Stateful(Protocol):
    """A component with state that checkpoints save and restore."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers, strings, lists and dicts of these."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        ...


def walk(component: Any, place: str = "") -> Iterator[tuple[str, Component]]:
    """Yield (place, component) for a component and all inside it: inner before outer, in the order of the fields, each object once.

    `place` is the component's location; one that it holds in the field `plan` is at `place.plan`, the second of a tuple
    `transforms` at `place.transforms.1`. A component is a dataclass instance, a callable or a `Stateful` object. Only dataclasses
    are looked into, and of these only fields that the constructor takes: the others are memory. Functions are leaves.
    """
    yield from _walk(component, place, set())


def _walk(value: Any, place: str, seen: set[int]) -> Iterator[tuple[str, Component]]:
    # Most values are settings, and the check of a protocol is slow: settings are recognised first.
    if value is None or isinstance(value, (str, int, float, type)) or id(value) in seen:
        return
    items: Any = ()
    container = isinstance(value, Mapping | tuple | list)
    if container:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
    elif dataclasses.is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init]
    elif not (callable(value) or isinstance(value, Stateful)):
        return
    seen.add(id(value))
    for name, inner in items:
        yield from _walk(inner, f"{place}.{name}" if place else str(name), seen)
    if not container:
        yield place, value


def declared(component: Any, name: str) -> frozenset[str]:
    """Return what a component and all inside it declare under `name`: 'wants', 'columns', 'policies'."""
    return frozenset().union(*(getattr(inner, name, None) or () for _, inner in walk(component)))


def prepare(component: Any, context: Any) -> None:
    """Run `prepare(context)` of a component and of all inside it, inner before outer; `context` is the run's `Context`."""
    for _, inner in walk(component):
        if hasattr(inner, "prepare"):
            inner.prepare(context)


def adapted(component: Any, **settings: Any) -> Any:
    """Return a component with some settings replaced that shares its memory, so that either may be called in its place."""
    other = copy.copy(component)
    for name, value in settings.items():
        object.__setattr__(other, name, value)
    return other


def states(components: Iterator[tuple[str, Component]]) -> dict[str, Stateful]:
    """Return the components with state, by place."""
    return {place: inner for place, inner in components if isinstance(inner, Stateful)}


def reads(
    *wants: str, columns: Sequence[str] = (), policies: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare the outputs of the policy, columns and named policies that a plain function reads."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.wants = frozenset(wants)  # type: ignore[attr-defined]
        function.columns = frozenset(columns)  # type: ignore[attr-defined]
        function.policies = frozenset(policies)  # type: ignore[attr-defined]
        return function

    return mark
