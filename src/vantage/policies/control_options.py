"""Checks of the options of control policies."""

from __future__ import annotations

from collections.abc import Sequence

from vantage.core.errors import UserError
from vantage.policies.networks import activation
from vantage.policies.spaces import Actions, Observations


def check_options(
    observations: Observations,
    actions: Actions,
    hidden: Sequence[int],
    activation_name: str,
    shared: bool,
    state_dependent_std: bool,
    squash: bool,
    normalize_observations: bool,
) -> None:
    """Check the options of a `ControlPolicy` against its spaces.

    Raises:
        UserError: an option is out of range, or the spaces do not support it.
    """
    activation(activation_name)
    if any(width < 1 for width in hidden) or (shared and not hidden):
        raise UserError(
            f"hidden={tuple(hidden)} is out of range: every width is at least 1, and a shared trunk needs one"
        )
    if observations.kind == "image" and not shared:
        raise UserError("shared=False is not supported for images: actor and critic share the convolutional trunk")
    if actions.kind != "continuous" and (squash or state_dependent_std):
        name = "squash" if squash else "state_dependent_std"
        raise UserError(f"{name}=True needs continuous actions, not {actions.kind} ones")
    unbounded = [i for i, pair in enumerate(zip(actions.low, actions.high, strict=True)) if None in pair]
    if squash and unbounded:
        raise UserError(
            f"squash=True needs an action space with finite bounds: coordinate {unbounded[0]} of {actions.width} has"
            f" [{actions.low[unbounded[0]]}, {actions.high[unbounded[0]]}]; leave squash out, so that actions are not bounded"
        )
    if normalize_observations and observations.kind != "vector":
        raise UserError(
            f"normalize_observations=True needs observations that are numbers, not {observations.kind} ones"
        )
