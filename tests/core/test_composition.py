"""Composition is closed: a component inside another is prepared, declared, saved and restored as if it stood alone."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import STEPS, ToyEngine, ToyPolicy, ToyTask, toy_method
from vantage.advantages.clamped import Clamped
from vantage.advantages.groups import GroupStandardized
from vantage.core import CheckpointError, Method, Schedule, Trainer, Trajectories, UserError
from vantage.core.walk import Stateful, adapted, declared, prepare, states, walk
from vantage.methods.compression.bypass_backprop import MovingBaseline
from vantage.methods.credit.spo_single_stream import OpenPrompts, SuccessTracker
from vantage.methods.credit.t_ppo import Windows
from vantage.methods.objectives.dcpo import SmoothStandardized
from vantage.methods.objectives.oblr_po import SignalToNoise
from vantage.methods.objectives.r2vpo import VarianceRegularized
from vantage.methods.objectives.riskpo import BundleRisk
from vantage.methods.rewards.otc import LeastCalls
from vantage.methods.sampling.repo_replay import FreshRecorded, PromptReplay
from vantage.objectives.surrogates import Clip
from vantage.regularizers.dual import DualAscent, Multiplier
from vantage.rewards.economy import CallEconomy
from vantage.rewards.mixing import Total
from vantage.rollouts.pairs import Duels
from vantage.rollouts.plans import Groups, Refill, Shuffled
from vantage.rollouts.replay import RecentReplay
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam
from vantage.updates.targets import Every

PACKAGES = (
    "advantages",
    "objectives",
    "regularizers",
    "rewards",
    "selection",
    "updates",
    "rollouts",
    "methods",
    "tasks",
)


@dataclass(frozen=True)
class Probe:
    """A component that remembers how often it was prepared and called."""

    wants = frozenset({"entropy"})
    columns = frozenset({"hidden_old"})
    policies = frozenset({"target"})
    _memory: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def prepare(self, context: Any) -> None:
        context.append("probe")
        self._memory["prepared"] = self._memory.get("prepared", 0) + 1

    def __call__(self, *arguments: Any) -> Any:
        return arguments[0]

    def state_dict(self) -> dict[str, Any]:
        return dict(self._memory)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._memory.update(state)


def classes() -> list[type]:
    """Every frozen dataclass of the packages that components live in."""
    found: dict[type, None] = {}
    for package in PACKAGES:
        root = importlib.import_module(f"vantage.{package}")
        for info in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            module = importlib.import_module(info.name)
            for held in vars(module).values():
                if isinstance(held, type) and held.__module__ == info.name and dataclasses.is_dataclass(held):
                    found[held] = None
    return list(found)


def holders() -> list[tuple[type, str]]:
    """Every field of these that holds another component, as its default or its annotation says."""
    found = []
    for cls in classes():
        for f in dataclasses.fields(cls):
            default = f.default_factory() if callable(f.default_factory) else f.default
            holds = default is not dataclasses.MISSING and any(walk(default))
            if f.init and (holds or f.type in ("Any", "Component", "tuple[Any, ...]")):
                found.append((cls, f.name))
    return found


def name_of(value: Any) -> str:
    return getattr(value, "__name__", value)


def test_there_are_holders() -> None:
    names = {cls.__name__ for cls, _ in holders()}
    assert names >= {
        "Clamped",
        "Refill",
        "RecentReplay",
        "PromptReplay",
        "FreshRecorded",
        "Every",
        "OpenPrompts",
    }


@pytest.mark.parametrize(("cls", "place"), holders(), ids=name_of)
def test_what_a_holder_holds_is_found_and_saved_at_its_place(cls: type, place: str) -> None:
    holder = object.__new__(cls)  # its other fields do not matter here
    for f in dataclasses.fields(cls):
        object.__setattr__(holder, f.name, None)
    probe = Probe()
    object.__setattr__(holder, place, probe)
    assert [where for where, inner in walk(holder, "here") if inner is probe] == [f"here.{place}"]
    assert states(walk(holder, "here"))[f"here.{place}"] is probe


def test_declarations_of_what_is_inside() -> None:
    assert declared(Refill(Duels()), "policies") == {"target"}
    assert declared(Clamped(Clamped(Probe())), "columns") == {"hidden_old"}
    method = toy_method(advantage=Clamped(Probe()), objective=Clip(0.2))
    assert method.declared("columns") >= {"hidden_old"}
    assert method.declared("policies") >= {"target"}
    # What the advantage wants is no matter of the loss.
    assert method.wants == {"logp"}
    assert toy_method(update=Every(2, Probe())).wants == {"logp", "entropy"}


def test_inner_components_come_before_outer_ones_and_each_once() -> None:
    shared = Shuffled()
    places = [
        place
        for place, _ in toy_method(
            prompts=OpenPrompts(source=shared), advantage=Clamped(GroupStandardized())
        ).components()
    ]
    assert places.index("prompts.source") < places.index("prompts")
    assert places.index("advantage.inner") < places.index("advantage")
    order: list[str] = []
    probe = Probe()
    prepare({"one": Clamped(probe), "two": [probe, probe], "three": (lambda: probe,)}, order)
    assert order == ["probe"]
    assert [place for place, inner in walk({"a": (1, Clamped(probe)), "b": probe}) if inner is probe] == ["a.1.inner"]


def test_an_adapted_component_shares_the_memory() -> None:
    plan = RecentReplay(Groups(3, 2), 0.5)
    other = adapted(plan, share=0.25)
    assert (plan.share, other.share) == (0.5, 0.25)
    assert other._memory is plan._memory


# Runs: every stateful component in every wrapper that can hold it ----------------------------------------------------


class TurnEngine(ToyEngine):
    """Rows whose first half is turn 0 and whose second half is turn 1."""

    def _go_on(self, *arguments: Any) -> Trajectories:
        batch = super()._go_on(*arguments)
        return batch.replace(turn=(torch.arange(STEPS) * 2 // STEPS).expand(batch.mask.shape))


WRAPPERS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "prompts": {"OpenPrompts": lambda inner: OpenPrompts(2, source=inner)},
    "rollout": {
        "Refill": lambda inner: Refill(inner, 3, 2),
        "PromptReplay": lambda inner: PromptReplay(inner, 8, 2, 2),
        "RecentReplay": lambda inner: RecentReplay(inner, 0.5),
    },
    "rewards": {"FreshRecorded": FreshRecorded},
    "advantage": {"Clamped": lambda inner: Clamped(inner, 0.8)},
    "update": {"Every": lambda inner: Every(2, inner)},
}
STATEFUL: dict[str, dict[str, Callable[[], Any]]] = {
    "prompts": {"Shuffled": Shuffled},
    "rollout": {
        "RecentReplay": lambda: RecentReplay(Groups(3, 4), 0.5),
        "PromptReplay": lambda: PromptReplay(Groups(3, 4), 8, 2, 2),
        "Windows": lambda: Windows(6, 2),
    },
    "rewards": {"LeastCalls": lambda: CallEconomy(least=LeastCalls(persist=True))},
    "advantage": {
        "SmoothStandardized": SmoothStandardized,
        "QuantileTracker": lambda: BundleRisk(2),
        "MovingBaseline": lambda: MovingBaseline(5, 8),
    },
    "update": {
        "GradientUpdate": lambda: GradientUpdate(Adam(3e-2), epochs=2, minibatches=2),
        "SignalToNoise": lambda: SignalToNoise(Adam(3e-2), pieces=2),
    },
}
REFUSED = {("RecentReplay", "RecentReplay"), ("RecentReplay", "PromptReplay"), ("RecentReplay", "Windows")}
"""A plan of which fewer prompts cannot be asked."""
NO_WRAPPER = {"FittedCritic", "OutcomeCritic", "DecisionCritic", "DualCritic", "DiceValue", "TwinQ", "HiddenProbe",
              "SuccessTracker", "SlowCopy", "Multiplier", "RecentBatches", "FixedLength"}  # fmt: skip
"""Values, controllers, selections, averagings and what an objective holds: no wrapper of the library holds these."""
OTHER_FIELDS = {
    "Pathwise",
    "SharedPrefixes",
    "ClippingCorrected",
    "SkipLargeRatios",
    "Refreshed",
    "Demonstrations",
    "Population",
    "ReplayedTransitions",
}
"""Of fields that the toy is not: forms of the `GradientUpdate`, and rollouts of routing, control and worked solutions."""
PAIRS = [(stage, outer, inner) for stage in WRAPPERS for outer in WRAPPERS[stage] for inner in STATEFUL[stage]]


def test_every_stateful_component_is_in_the_table() -> None:
    known = {name for held in STATEFUL.values() for name in held} | NO_WRAPPER | OTHER_FIELDS
    stateful = {cls.__name__ for cls in classes() if issubclass(cls, Stateful)}
    assert stateful == known


def composed(stage: str, outer: str, inner: str) -> Method:
    wrapped = WRAPPERS[stage][outer](STATEFUL[stage][inner]())
    rest: dict[str, Any] = {}
    if outer == "OpenPrompts":
        rest = {"values": SuccessTracker(samples=0)}
    if stage == "rewards":
        rest = {"rollout": PromptReplay(Groups(3, 4), 8, 2, 2)}
        wrapped = (Total(), wrapped)
    return toy_method(**{stage: wrapped, **rest})


def toy_trainer(method: Method, folder: Path, steps: int = 8) -> Trainer:
    policy = ToyPolicy()
    return Trainer(method, ToyTask(), policy, TurnEngine(policy), Schedule(steps), seed=5, folder=folder)


def assert_resumes(method: Method, tmp_path: Path, make: Any = toy_trainer, after: int = 5, steps: int = 8) -> Trainer:
    def begun(name: str) -> Trainer:
        torch.manual_seed(0)
        (tmp_path / name).mkdir(exist_ok=True)
        made: Trainer = make(method, tmp_path / name)
        return made

    whole = begun("whole")
    history = [whole.step()[0] for _ in range(steps)]
    part = begun("part")
    for _ in range(after):
        part.step()
    part.save()
    torch.rand(17)
    again = begun("part")
    assert again.restore() == after
    assert str([again.step()[0] for _ in range(steps - after)]) == str(history[after:])  # NaN equals itself as text
    expected = whole.context.policy.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.context.policy.state_dict().items())
    return again


@pytest.mark.parametrize(("stage", "outer", "inner"), PAIRS)
def test_a_stateful_component_inside_another_resumes_to_the_last_bit(
    stage: str, outer: str, inner: str, tmp_path: Path
) -> None:
    if (outer, inner) in REFUSED:
        with pytest.raises(UserError, match="put RecentReplay inside it instead"):
            composed(stage, outer, inner)
        return
    assert_resumes(composed(stage, outer, inner), tmp_path)


def test_a_multiplier_inside_the_objective_resumes(tmp_path: Path) -> None:
    method = toy_method(objective=VarianceRegularized(Multiplier(1.0, 0.02)), controllers=(DualAscent(),))
    again = assert_resumes(method, tmp_path)
    assert again.context.method.objective.multiplier.value() != 1.0


@pytest.mark.parametrize("outer", ["Refill", "PromptReplay", "RecentReplay"])
def test_a_population_of_tours_resumes_inside_another_plan(outer: str, tmp_path: Path) -> None:
    """The second phase begins at step 2, before the checkpoint."""
    poppy = vantage.method("poppy", prompts=3, agents=2, warm=0.5, starts=4)
    task = vantage.task("tsp:nodes=5")

    def make(method: Method, folder: Path) -> Trainer:
        policy = method.policy_for(task)
        return Trainer(method, task, policy, task.make_engine(policy), Schedule(4), seed=5, folder=folder)

    again = assert_resumes(poppy.replace(rollout=WRAPPERS["rollout"][outer](poppy.rollout)), tmp_path, make, 3, 4)
    assert again.context.method.rollout.plan.state_dict() == {"begun": True}


def test_components_three_deep_resume(tmp_path: Path) -> None:
    assert_resumes(
        toy_method(
            rollout=Refill(PromptReplay(RecentReplay(Groups(3, 4), 0.5), 8, 2, 2), 3, 2),
            advantage=Clamped(Clamped(SmoothStandardized(), 2.0), 0.8),
            update=Every(1, Every(2, GradientUpdate(Adam(3e-2)))),
        ),
        tmp_path,
    )


def test_a_checkpoint_of_format_1_is_restored_where_it_holds_all_and_refused_elsewhere(tmp_path: Path) -> None:
    """Before nested components had places of their own, some wrappers saved what they held as their own state."""
    held = toy_method(update=Every(2, GradientUpdate(Adam(3e-2))), advantage=BundleRisk(2))
    (tmp_path / "held").mkdir()
    run = toy_trainer(held, tmp_path / "held")
    for _ in range(3):
        run.step()
    run.save()
    moved = {"update.update": "update", "advantage.tracker": "advantage"}
    rewritten(tmp_path / "held", lambda parts: {moved.get(place, place): state for place, state in parts.items()})
    again = toy_trainer(held, tmp_path / "held")
    assert again.restore() == 3
    assert again.step()[0] == run.step()[0]

    lost = toy_method(advantage=Clamped(SmoothStandardized()))
    (tmp_path / "lost").mkdir()
    run = toy_trainer(lost, tmp_path / "lost")
    run.step()
    run.save()
    rewritten(tmp_path / "lost", lambda parts: {place: s for place, s in parts.items() if place != "advantage.inner"})
    with pytest.raises(
        CheckpointError, match=r"did not save components inside others: they differ at advantage\.inner"
    ):
        toy_trainer(lost, tmp_path / "lost").restore()


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write the newest checkpoint anew in format 1, with its components' states changed."""
    from vantage.core.checkpoint import newest_checkpoint, write_checkpoint

    step, weights, state = newest_checkpoint(folder / "checkpoints")
    del state["format"]
    write_checkpoint(folder / "checkpoints", step, weights, {**state, "parts": change(state["parts"])})


def test_the_recipes_restore_from_places_of_their_own() -> None:
    places = {
        place
        for name in ("spo-single-stream", "riskpo", "r2vpo")
        for place, inner in vantage.method(name).components()
        if isinstance(inner, Stateful)
    }
    assert places >= {"prompts.source", "advantage.tracker", "objective.multiplier", "update"}
