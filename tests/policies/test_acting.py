"""Choosing actions in numpy: the same distribution, and the same actor, as torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vantage.policies.acting import chooser, draw_noise
from vantage.policies.control import ControlPolicy
from vantage.policies.distributions import MultiCategorical
from vantage.policies.spaces import Actions, Observations

VECTOR = Observations("vector", (3,))
SPACES = {
    "discrete": (Actions("discrete", (), (4,), (0,)), {}),
    "multidiscrete": (Actions("multidiscrete", (2,), (3, 2), (0, 0)), {}),
    "continuous": (Actions("continuous", (2,), low=(None, None), high=(None, None)), {"log_std": -0.7}),
    "state": (
        Actions("continuous", (2,), low=(None, None), high=(None, None)),
        {"log_std": -0.7, "state_dependent_std": True},
    ),
}


def act(policy: ControlPolicy, observation: torch.Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rows = len(observation)
    noise = draw_noise(policy, 1, rows, torch.Generator().manual_seed(seed))
    outputs = np.empty((rows, policy.actor.outputs), np.float32)
    action = np.empty((rows, *policy.actions.stored_shape), policy.actions.dtype)
    policy.actor_for(rows)(observation.numpy(), outputs)
    chooser(policy)(outputs, noise[0], action)
    return outputs, action


def lively(kind: str) -> ControlPolicy:
    """A policy whose outputs differ: the initial ones are all near zero."""
    actions, options = SPACES[kind]
    policy = ControlPolicy(VECTOR, actions, seed=1, **options)
    with torch.no_grad():
        policy.actor.linears[-1].weight *= 100
    return policy


@pytest.mark.parametrize("kind", SPACES)
def test_the_choice_follows_the_distribution(kind: str) -> None:
    policy = lively(kind)
    rows = 40_000
    observation = torch.tensor([0.5, -1.0, 0.3]).expand(rows, 3).contiguous()
    _, action = act(policy, observation, seed=7)
    head = policy.distribution_of(observation[:1])
    if policy.actions.kind == "continuous":
        np.testing.assert_allclose(action.mean(0), head.mean[0].detach(), atol=0.02)
        log_std = head.log_std.detach().reshape(-1, 2)[0]
        np.testing.assert_allclose(np.log(action.std(0)), log_std, atol=0.02)
        return
    tables = head.log_probs.exp()[0].detach().reshape(-1, head.log_probs.shape[-1])
    for k, table in enumerate(tables):
        chosen = action if isinstance(action[0], np.integer) else action[:, k]
        shares = np.bincount(chosen, minlength=len(table)) / rows
        np.testing.assert_allclose(shares, table, atol=0.012)
    assert not isinstance(head, MultiCategorical) or len(tables) == 2


@pytest.mark.parametrize("kind", SPACES)
def test_numpy_outputs_equal_torchs(kind: str) -> None:
    policy = lively(kind)
    observation = torch.randn(16, 3, generator=torch.Generator().manual_seed(3))
    outputs, _ = act(policy, observation, seed=1)
    torch.testing.assert_close(torch.from_numpy(outputs), policy.outputs_of(observation).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", SPACES)
def test_the_same_generator_gives_the_same_actions(kind: str) -> None:
    policy = lively(kind)
    observation = torch.randn(16, 3, generator=torch.Generator().manual_seed(3))
    first, second, third = (act(policy, observation, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


@pytest.mark.parametrize(
    "observations",
    [
        Observations("vector", (2, 3)),
        Observations("discrete", (), (6,), (-2,)),
        Observations("discrete", (2,), (4, 3), (0, 5)),
    ],
    ids=str,
)
def test_encodings_agree_with_torchs(observations: Observations) -> None:
    policy = ControlPolicy(observations, SPACES["discrete"][0], seed=2)
    if observations.kind == "vector":
        seen = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    else:
        low, sizes = np.array(observations.start), np.array(observations.sizes)
        seen = (np.random.default_rng(0).integers(sizes, size=(5, len(sizes))) + low).reshape(5, *observations.shape)
    out = np.empty((5, 4), np.float32)
    policy.actor_for(5)(seen, out)
    expected = policy.outputs_of(torch.from_numpy(seen)).detach()
    torch.testing.assert_close(torch.from_numpy(out), expected, atol=1e-6, rtol=1e-5)


def test_large_and_shared_networks_act_in_torch() -> None:
    for options in ({"hidden": (1024,)}, {"shared": True}, {"activation": "gelu"}):
        policy = ControlPolicy(VECTOR, SPACES["discrete"][0], seed=2, **options)
        seen, out = np.ones((2, 3), np.float32), np.empty((2, 4), np.float32)
        policy.actor_for(2)(seen, out)
        torch.testing.assert_close(torch.from_numpy(out), policy.outputs_of(torch.from_numpy(seen)).detach())
