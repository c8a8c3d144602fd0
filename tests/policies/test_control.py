"""The control policy: what it evaluates, how it bootstraps, what it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories
from vantage.policies.control import ControlPolicy
from vantage.policies.distributions import Categorical, Gaussian, MultiCategorical, SquashedGaussian
from vantage.policies.spaces import Actions, Observations

VECTOR = Observations("vector", (3,))
CELLS = Observations("discrete", (2,), (4, 3), (0, 10))
IMAGE = Observations("image", (4, 84, 84))
BUTTONS = Actions("discrete", (), (5,), (0,))
SWITCHES = Actions("multidiscrete", (2, 1), (3, 2), (0, 7))
JOINTS = Actions("continuous", (2,), low=(-1.0, -2.0), high=(1.0, None))
BOUNDED = Actions("continuous", (1, 2), low=(-1.0, 0.0), high=(1.0, 4.0))

SPACES = [
    (VECTOR, BUTTONS, {}),
    (VECTOR, SWITCHES, {}),
    (VECTOR, JOINTS, {}),
    (VECTOR, JOINTS, {"state_dependent_std": True, "log_std": -0.5}),
    (VECTOR, BOUNDED, {"squash": True}),
    (VECTOR, BUTTONS, {"shared": True, "hidden": (16,), "activation": "relu"}),
    (CELLS, BUTTONS, {}),
    (IMAGE, BUTTONS, {"hidden": (32,)}),
    (Observations("vector", (2, 2)), JOINTS, {"normalize_observations": True}),
]
KEYS = [f"{o.kind}{o.shape}-{a.kind}-{'-'.join(x)}" for o, a, x in SPACES]


def draw_observation(space: Observations, *lead: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if space.kind == "image":
        return torch.randint(256, (*lead, *space.shape), generator=generator, dtype=torch.uint8)
    if space.kind == "discrete":
        parts = [torch.randint(n, lead, generator=generator) + s for n, s in zip(space.sizes, space.start, strict=True)]
        return torch.stack(parts, -1).reshape(*lead, *space.shape)
    return torch.randn(*lead, *space.shape, generator=generator)


def batch_for(policy: ControlPolicy, rows: int = 3, steps: int = 4) -> Trajectories:
    observation = draw_observation(policy.observations, rows, steps)
    action = policy.distribution_of(observation).sample(torch.Generator().manual_seed(2))
    mask = torch.ones(rows, steps, dtype=torch.bool)
    return Trajectories({"observation": observation, "action": action, "mask": mask}, rows=rows)


@pytest.mark.parametrize(("observations", "actions", "options"), SPACES, ids=KEYS)
def test_evaluate_in_any_layout(observations: Observations, actions: Actions, options: dict[str, Any]) -> None:
    policy = ControlPolicy(observations, actions, seed=3, **options)
    batch = batch_for(policy)
    assert batch.action.shape[2:] == actions.stored_shape
    want = frozenset({"logp", "entropy", "value", "hidden", "distribution"})
    whole, flat = policy.evaluate(batch, want), policy.evaluate(batch.flatten(), want)
    for name in ("logp", "entropy", "value"):
        assert getattr(whole, name).shape == (3, 4)
        torch.testing.assert_close(getattr(flat, name).reshape(3, 4), getattr(whole, name), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.distribution.log_prob(batch.action), whole.logp)
    torch.testing.assert_close(whole.distribution.kl(whole.distribution), torch.zeros(3, 4))
    assert whole.hidden.shape[:2] == (3, 4)
    torch.testing.assert_close(policy.value_of(batch.observation), whole.value)
    (whole.logp.sum() + whole.entropy.sum() + whole.value.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in policy.parameters())


def test_computes_only_what_is_wanted() -> None:
    policy = ControlPolicy(VECTOR, BUTTONS)
    batch = batch_for(policy)
    asked: list[str] = []
    # A lone network is called as a module; the two together are not.
    policy.actor.register_forward_hook(lambda *given: asked.append("actor"))
    policy.critic.register_forward_hook(lambda *given: asked.append("critic"))
    value_only = policy.evaluate(batch, frozenset({"value"}))
    assert asked == ["critic"]
    assert not value_only.has("logp")
    asked.clear()
    logp_only = policy.evaluate(batch, frozenset({"logp"}))
    assert asked == ["actor"]
    assert not logp_only.has("entropy")
    assert not logp_only.has("value")
    with pytest.raises(UserError, match="no output surprise"):
        policy.evaluate(batch, frozenset({"surprise"}))


def test_further_read_outs(tmp_path: Path) -> None:
    policy = ControlPolicy(VECTOR, BUTTONS, hidden=(8,))
    policy.add_head("median")
    policy.add_head("median")
    batch = batch_for(policy)
    evaluation = policy.evaluate(batch, frozenset({"median", "value"}))
    assert evaluation.extras["median"].shape == (3, 4)
    assert not evaluation.has("logp")
    assert not torch.equal(evaluation.extras["median"], evaluation.value)
    evaluation.extras["median"].sum().backward()
    assert [name for name, p in policy.named_parameters() if p.grad is not None] == [
        f"heads.median.layers.{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")
    ]
    policy.save(tmp_path)
    again = ControlPolicy.load(tmp_path).evaluate(batch, frozenset({"median"})).extras["median"]
    torch.testing.assert_close(again, evaluation.extras["median"])


def test_initialisation() -> None:
    policy = ControlPolicy(VECTOR, JOINTS, seed=0)
    last, critic = policy.actor.linears[-1].weight, policy.critic.linears[-1].weight
    torch.testing.assert_close(last @ last.T, 1e-4 * torch.eye(2), atol=1e-8, rtol=1e-4)
    assert float(critic.detach().norm()) == pytest.approx(1.0)
    assert policy.log_std is not None
    assert policy.log_std.tolist() == [0.0, 0.0]
    assert [layer.out_features for layer in policy.actor.linears] == [64, 64, 2]
    again = ControlPolicy(VECTOR, JOINTS, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))


def test_heads() -> None:
    x = torch.zeros(2, 3)
    assert isinstance(ControlPolicy(VECTOR, BUTTONS).distribution_of(x), Categorical)
    assert isinstance(ControlPolicy(VECTOR, SWITCHES).distribution_of(x), MultiCategorical)
    assert type(ControlPolicy(VECTOR, JOINTS).distribution_of(x)) is Gaussian
    assert isinstance(ControlPolicy(VECTOR, BOUNDED, squash=True).distribution_of(x), SquashedGaussian)
    dependent = ControlPolicy(VECTOR, JOINTS, state_dependent_std=True, log_std=-0.5).distribution_of(x)
    assert isinstance(dependent, Gaussian)
    torch.testing.assert_close(dependent.log_std, torch.full((2, 2), -0.5), atol=0.05, rtol=0)


def test_what_the_environment_gets() -> None:
    joints = ControlPolicy(VECTOR, JOINTS)
    assert joints.to_environment(np.array([[-3.0, -3.0], [3.0, 9.0]], np.float32)).tolist() == [[-1, -2], [1, 9]]
    squashed = ControlPolicy(VECTOR, BOUNDED, squash=True)
    raw = np.array([[0.0, 0.0], [50.0, -50.0]], np.float32)
    assert squashed.to_environment(raw).tolist() == [[[0.0, 2.0]], [[1.0, 0.0]]]
    switches = ControlPolicy(VECTOR, SWITCHES)
    assert switches.to_environment(np.array([[2, 1]])).tolist() == [[[2], [8]]]
    shifted = ControlPolicy(VECTOR, Actions("discrete", (), (3,), (-1,)))
    assert shifted.to_environment(np.array([0, 2])).tolist() == [-1, 1]


def test_act_takes_the_mode_or_samples() -> None:
    policy = ControlPolicy(VECTOR, BUTTONS, seed=1)
    with torch.no_grad():
        policy.actor.linears[-1].bias[3] = 2.0
    observation = np.zeros((4000, 3), np.float32)
    assert (policy.act(observation) == 3).all()
    drawn = policy.act(observation, deterministic=False, generator=torch.Generator().manual_seed(0))
    expected = policy.distribution_of(torch.zeros(1, 3)).log_probs.exp()[0]
    shares = np.bincount(drawn, minlength=5) / 4000
    np.testing.assert_allclose(shares, expected.detach().numpy(), atol=0.03)


def test_act_normalises_and_evaluate_does_not() -> None:
    policy = ControlPolicy(VECTOR, JOINTS, normalize_observations=True, seed=1)
    assert policy.normalizer is not None
    policy.normalizer.mean += 5.0
    policy.normalizer.var *= 4.0
    raw = np.array([[7.0, 5.0, 1.0]])
    expected = policy.distribution_of(torch.tensor([[1.0, 0.0, -2.0]])).mode
    torch.testing.assert_close(torch.from_numpy(policy.act(raw)), expected.detach().clamp(-1, 1))


def bootstrap_batch(**columns: torch.Tensor) -> Trajectories:
    """Rows whose observation is its own value under `identity_critic`."""
    return Trajectories(columns, rows=2)


@pytest.fixture
def identity_critic(monkeypatch: pytest.MonkeyPatch) -> ControlPolicy:
    policy = ControlPolicy(Observations("vector", (1,)), BUTTONS)
    monkeypatch.setattr(policy, "value_of", lambda observation: observation.squeeze(-1))
    return policy


def test_values_bootstrap_from_where_episodes_were_cut(identity_critic: ControlPolicy) -> None:
    observation = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]).unsqueeze(-1)
    over = torch.tensor([[False, True, False, False], [False, False, True, False]])
    cut = torch.tensor([[True, True, True, False], [False, False, False, True]])
    batch = bootstrap_batch(
        observation=observation,
        terminated=over,
        truncated=cut,
        last_observation=torch.tensor([[9.0], [10.0]]),
        final_observation=torch.tensor([[[21.0], [23.0]], [[24.0], [0.0]]]),
    )
    value, next_value = identity_critic.values(batch)
    assert value.tolist() == observation.squeeze(-1).tolist()
    # Row 0 was cut after decisions 0 and 2 (1 ended by itself as well), row 1 after the last.
    assert next_value.tolist() == [[21.0, 3.0, 23.0, 9.0], [6.0, 7.0, 8.0, 24.0]]


def test_values_of_environments_that_reset_late(identity_critic: ControlPolicy) -> None:
    observation = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).unsqueeze(-1)
    none = torch.zeros(2, 2, dtype=torch.bool)
    last = torch.tensor([[5.0], [6.0]])
    batch = bootstrap_batch(observation=observation, terminated=none, truncated=~none, last_observation=last)
    assert identity_critic.values(batch)[1].tolist() == [[2.0, 5.0], [4.0, 6.0]]


def test_values_of_images_come_in_parts() -> None:
    policy = ControlPolicy(IMAGE, BUTTONS, hidden=(8,))
    observation = draw_observation(IMAGE, 5, 3)
    whole = policy.value_of(observation)
    torch.testing.assert_close(policy._value_in_parts(observation, inputs=3 * 2 * 28224), whole, atol=1e-6, rtol=1e-5)


def test_parameters_by_role() -> None:
    policy = ControlPolicy(VECTOR, JOINTS)
    critic, actor = set(policy.critic_parameters()), set(policy.actor_parameters())
    assert not critic & actor
    assert critic | actor == set(policy.parameters())
    assert policy.log_std in actor
    batch = batch_for(policy)
    policy.evaluate(batch, frozenset({"value"})).value.sum().backward()
    assert all(p.grad is None for p in actor)


@pytest.mark.parametrize(("observations", "actions", "options"), SPACES, ids=KEYS)
def test_save_and_load(observations: Observations, actions: Actions, options: dict[str, Any], tmp_path: Path) -> None:
    policy = ControlPolicy(observations, actions, seed=5, **options)
    if policy.normalizer is not None:
        policy.normalizer.mean += 2.0
    policy.save(tmp_path)
    loaded = ControlPolicy.load(tmp_path)
    assert (loaded.observations, loaded.actions, loaded.config) == (policy.observations, policy.actions, policy.config)
    own = policy.state_dict()
    assert set(own) == set(loaded.state_dict())
    assert all(torch.equal(own[name], tensor) for name, tensor in loaded.state_dict().items())
    raw = draw_observation(observations, 2).numpy()
    np.testing.assert_array_equal(policy.act(raw), loaded.act(raw))
    json.loads((tmp_path / "config.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_loading_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json is missing"):
        ControlPolicy.load(tmp_path)
    ControlPolicy(VECTOR, BUTTONS).save(tmp_path)
    (tmp_path / "config.json").write_text('{"policy": "language"}')
    with pytest.raises(UserError, match="describes no control policy"):
        ControlPolicy.load(tmp_path)


def test_frozen_is_apart() -> None:
    policy = ControlPolicy(VECTOR, JOINTS, normalize_observations=True)
    held = policy.frozen()
    before = held.value_of(torch.ones(1, 3))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 1.0
    assert torch.equal(held.value_of(torch.ones(1, 3)), before)
    assert not any(parameter.requires_grad for parameter in held.parameters())
    assert policy.memoryless


@pytest.mark.parametrize(
    ("observations", "actions", "options", "message"),
    [
        (VECTOR, BUTTONS, {"activation": "relo"}, "activation='relo' is not known; did you mean relu"),
        (VECTOR, BUTTONS, {"hidden": (64, 0)}, r"hidden=\(64, 0\) is out of range"),
        (VECTOR, BUTTONS, {"squash": True}, "squash=True needs continuous actions"),
        (VECTOR, BUTTONS, {"state_dependent_std": True}, "state_dependent_std=True needs continuous"),
        (VECTOR, JOINTS, {"squash": True}, "finite bounds"),
        (CELLS, BUTTONS, {"normalize_observations": True}, "needs observations that are numbers"),
        (IMAGE, BUTTONS, {"shared": False}, "shared=False is not supported for images"),
    ],
)
def test_options_that_do_not_fit(
    observations: Observations, actions: Actions, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ControlPolicy(observations, actions, **options)
