"""Method: the components of a policy optimisation method, by place."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from vantage.core.averaging import canonical
from vantage.core.errors import UserError, nearest
from vantage.core.walk import Component, declared, walk

_SEQUENCES = ("rewards", "selection", "regularizers", "controllers")
HIDDEN = ("name", "parent", "settings")
"""Fields of a method that are not components."""
UNITS = ("decision", "row", "group", "batch")
"""Units that a term of the loss may be computed on, the smallest first."""


@dataclass(frozen=True)
class Method:
    """The components of a method, in the order in which the training loop calls them.

    Attributes:
        prompts: `(count, context) -> Prompts`: the next prompts or initial states.
        rollout: `(context) -> Trajectories`: samples the rows.
        rewards: `(batch, context) -> Trajectories` each: shape and mix the named rewards into `score` and `reward`.
        values: `(batch, context) -> Trajectories`: fill `value` and `next_value`; its `loss` or `fit`, where it has
            one, trains the critic. None for a method without critic.
        advantage: `(batch, context) -> Tensor | Trajectories`: credit, [N, T] or [N]; no gradient.
        selection: `(batch, context) -> Trajectories` each: may drop, mask or weigh rows.
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
    """The settings by which `name` composes this method; None when it was composed by hand."""

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
        """Return this method with some components replaced; a single component is taken as a tuple of one.

        Raises:
            UserError: a name is not that of a component.
        """
        known = [f.name for f in fields(self) if f.name not in HIDDEN[1:]]
        for name in parts:
            if name not in known:
                raise UserError(
                    f"a method has no component {name!r}{nearest(name, known)} (components: {', '.join(known)})"
                )
        parts.setdefault("parent", self if self.name and parts.get("name") != self.name else self.parent)
        parts.setdefault("name", "")
        parts.setdefault("settings", None)
        return dataclasses.replace(self, **parts)

    def adapt(self, part: str, **settings: Any) -> Method:
        """Return this method with some settings of one component replaced."""
        return self.replace(**{part: dataclasses.replace(getattr(self, part), **settings)})

    def components(self) -> Iterator[tuple[str, Component]]:
        """Yield every component with its place, inner ones first: ('rewards.0', ..), ('rollout.plan', ..), ('rollout', ..)."""
        return walk({place: getattr(self, place) for place in PLACES})

    def declared(self, name: str) -> frozenset[str]:
        """Union of what the components declare under `name`: 'wants', 'columns' or 'policies'."""
        return declared([getattr(self, place) for place in PLACES], name)

    def asked(self, name: str) -> dict[str, Any]:
        """Return the options that the components request of the policy or engine: the pairs (option, value) declared under `name`.

        Raises:
            UserError: two components request different values.
        """
        found: dict[str, Any] = {}
        for place, component in self.components():
            for option, value in sorted(getattr(component, name, ())):
                if found.setdefault(option, value) != value:
                    raise UserError(
                        f"{name}: {place} asks for {option}={value!r}, another component for {found[option]!r}"
                    )
        return found

    @property
    def policy_options(self) -> dict[str, Any]:
        """Options that the components request of a policy that is made for them; see `asked`."""
        return self.asked("policy_options")

    def policy_for(self, task: Any, *, model: str = "", seed: int = 0) -> Any:
        """Return the policy that a task makes for this method.

        Raises:
            UserError: the method needs a kind of policy that the task does not make.
        """
        options = self.policy_options
        known = inspect.signature(task.make_policy).parameters if options else {}
        if not set(options) <= set(known) and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            asked = ", ".join(f"{name}={value}" for name, value in options.items())
            raise UserError(
                f"{self.name or 'the method'} needs a policy with {asked}, which the task {task.name!r} cannot make"
            )
        return task.make_policy(model=model, seed=seed, **options)

    def engine_for(self, task: Any, policy: Any, *, seed: int = 0) -> Any:
        """Return the engine that a task makes for this method, with those of its `engine_options` that the task's engine has."""
        known = inspect.signature(task.make_engine).parameters
        options = {name: value for name, value in self.asked("engine_options").items() if name in known}
        return task.make_engine(policy, seed=seed, **options)

    @cached_property
    def wants(self) -> frozenset[str]:
        """Outputs of the policy that the loss reads."""
        return frozenset({"logp"}) | declared((self.objective, self.regularizers, self.values, self.update), "wants")

    @cached_property
    def units(self) -> list[str]:
        """Units of the loss's terms, the smallest first: 'decision', 'row', 'group' or 'batch'."""
        terms = walk((self.objective, self.regularizers, self.values))
        return sorted({getattr(term, "unit", "decision") for _, term in terms}, key=UNITS.index)


PLACES = tuple(f.name for f in fields(Method) if f.name not in HIDDEN)
"""Component names of a method, in the order of its fields."""
