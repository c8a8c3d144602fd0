"""A method: the names of its components and nothing else."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from vantage.core.averaging import canonical
from vantage.core.errors import UserError, nearest
from vantage.core.walk import Component, declared, walk

M = TypeVar("M")

_SEQUENCES = ("rewards", "selection", "regularizers", "controllers")
_HIDDEN = ("name", "parent", "settings")


@dataclass(frozen=True)
class Method:
    """The parts of a method, in the order in which a batch meets them.

    Attributes:
        prompts: `(count, context) -> Prompts`: which prompts or initial states come next.
        rollout: `(context) -> Trajectories`: how decisions are gathered.
        rewards: `(batch, context) -> Trajectories` each: shape and mix the named rewards into `score` and `reward`.
        values: `(batch, context) -> Trajectories`: fill `value` and `next_value`; its `loss` or `fit`, where it has
            one, teaches the critic. None for a method without critic.
        advantage: `(batch, context) -> Tensor | Trajectories`: credit, [N, T] or [N]; no gradient.
        selection: `(batch, context) -> Trajectories` each: what is learnt from; may drop rows, mask or weigh.
        objective: `(evaluation, batch, context) -> Tensor`: the loss, [N, T] per decision, [N] per row, [M] per
            value of the column that it names as its `key`, or a scalar; to be minimised.
        averaging: how a loss per decision is averaged; a name known to `vantage.core.averaging`, or a function.
        regularizers: as the objective; each adds a term to the loss.
        controllers: `(context) -> None` each, run after every step: coefficients, schedules, events. One with
            `every = "minibatch"` runs after each optimiser step.
        update: `(batch, context) -> None`: changes the policy.
    """

    prompts: Component
    rollout: Component
    rewards: tuple[Component, ...]
    values: Component | None
    advantage: Component
    objective: Component
    update: Component
    selection: tuple[Component, ...] = ()
    averaging: str | Component = "token-mean"
    regularizers: tuple[Component, ...] = ()
    controllers: tuple[Component, ...] = ()
    name: str = field(default="", compare=False)
    parent: Method | None = field(default=None, compare=False, repr=False)
    settings: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    """The settings by which `name` composes this method again; None when it was composed by hand."""

    def __post_init__(self) -> None:
        for key in _SEQUENCES:
            given = getattr(self, key)
            if given is None:
                given = ()
            if not isinstance(given, tuple | list):
                given = (given,)
            object.__setattr__(self, key, tuple(given))
        if isinstance(self.averaging, str):
            object.__setattr__(self, "averaging", canonical(self.averaging))

    def replace(self, **parts: Any) -> Method:
        """Return this method with some parts replaced; a single part stands for a tuple of one.

        Raises:
            UserError: a name is none of the parts.
        """
        known = [f.name for f in fields(self) if f.name not in _HIDDEN[1:]]
        for name in parts:
            if name not in known:
                raise UserError(f"a method has no part {name!r}{nearest(name, known)} (parts: {', '.join(known)})")
        parts.setdefault("parent", self if self.name and parts.get("name") != self.name else self.parent)
        parts.setdefault("name", "")
        parts.setdefault("settings", None)
        return dataclasses.replace(self, **parts)

    def adapt(self, part: str, **settings: Any) -> Method:
        """Return this method with some settings of one part replaced, the part's other settings kept."""
        return self.replace(**{part: dataclasses.replace(getattr(self, part), **settings)})

    def components(self) -> Iterator[tuple[str, Component]]:
        """Yield every component with its place, inner ones first: ('rewards.0', ..), ('rollout.plan', ..), ('rollout', ..)."""
        return walk({place: getattr(self, place) for place in PLACES})

    def declared(self, name: str) -> frozenset[str]:
        """Union of what the components declare under `name`: 'wants', 'columns' or 'policies'."""
        return declared([getattr(self, place) for place in PLACES], name)

    @property
    def policy_options(self) -> dict[str, Any]:
        """What the components ask of a policy that is made for them: the pairs (name, value) that they declare as `policy_options`.

        Raises:
            UserError: two components ask for different things.
        """
        found: dict[str, Any] = {}
        for place, component in self.components():
            for name, value in sorted(getattr(component, "policy_options", ())):
                if found.setdefault(name, value) != value:
                    raise UserError(
                        f"{place} asks for a policy with {name}={value!r}, another component for {found[name]!r}"
                    )
        return found

    def policy_for(self, task: Any, *, model: str = "", seed: int = 0) -> Any:
        """Return the policy that a task makes for this method.

        Raises:
            UserError: the method asks for a kind of policy that the task does not make.
        """
        options = self.policy_options
        known = inspect.signature(task.make_policy).parameters if options else {}
        if not set(options) <= set(known) and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            asked = ", ".join(f"{name}={value}" for name, value in options.items())
            raise UserError(
                f"{self.name or 'the method'} needs a policy with {asked}, which the task {task.name!r} cannot make"
            )
        return task.make_policy(model=model, seed=seed, **options)

    @property
    def wants(self) -> frozenset[str]:
        """What the policy is asked for in each evaluation of the loss."""
        return frozenset({"logp"}) | declared((self.objective, self.regularizers, self.values, self.update), "wants")


