"""Policy, evaluation and prompts: the interfaces between method and model. A policy is structural: nothing inherits from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories


@dataclass
class Evaluation:
    """Outputs of a policy on a batch, with gradient. Only the outputs that were requested are present.

    Attributes:
        logp: log-probability of the decisions taken, [N, T]; arbitrary where the mask is False.
        entropy: entropy of the decision's distribution, [N, T], in nats.
        value: the critic's value of the state before the decision, [N, T].
        hidden: the last hidden state before the decision, [N, T, D].
        distribution: the whole distribution of each decision; logits [N, T, A] for a categorical one.
        extras: outputs of added heads by name.
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
            raise UserError(f"{name!r} was not evaluated: the component that reads it must declare it in `wants`")
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
        """Return each prompt `counts` times, copies adjacent."""
        index = torch.arange(len(self)).repeat_interleave(
            torch.full((len(self),), counts) if isinstance(counts, int) else counts
        )
        return Prompts(self.ids[index], [self.items[i] for i in index.tolist()])


class Policy(Protocol):
    """A network that acts: a torch module that evaluates the decisions in a batch.

    It may offer `add_head(name)`: add a head that reads the state, [N, T], which `evaluate` then gives in `extras` where
    `want` holds the name. A component calls it in `prepare`; a second call has no effect.
    """

    memoryless: bool
    """Whether a decision depends on its own observation alone, so that decisions can be shuffled freely."""

    training: bool

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Evaluate the batch's decisions; only the outputs in `want` are computed. Carries gradient unless disabled."""
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
        """Restore from `state_dict()`."""
        ...

    def frozen(self) -> Policy:
        """Return a copy that is not trained (or a view of the same weights without the trained ones, such as adapters)."""
        ...

    def save(self, folder: Any) -> None:
        """Write the policy in its field's own file format."""
        ...
