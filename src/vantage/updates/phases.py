"""Settings that change once in a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vantage.core.context import Context
from vantage.core.errors import UserError


@dataclass(frozen=True)
class Until:
    """A setting that is `before` in the first `step` steps and `after` from then on. For any setting read by `context.now`.

    Attributes:
        step: steps that the first phase has, at least 0.
        before, after: its values.
    """

    step: int
    before: Any
    after: Any

    def __post_init__(self) -> None:
        if self.step < 0:
            raise UserError(f"Until.step={self.step} is out of range: at least 0")

    def __call__(self, context: Context) -> Any:
        """Return the value in the step that comes after `context.step` steps."""
        return self.before if context.step < self.step else self.after