def describe(part: Any) -> str:
    """Return a part as text that shows its settings: `Clip(low=0.2, high=0.28)`."""
    if part is None:
        return "none"
    if isinstance(part, str):
        return part
    if isinstance(part, tuple | list):
        return ", ".join(describe(inner) for inner in part) or "none"
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        shown = []
        for f in fields(part):
            if not f.repr:
                continue
            value = getattr(part, f.name)
            nested = dataclasses.is_dataclass(value) or isinstance(value, tuple | list)
            shown.append(f"{f.name}={describe(value) if nested else _plain(value)}")
        return f"{type(part).__name__}({', '.join(shown)})"
    return _plain(part)


def _plain(value: Any) -> str:
    if isinstance(value, Callable) and hasattr(value, "__name__"):  # type: ignore[arg-type]
        return str(value.__name__)
    return repr(value)


PLACES = tuple(f.name for f in fields(Method) if f.name not in _HIDDEN)
"""The places of a method, in the order of its fields."""


def differences(method: Method, other: Method) -> dict[str, tuple[str, str]]:
    """Return the parts in which two methods differ: place -> (in `method`, in `other`), as text."""
    return {
        place: (describe(getattr(method, place)), describe(getattr(other, place)))
        for place in PLACES
        if describe(getattr(method, place)) != describe(getattr(other, place))
    }


def configure(method: M, path: str, value: Any) -> M:
    """Return a method (or any frozen dataclass) with one setting changed: `configure(m, "update.optimizer.lr", 1e-4)`.

    A number stands for a place in a tuple of parts: `regularizers.0.coefficient`.

    Raises:
        UserError: the path names no part or setting; the message lists what there is.
    """
    changed: M = _set(method, path.split("."), value, path)
    return changed


def _set(holder: Any, keys: list[str], value: Any, path: str) -> Any:
    key, rest = keys[0], keys[1:]
    if isinstance(holder, tuple):
        if not key.isdigit() or int(key) >= len(holder):
            raise UserError(
                f"setting {path!r}: {key!r} is no place in a tuple of {len(holder)} parts (0 to {len(holder) - 1})"
            )
        index = int(key)
        changed = _set(holder[index], rest, value, path) if rest else value
        return (*holder[:index], changed, *holder[index + 1 :])
    if not dataclasses.is_dataclass(holder):
        raise UserError(f"setting {path!r}: {describe(holder)} has no settings")
    known = [f.name for f in fields(holder) if f.init and f.name not in _HIDDEN]
    if key not in known:
        raise UserError(
            f"setting {path!r}: {type(holder).__name__} has no {key!r}{nearest(key, known)} (it has: {', '.join(known) or 'none'})"
        )
    current = getattr(holder, key)
    new = _set(current, rest, value, path) if rest else _coerce(value, current, path)
    if isinstance(holder, Method):
        return holder.replace(**{key: new})
    try:
        return dataclasses.replace(holder, **{key: new})  # type: ignore[type-var]
    except UserError as error:
        raise UserError(f"setting {path!r}: {error}") from error


def _coerce(value: Any, current: Any, path: str) -> Any:
    """Fit a value given as text or a number to the kind of the present one."""
    if isinstance(current, bool) and not isinstance(value, bool):
        raise UserError(f"setting {path!r} is true or false, not {value!r}")
    if isinstance(current, int) and not isinstance(current, bool):
        if isinstance(value, float) and value == int(value):
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"setting {path!r} is a whole number, not {value!r}")
    if isinstance(current, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"setting {path!r} is a number, not {value!r}")
        return float(value)
    if isinstance(current, tuple) and isinstance(value, list):
        return tuple(value)
    return value
