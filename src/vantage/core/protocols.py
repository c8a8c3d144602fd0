"""What the training loop asks of a policy, an engine and a task. All are structural: nothing inherits from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories

if TYPE_CHECKING:
    from vantage.core.context import Context


@dataclass
class Evaluation:
    """What the policy says about a batch, with gradient. Only what was wanted is there.

    Attributes:
        logp: log-probability of the decisions taken, [N, T]; arbitrary where the mask is False.
        entropy: entropy of the decision's distribution, [N, T], in nats.
        value: the critic's value of the state before the decision, [N, T].
        hidden: the last hidden state before the decision, [N, T, D].
        distribution: the whole distribution of each decision; logits [N, T, A] for a categorical one.
        extras: outputs of further heads by name.
        proxy: True when `logp` is a bound or a surrogate (a flow-matching loss, an ELBO), not a log-probability.
    """

    # What a type checker may assume; an output that is not there is an error when it is read.
    logp: Tensor = None  # type: ignore[assignment]
    entropy: Tensor = None  # type: ignore[assignment]
    value: Tensor = None  # type: ignore[assignment]
    hidden: Tensor = None  # type: ignore[assignment]
    distribution: Any = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    proxy: bool = False

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if found is None and name in ("logp", "entropy", "value", "hidden", "distribution"):
            raise UserError(f"{name!r} was not evaluated: the part that reads it must declare it in `wants`")
        return found

    def has(self, name: str) -> bool:
        """Whether the output is there."""
        return object.__getattribute__(self, name) is not None


@dataclass(frozen=True)
class Prompts:
    """B prompts or initial states: stable ids in the task [B] and what the engine starts from, one item each."""

    ids: Tensor
    items: Sequence[Any]

    def __len__(self) -> int:
        return len(self.items)

    def repeat(self, counts: int | Tensor) -> Prompts:
        """Each prompt `counts` times, copies side by side."""
        index = torch.arange(len(self)).repeat_interleave(
            torch.full((len(self),), counts) if isinstance(counts, int) else counts
        )
        return Prompts(self.ids[index], [self.items[i] for i in index.tolist()])


class Policy(Protocol):
    """A network that acts: a torch module that can judge the decisions in a batch.

    It may offer `add_head(name)`: grow one more read-out of the state, [N, T], which `evaluate` then gives in `extras` where
    `want` holds the name. A part asks for it in `prepare`; asking twice is asking once.
    """

    memoryless: bool
    """Whether a decision depends on its own observation alone, so that decisions can be shuffled freely."""

    training: bool

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Judge the batch's decisions; compute nothing that is not wanted. Carries gradient unless disabled."""
        ...

    def values(self, batch: Trajectories) -> tuple[Tensor, Tensor]:
        """Return (value, next_value), each [N, T]: of the state before each decision, and of the state that followed it.

        `next_value` is 0 after a termination and the value of the final state after a truncation. No gradient. Only
        policies with a critic have it.
        """
        ...

    def parameters(self, recurse: bool = ...) -> Iterator[torch.nn.Parameter]:
        """Iterate over the parameters."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Iterate over names and parameters."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return parameters and buffers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Take back what `state_dict` returned."""
        ...

    def frozen(self) -> Policy:
        """Return a copy that never learns (or a view of the same weights that leaves out what is learnt)."""
        ...

    def save(self, folder: Any) -> None:
        """Write the policy in its field's own file format."""
        ...


class Engine(Protocol):
    """Gathers decisions of the policy in the task."""

    def sample(self, prompts: Prompts, count: int, context: Context, *, greedy: bool = False) -> Trajectories:
        """Run `count` whole episodes from each prompt; rows of a prompt stand side by side and share `group`.

        `greedy` takes the most likely decision at each step instead of a draw.
        """
        ...

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Take `steps` more decisions in each of `rows` streams that go on from call to call."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        ...


class PrefixEngine(Engine, Protocol):
    """An engine that can also go on from any prefix and say what a row holds. A plan asks for it by `prefix_engine`."""

    max_length: int
    """Decisions that a row can have at most."""

    def sample(
        self, prompts: Prompts, count: int, context: Context, *, greedy: bool = False, limit: int | None = None
    ) -> Trajectories:
        """As `Engine.sample`; a row that has not ended after `limit` decisions stops there, truncated."""
        ...

    def resume(
        self,
        batch: Trajectories,
        rows: Tensor,
        positions: Tensor,
        count: int,
        context: Context,
        *,
        limit: int | None = None,
    ) -> Trajectories:
        """Run on `count` times from row `rows[i]` of a batch, of which the first `positions[i]` decisions are kept; both [K].

        No row has ended at its position. `limit` bounds the new decisions of each.

        Returns:
            K * count whole rows: kept decisions first, with their `logp_old`; `length` counts both, `mask` holds the new ones
            alone. Rows of one start share `group`, and `parent` [K * count] is the row that they branched from.
        """
        ...

    def texts(self, batch: Trajectories) -> list[Any]:
        """Return what each row holds, in the form in which a prompt can hold it: text where the policy speaks."""
        ...


def prefix_engine(context: Context, who: str) -> PrefixEngine:
    """Return the run's engine as one that goes on from prefixes.

    Raises:
        UserError: it cannot; the message names the part that asked.
    """
    engine: Any = context.engine
    if not hasattr(engine, "resume") or not hasattr(engine, "texts"):
        raise UserError(f"{who} goes on from the middle of a row, which {type(engine).__name__} cannot")
    return engine


class Task(Protocol):
    """Where prompts come from, what is a good outcome, and how a policy is judged.

    It may offer `fields(ids)`: what the data says of each prompt besides prompt and answer (hints, a difficulty), a mapping each;
    and `observe(batch, context)`, which records metrics of rows (their length) besides their rewards. A task whose `unit` is
    "environment steps" has runs whose length is counted in them; its engine counts them in `taken`. `episode_length` is the
    number of decisions of every episode where all have as many, `episode_limit` the largest that one can have.
    """

    name: str
    size: int
    """Number of training prompts; 0 when initial states are drawn by seed and never run out."""

    def prompts(self, ids: Tensor) -> Prompts:
        """Return the training prompts with these ids [B]."""
        ...

    def score(self, batch: Trajectories, context: Context) -> dict[str, Tensor]:
        """Return the named rewards [N] of finished rows; empty when rewards came with the decisions."""
        ...

    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """Judge the policy on what it was not trained on."""
        ...
