"""Twin action values of a control policy, and their targets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vantage.core.errors import UserError
from vantage.policies.control import ControlPolicy
from vantage.policies.flow_control import Flow
from vantage.policies.generative import GenerativePolicy
from vantage.policies.spaces import Actions, Observations
from vantage.updates.targets import MoveTargets

SEEN = Observations("vector", (3,))
BOX = Actions("continuous", (2,), low=(-1.0, 0.0), high=(1.0, 4.0))


def grown(**options: Any) -> ControlPolicy:
    policy = ControlPolicy(SEEN, BOX, hidden=(16,), activation="relu", **options)
    policy.add_critics()
    return policy


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
@pytest.mark.parametrize("squash", [True, False])
def test_both_values_read_state_and_action(activation: str, squash: bool) -> None:
    policy = ControlPolicy(SEEN, BOX, hidden=(16,), activation=activation, squash=squash)
    policy.add_critics()
    assert policy.action_values is not None
    seen, action = torch.randn(5, 1, 3), torch.randn(5, 1, 2)
    values = policy.q(seen, action)
    assert values.shape == (2, 5, 1)
    unit = torch.tanh(action) if squash else torch.stack([action[..., 0], (action[..., 1] - 2) / 2], -1)
    for network, value in zip(policy.action_values.networks, values, strict=True):
        torch.testing.assert_close(network(torch.cat([seen, unit], -1)).squeeze(-1), value)
    assert not torch.allclose(values[0], values[1])
    torch.testing.assert_close(policy.q(seen, action, target=True), values)


def test_frozen_values_pass_gradient_to_the_action_alone() -> None:
    policy = grown(squash=True)
    action = torch.randn(4, 1, 2, requires_grad=True)
    policy.q(torch.randn(4, 1, 3), action, frozen=True).sum().backward()
    assert action.grad is not None
    assert action.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in policy.parameters())
    policy.q(torch.randn(4, 1, 3), action).sum().backward()
    assert policy.action_values is not None
    assert all(parameter.grad is not None for parameter in policy.action_values.networks.parameters())


def test_a_draw_made_of_noise_carries_gradient() -> None:
    policy = grown(squash=True)
    distribution: Any = policy.distribution_of(torch.randn(4, 1, 3))
    noise = torch.randn(4, 1, 2)
    action = distribution.of_noise(noise)
    torch.testing.assert_close(action, distribution.mean + noise * distribution.log_std.exp())
    action.sum().backward()
    assert policy.log_std is not None
    assert policy.log_std.grad is not None


def test_targets_follow_by_their_rate_and_never_learn() -> None:
    policy = grown()
    pairs = policy.targets()
    assert len(pairs) == 2 * 2 * 2
    with torch.no_grad():
        for live, _ in pairs:
            live.add_(1.0)
    before = [target.clone() for _, target in pairs]
    mover = MoveTargets(0.25, every="minibatch")
    assert mover.every == "minibatch"
    mover(SimpleNamespace(policy=policy, step=3))  # type: ignore[arg-type]
    for (_, target), was in zip(pairs, before, strict=True):
        torch.testing.assert_close(target, was + 0.25)
        assert not target.requires_grad
    assert MoveTargets().every == "step"


def test_they_are_saved_and_are_no_part_of_the_actor(tmp_path: Path) -> None:
    policy = grown()
    names = {name for name, _ in policy.named_parameters()}
    actor = {id(parameter) for parameter in policy.actor_parameters()}
    assert not any(id(p) in actor for name, p in policy.named_parameters() if name.startswith("action_values."))
    policy.save(tmp_path)
    loaded = ControlPolicy.load(tmp_path)
    assert {name for name, _ in loaded.named_parameters()} == names
    seen, action = torch.randn(5, 3), torch.randn(5, 2)
    torch.testing.assert_close(loaded.q(seen, action), policy.q(seen, action))
    kept = loaded.action_values
    loaded.add_critics()
    assert loaded.action_values is kept


def test_what_cannot_have_them_says_so() -> None:
    with pytest.raises(UserError, match="add_critics"):
        ControlPolicy(SEEN, BOX).q(torch.zeros(1, 3), torch.zeros(1, 2))
    for policy in (
        ControlPolicy(SEEN, Actions("discrete", (), (3,), (0,))),
        ControlPolicy(SEEN, BOX, shared=True),
        GenerativePolicy(SEEN, BOX, Flow(draws=2)),
    ):
        with pytest.raises(UserError, match="action values"):
            policy.add_critics()
