"""Components: ranges and choices read from the annotations, memory, and what dataclasses do with both."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import vantage.annotations
from vantage.core import (
    UserError,
    above,
    at_least,
    at_most,
    below,
    between,
    checked_by,
    component,
    hint,
    memory,
    not_empty,
    one_of,
)
from vantage.core.component import check_value
from vantage.core.errors import out_of_range
from vantage.methods.composition import configure, describe

if TYPE_CHECKING:
    from elsewhere import Schedule

SHAPES = {"ring": 1, "line": 2}


@component
class Settings:
    """One field of each kind."""

    low: Annotated[float, at_least(0)] = 0.2
    scale: Annotated[float, above(0)] = 1.0
    share: Annotated[float, between(0, 1)] = 0.5
    decay: Annotated[float, at_least(0), below(1)] = 0.9
    rate: Annotated[float, above(0), at_most(1)] = 1.0
    count: Annotated[int, at_least(1)] = 4
    bound: Annotated[float, above(1)] | None = None
    kind: Literal["sample", "group", "none"] = "group"
    bits: Literal[1, 8] = 8
    every: Annotated[int, at_least(1)] | Literal["auto"] = "auto"
    levels: tuple[Annotated[float, between(0, 1)], ...] = (0.25, 0.75)
    box: tuple[int, Annotated[float, above(0)]] = (1, 2.0)
    shape: Annotated[str, one_of(SHAPES)] = "ring"
    other: Annotated[str, one_of(SHAPES)] | Literal[""] = ""
    plain: float = 0.0
    on: bool = True
    name: str = ""
    follows: Annotated[float, above(0)] | Schedule = 1.0  # a name of the type checker alone
    judge: Callable[[Schedule], float] | None = None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": -1}, "Settings.low=-1 is out of range: at least 0"),
        ({"low": math.nan}, "Settings.low=nan is out of range: at least 0"),
        ({"low": -math.inf}, "Settings.low=-inf is out of range: at least 0"),
        ({"low": True}, "Settings.low=True is not a number"),
        ({"low": "0.2"}, "Settings.low='0.2' is not a number"),
        ({"low": None}, "Settings.low=None is not a number"),
        ({"scale": 0}, "Settings.scale=0 is out of range: above 0"),
        ({"share": 1.5}, "Settings.share=1.5 is out of range: 0 to 1"),
        ({"share": math.nan}, "Settings.share=nan is out of range: 0 to 1"),
        ({"decay": 1.0}, "Settings.decay=1.0 is out of range: at least 0, below 1"),
        ({"rate": 0.0}, "Settings.rate=0.0 is out of range: above 0, at most 1"),
        ({"rate": 1.1}, "Settings.rate=1.1 is out of range: above 0, at most 1"),
        ({"count": 0}, "Settings.count=0 is out of range: at least 1"),
        ({"count": 2.0}, "Settings.count=2.0 is not a whole number"),
        ({"count": True}, "Settings.count=True is not a whole number"),
        ({"bound": 1.0}, "Settings.bound=1.0 is out of range: above 1, or none"),
        ({"bound": "x"}, "Settings.bound='x' is not a number or none"),
        (
            {"kind": "gruop"},
            "Settings.kind='gruop' is not known; did you mean group? (known: sample, group, none)",
        ),
        ({"kind": None}, "Settings.kind=None is not known; did you mean none? (known: sample, group, none)"),
        ({"bits": True}, "Settings.bits=True is not known (known: 1, 8)"),
        ({"every": 0}, "Settings.every=0 is out of range: at least 1"),
        ({"every": "often"}, "Settings.every='often' is not known (known: auto)"),
        ({"every": 1.5}, "Settings.every=1.5 is not a whole number or one of auto"),
        ({"levels": (0.5, 2)}, "Settings.levels[1]=2 is out of range: 0 to 1"),
        ({"levels": 0.5}, "Settings.levels=0.5 is not a list"),
        ({"box": (1,)}, "Settings.box=(1,) is not a list of 2"),
        ({"box": (1, 0)}, "Settings.box[1]=0 is out of range: above 0"),
        ({"shape": "rign"}, "Settings.shape='rign' is not known; did you mean ring, line? (known: ring, line)"),
        ({"other": "disc"}, "Settings.other='disc' is not known (known: ring, line)"),
        ({"shape": 3}, "Settings.shape=3 is not text"),
        ({"plain": "x"}, "Settings.plain='x' is not a number"),
        ({"on": 1}, "Settings.on=1 is not true or false"),
        ({"name": 5}, "Settings.name=5 is not text"),
        ({"follows": 0.0}, "Settings.follows=0.0 is out of range: above 0"),
    ],
)
def test_values_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        Settings(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"low": 0},
        {"low": 3},
        {"low": math.inf},
        {"low": np.float32(0.5)},
        {"low": lambda context: 0.1},
        {"scale": 1e-30},
        {"share": 0},
        {"share": 1},
        {"decay": 0.999},
        {"rate": 1},
        {"count": 1},
        {"count": np.int64(3)},
        {"count": lambda context: 3},
        {"bound": 1.5},
        {"bound": None},
        {"kind": "none"},
        {"every": 3},
        {"every": "auto"},
        {"levels": ()},
        {"levels": [0, 1]},
        {"shape": "line"},
        {"plain": math.nan},
        {"follows": object()},
        {"judge": print},
        {"judge": 3},
    ],
)
def test_values_that_fit(settings: dict[str, Any]) -> None:
    (name, value), *_ = settings.items()
    assert getattr(Settings(**settings), name) is value


def test_choices_are_read_when_a_value_is_checked() -> None:
    SHAPES["disc"] = 3
    try:
        assert Settings(shape="disc").shape == "disc"
    finally:
        del SHAPES["disc"]
    with pytest.raises(UserError, match="known: ring, line"):
        Settings(shape="disc")


@component
class Bounds:
    low: Annotated[float, at_least(0)] = 0.1
    high: Annotated[float, at_least(0)] = 0.2

    def __post_init__(self) -> None:
        if self.high < self.low:
            raise out_of_range("Bounds.high", self.high, f"at least low={self.low}")


@component
class Narrow(Bounds):
    share: Annotated[float, between(0, 1)] = 1.0


@component
class Even(Bounds):
    steps: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps % 2:
            raise out_of_range("Even.steps", self.steps, "even")


def even(value: int) -> None:
    if value % 2:
        raise ValueError("an even number is needed")


@component
class Filled:
    names: Annotated[tuple[str, ...], not_empty]
    pairs: Annotated[Mapping[str, int], not_empty] = field(default_factory=lambda: {"a": 1})
    size: Annotated[int, at_least(0), checked_by(even)] = 0
    heat: Annotated[float, above(0), hint("for the best one set greedy=True")] = 1.0


@dataclass(frozen=True)
class Old:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size > 9:
            raise out_of_range("Old.size", self.size, "at most 9")


@component
class New(Old):
    more: Annotated[int, at_least(1)] = 1


@component(label="task flow")
class Flow:
    modes: Annotated[int, at_least(2)] = 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bounds(0.3, 0.2), "Bounds.high=0.2 is out of range: at least low=0.3"),
        # The checks come first, so that a condition over several fields meets numbers.
        (lambda: Bounds("a", 0.2), "Bounds.low='a' is not a number"),
        (lambda: Narrow(-1.0), "Narrow.low=-1.0 is out of range: at least 0"),
        (lambda: Narrow(0.3, 0.2), "Bounds.high=0.2 is out of range: at least low=0.3"),
        (lambda: Narrow(share=2.0), "Narrow.share=2.0 is out of range: 0 to 1"),
        (lambda: Even(0.3, 0.2), "Bounds.high=0.2 is out of range: at least low=0.3"),
        (lambda: Even(steps=3), "Even.steps=3 is out of range: even"),
        (lambda: Filled(()), "Filled.names is empty"),
        (lambda: Filled((1,)), "Filled.names[0]=1 is not text"),  # type: ignore[arg-type]
        (lambda: Filled(("a",), {}), "Filled.pairs is empty"),
        (lambda: Filled(("a",), size=-2), "Filled.size=-2 is out of range: at least 0"),
        (lambda: Filled(("a",), size=3), "Filled.size=3: an even number is needed"),
        (
            lambda: Filled(("a",), heat=0.0),
            "Filled.heat=0.0 is out of range: above 0; for the best one set greedy=True",
        ),
        (lambda: New(more=0), "New.more=0 is out of range: at least 1"),
        (lambda: New(10), "Old.size=10 is out of range: at most 9"),
        (lambda: Flow(1), "task flow: modes=1 is out of range: at least 2"),
        (lambda: check_value("steps", 0, Annotated[int, at_least(1)]), "steps=0 is out of range: at least 1"),
    ],
)
def test_conditions_of_a_class_inheritance_and_labels(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make()


def test_it_is_a_frozen_dataclass() -> None:
    one = Bounds(0.1, 0.3)
    assert [f.name for f in fields(one)] == ["low", "high"]
    assert one == Bounds(0.1, 0.3)
    assert hash(one) == hash(Bounds(0.1, 0.3))
    assert describe(one) == "Bounds(low=0.1, high=0.3)"
    assert replace(one, high=0.4) == Bounds(0.1, 0.4)
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(FrozenInstanceError):
        one.low = 1.0  # type: ignore[misc]
    with pytest.raises(UserError, match=r"^Bounds\.low=-1 is out of range: at least 0$"):
        replace(one, low=-1)


@component
class Wrapper:
    inner: Any
    others: tuple[Any, ...] = ()


def test_configure_names_the_whole_path() -> None:
    held = Wrapper(Wrapper(Bounds()), (Flow(),))
    assert configure(held, "inner.inner.high", 1).inner.inner == Bounds(0.1, 1.0)
    message = "setting 'inner.inner.low': Bounds.low=-1.0 is out of range: at least 0"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        configure(held, "inner.inner.low", -1)
    message = "setting 'others.0.modes': task flow: modes=1 is out of range: at least 2"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        configure(held, "others.0.modes", 1)


def test_the_annotations_of_a_class_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Settings()
    monkeypatch.setattr(vantage.annotations, "compiled", None)  # reading them anew would fail
    monkeypatch.setattr(vantage.annotations.inspect, "get_annotations", None)
    assert Settings() == Settings()


@component
class Mean:
    """Remembers the mean of what it saw, and an optimiser."""

    rate: Annotated[float, above(0), at_most(1)] = 0.5
    _memory: dict[str, Any] = memory()

    def see(self, value: Tensor) -> None:
        self._memory["mean"] = (1 - self.rate) * self._memory.get("mean", 0.0) + self.rate * value
        self._memory["seen"] = self._memory.get("seen", 0) + 1


def test_memory_is_saved_and_restored() -> None:
    one = Mean()
    one.see(torch.tensor(4.0, requires_grad=True))
    state = one.state_dict()  # type: ignore[attr-defined]
    assert state == {"mean": torch.tensor(2.0), "seen": 1}
    assert not state["mean"].requires_grad
    one.see(torch.tensor(8.0))
    assert one._memory["mean"] == 5.0
    assert state["mean"] == 2.0
    other = Mean()
    other._memory["stale"] = 1
    other.load_state_dict(state)  # type: ignore[attr-defined]
    assert other._memory == {"mean": torch.tensor(2.0), "seen": 1}
    other._memory["mean"].add_(1)
    assert state["mean"] == 2.0


def test_what_memory_holds_is_restored_in_place() -> None:
    def made() -> Mean:
        one = Mean()
        one._memory["optimizer"] = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
        return one

    one, other = made(), made()
    optimizer = one._memory["optimizer"]
    (weight,) = optimizer.param_groups[0]["params"]
    weight.sum().backward()
    optimizer.step()
    held = other._memory["optimizer"]
    other.load_state_dict(one.state_dict())  # type: ignore[attr-defined]
    assert other._memory["optimizer"] is held
    assert next(iter(held.state.values()))["momentum_buffer"] == 1.0


def test_what_a_checkpoint_cannot_hold_is_named_when_it_is_saved() -> None:
    one = Mean()
    one._memory["seen"] = {"nested": [1, "two", None, np.zeros(2)]}
    with pytest.raises(TypeError, match="a checkpoint cannot hold a ndarray"):
        one.state_dict()  # type: ignore[attr-defined]


class Queue:
    def __init__(self) -> None:
        self.items: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"items": list(self.items)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.items = list(state["items"])


@component
class Two:
    _queue: Queue = memory(Queue)
    _ready: list[int] = memory(list)


@component
class Own:
    _memory: dict[str, Any] = memory()

    def state_dict(self) -> dict[str, Any]:
        return {"mine": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._memory["mine"] = state["mine"]


def test_several_memories_stand_by_name_and_a_class_may_save_its_own() -> None:
    one = Two()
    one._queue.items.append(3)
    one._ready.append(7)
    state = one.state_dict()  # type: ignore[attr-defined]
    assert state == {"queue": {"items": [3]}, "ready": [7]}
    other = Two()
    queue = other._queue
    other.load_state_dict(state)  # type: ignore[attr-defined]
    assert other._queue is queue
    assert (queue.items, other._ready) == ([3], [7])
    assert Own().state_dict() == {"mine": 1}
    assert not hasattr(Bounds(), "state_dict")


def test_memory_is_no_setting() -> None:
    one = Mean()
    one.see(torch.ones(()))
    assert describe(one) == repr(one) == "Mean(rate=0.5)"
    assert one == Mean()
    assert replace(one, rate=1.0)._memory == {}
    twin = copy.deepcopy(one)
    assert twin._memory == {"mean": torch.tensor(0.5), "seen": 1}
    twin.see(torch.ones(()))
    assert one._memory["seen"] == 1
    with pytest.raises(UserError, match="has no '_memory'"):
        configure(one, "_memory", {})
    with pytest.raises(TypeError):
        Mean(_memory={})  # type: ignore[call-arg]


@dataclass(frozen=True)
class Plain(Bounds):
    """A dataclass by the standard decorator that inherits the checks."""

    more: Annotated[int, at_least(1)] = field(default=1)


def test_a_plain_dataclass_inherits_the_checks() -> None:
    with pytest.raises(UserError, match=r"^Plain\.more=0 is out of range: at least 1$"):
        Plain(more=0)
