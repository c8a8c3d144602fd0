"""Settings that change once in a run."""

from __future__ import annotations

from typing import Annotated, Any

from vantage.core import at_least, component
from vantage.core.context import Context


@component
class Until:
    """A setting that is `before` in the first `step` steps and `after` afterwards. For any setting read by `context.now`.

    Attributes:
        step: number of steps of the first phase, at least 0.
        before, after: its values.
    """

    step: Annotated[int, at_least(0)]
    before: Any
    after: Any

    def __call__(self, context: Context) -> Any:
        """Return the value in the step that comes after `context.step` steps."""
        return self.before if context.step < self.step else self.after
