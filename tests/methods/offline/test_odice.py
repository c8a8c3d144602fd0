"""ODICE: the conjugate, the projection, and the three gradients it is compared with."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vantage
from tests.harness import context
from tests.methods.offline.theirs import copied, policy_of
from tests.methods.offline.worlds import assert_resumes, batch_of, runner
from tests.reference import Case, cases
from vantage.core import Trajectories, UserError
from vantage.functions.parameters import inner, project_out
from vantage.methods import registry
from vantage.methods.offline.odice import DiceValue, ResidualWeight, conjugate


def test_conjugate_and_its_slope() -> None:
    y = torch.tensor([0.0, 2.0, -2.0, -5.0], requires_grad=True)
    found = conjugate(y)
    assert found.tolist() == [0.0, 3.0, -1.0, -1.0]
    (slope,) = torch.autograd.grad(found.sum(), y)
    assert slope.tolist()[:2] == [1.0, 2.0]
    assert slope.tolist()[3] == 0.0


def test_projection() -> None:
    generator = torch.Generator().manual_seed(0)
    a = [
        torch.randn(3, 4, generator=generator, dtype=torch.float64),
        torch.randn(5, generator=generator, dtype=torch.float64),
    ]
    b = [
        torch.randn(3, 4, generator=generator, dtype=torch.float64),
        torch.randn(5, generator=generator, dtype=torch.float64),
    ]
    rest, c = project_out(b, a)
    assert float(inner(rest, a)) == pytest.approx(0, abs=1e-12)
    for left, one, other in zip(rest, b, a, strict=True):
        torch.testing.assert_close(left + c * other, one)
    parallel, c = project_out([3 * part for part in a], a)
    assert float(c) == pytest.approx(3.0)
    assert all(part.abs().max() < 1e-12 for part in parallel)
    _, c = project_out([-part for part in a], a)
    assert float(c) == pytest.approx(-1.0)
    kept, c = project_out(b, [torch.zeros_like(part) for part in a])
    assert all(torch.equal(one, other) for one, other in zip(kept, b, strict=True))


class Table(nn.Module):
    """Two tables of state values with their targets; an observation is the state's number."""

    def __init__(self, states: int = 6, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.now = nn.Parameter(torch.randn(2, states, generator=generator, dtype=torch.float64))
        self.held = torch.randn(2, states, generator=generator, dtype=torch.float64)

    def v(self, observation: Tensor, target: bool = False) -> Tensor:
        return (self.held if target else self.now)[:, observation.long().squeeze(-1)]


def transitions(states: list[int], following: list[int], over: list[bool] | None = None) -> Trajectories:
    count = len(states)
    return Trajectories(
        {
            "mask": torch.ones(count, 1, dtype=torch.bool),
            "observation": torch.tensor(states).reshape(count, 1, 1),
            "next_observation": torch.tensor(following).reshape(count, 1, 1),
            "reward": torch.linspace(-1, 1, count, dtype=torch.float64).unsqueeze(1),
            "terminated": torch.tensor(over or [False] * count).unsqueeze(1),
        }
    )


def gradient(part: DiceValue, policy: Table, batch: Trajectories) -> Tensor:
    (found,) = part.combined(policy, batch, [policy.now], context())
    return found


def pieces(policy: Table, batch: Trajectories, lam: float, gamma: float = 0.99) -> tuple[Tensor, Tensor, Tensor]:
    """The push down, the forward and the backward gradient, written out over the entries of the tables."""
    push, g_f, g_b = (torch.zeros_like(policy.now) for _ in range(3))
    count = len(batch)
    now = policy.now.detach()
    for row in range(count):
        s, n = int(batch.observation[row]), int(batch.next_observation[row])
        r, left = float(batch.reward[row]), gamma * float(~batch.terminated[row])
        for k in range(2):
            e_f = r + left * float(policy.held[:, n].min()) - float(now[k, s])
            e_b = r + left * float(now[k, n]) - float(policy.held[:, s].min())
            push[k, s] += (1 - lam) / (2 * count)
            g_f[k, s] -= lam * max(e_f / 2 + 1, 0) / (2 * count)
            g_b[k, n] += lam * left * max(e_b / 2 + 1, 0) / (2 * count)
    return push, g_f, g_b


@pytest.mark.parametrize("over", [False, True])
def test_the_combined_gradient_is_the_cards(over: bool) -> None:
    batch = transitions([0, 1, 2, 1], [1, 2, 0, 3], [False, over, False, over])
    policy = Table()
    push, g_f, g_b = pieces(policy, batch, 0.6)
    torch.testing.assert_close(gradient(DiceValue(gradient="semi"), policy, batch), push + g_f)
    c = (g_f * g_b).sum() / g_f.square().sum()
    assert c.abs() > 1e-3
    found = gradient(DiceValue(), policy, batch)
    torch.testing.assert_close(found, push + g_f + g_b - c * g_f)
    assert float(((found - push - g_f) * g_f).sum()) == pytest.approx(0, abs=1e-12)


def test_limits_of_the_weights() -> None:
    batch, policy = transitions([0, 1, 2, 1], [1, 2, 0, 3]), Table()
    semi = gradient(DiceValue(gradient="semi"), policy, batch)
    torch.testing.assert_close(gradient(DiceValue(eta=0.0), policy, batch), semi)
    push, _, _ = pieces(policy, batch, 0.0)
    torch.testing.assert_close(gradient(DiceValue(lam=0.0), policy, batch), push)
    assert pieces(policy, batch, 1.0)[0].abs().max() == 0


def test_states_that_never_follow_each_other_need_no_projection() -> None:
    batch, policy = transitions([0, 1, 2], [3, 4, 5]), Table()
    push, g_f, g_b = pieces(policy, batch, 0.6)
    torch.testing.assert_close(gradient(DiceValue(), policy, batch), push + g_f + g_b)


def test_the_true_gradient_goes_through_both_sides_of_one_residual() -> None:
    batch, policy = transitions([0, 1, 2, 1], [1, 2, 0, 3]), Table()
    s, n = batch.observation[:, 0, 0], batch.next_observation[:, 0, 0]
    v = policy.now
    loss = 0.4 * v[:, s].mean() + 0.6 * conjugate(batch.reward[:, 0] + 0.99 * v[:, n] - v[:, s]).mean()
    torch.testing.assert_close(gradient(DiceValue(gradient="true"), policy, batch), torch.autograd.grad(loss, v)[0])


def test_a_step_along_the_projected_part_leaves_the_forward_loss_to_first_order() -> None:
    batch, policy = transitions([0, 1, 2, 1], [1, 2, 0, 3]), Table()
    push, g_f, _ = pieces(policy, batch, 0.6)
    rest = gradient(DiceValue(), policy, batch) - push - g_f
    assert rest.abs().max() > 1e-3

    def forward(step: float) -> float:
        s, n = batch.observation[:, 0, 0], batch.next_observation[:, 0, 0]
        v = policy.now.detach() - step * rest
        return float(conjugate(batch.reward[:, 0] + 0.99 * policy.held[:, n].amin(0) - v[:, s]).mean())

    assert abs(forward(1e-5) - forward(0.0)) < 1e-8


def test_weights_of_cloning() -> None:
    residual = torch.tensor([[[1.0, 3.0]], [[-4.0, 2.0]], [[200.0, 50.0]], [[-1.0, -2.0]]])
    batch = Trajectories({"mask": torch.ones(4, 1, dtype=torch.bool), "residual": residual})
    # The mean of what is left of both, not what is left of their mean.
    assert ResidualWeight()(batch, context())[:, 0].tolist() == [2.0, 1.0, 75.0, 0.0]


@pytest.mark.parametrize("kind", ["orthogonal", "semi", "true"])
def test_the_residual_of_the_weight_is_that_of_each_network(kind: str) -> None:
    batch, policy = transitions([0, 1, 2, 1], [1, 2, 0, 3], [False, True, False, False]), Table()
    found = DiceValue(gradient=kind, gamma=0.9)(batch, context(policy=policy))["residual"]
    assert found.shape == (4, 1, 2)
    assert not found.requires_grad
    now = policy.now.detach()
    for row in range(4):
        s, n = int(batch.observation[row]), int(batch.next_observation[row])
        left, reward = 0.9 * float(~batch.terminated[row]), float(batch.reward[row])
        for k in range(2):
            following = now[k, n] if kind == "true" else policy.held[:, n].min()
            assert float(found[row, 0, k]) == pytest.approx(reward + left * float(following) - float(now[k, s]))


def test_weight_decay_is_the_authors_l2() -> None:
    optimizer = vantage.method("odice", lr=0.1, weight_decay=0.5).update.optimizer
    one, other = (torch.nn.Parameter(torch.tensor([2.0])) for _ in range(2))
    for parameter, built in (
        (one, optimizer.build([one])),
        (other, torch.optim.Adam([other], lr=0.1, weight_decay=0.5)),
    ):
        for slope in (3.0, -1.0):
            parameter.grad = torch.tensor([slope])
            built.step()
    assert torch.equal(one, other)
    # Decoupled decay, which this is not, would have taken lr * decay of the weight itself.
    assert vantage.method("odice").values.optimizer.weight_decay == 0


def test_on_the_road_the_policy_moves_before_the_values_and_by_the_old_residual() -> None:
    # Rewards above 0, so that some residual is.
    trainer = runner(vantage.method("odice", rows=16), 1, spec="offline:steps=500,hidden=16,reward_shift=3")
    where: Any = trainer.context
    batch = where.method.values(batch_of(trainer), where)
    policy: Any = where.policy
    following = torch.where(batch.terminated, 0.0, policy.v(batch.next_observation, target=True).amin(0))
    wanted = batch.reward + 0.99 * following - policy.v(batch.observation)
    torch.testing.assert_close(batch["residual"], wanted.detach().movedim(0, -1))
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer.step()
    moved = {name.split(".")[0] for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"actor", "log_std", "value_nets", "target_values"}


def test_it_learns_to_walk_and_resumes(tmp_path: Path) -> None:
    method = vantage.method("odice", rows=128, lr=5e-3, tau=0.1)
    history = runner(method, 150, spec="offline:world=point,steps=4000,good=0.5,hidden=32").run().history
    assert history[-1]["eval/score"] > history[0]["eval/score"] + 20
    assert_resumes(tmp_path, vantage.method("odice", rows=16))


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"lam": 1.5}, {"eta": -1.0}, {"gradient": "full"}, {"gamma": 2.0}):
        with pytest.raises(UserError, match=str(next(iter(settings.values())))):
            vantage.method("odice", **settings)


def of(network: Any) -> list[torch.Tensor]:
    """Parameters in the authors' order: of each hidden layer weight, bias, then scale and shift of its normalisation."""
    layers = [module for pair in zip_longest(network.linears, network.norms) for module in pair if module is not None]
    return [parameter for layer in layers for parameter in (layer.weight, layer.bias)]


@cases("odice")
def test_a_step_is_the_authors(case: Case) -> None:
    """Gradients of values, policy and spread, and the targets, with a residual beyond 100 and episodes that end."""
    names = {"Lambda": "lam"}
    method = registry.page("odice").build({names.get(name, name): value for name, value in case.settings.items()})
    policy = policy_of(case, 3)
    where = context(policy=policy, method=method, step=0, total_steps=1, now=lambda value: value)
    values: Any = method.values
    policy.add_values()
    for network, target, name in zip(policy.value_nets, policy.target_values, ("v1", "v2"), strict=True):
        copied(case, name, of(network))
        copied(case, f"target_{name}", of(target))
    values.prepare(where)
    method.update.prepare(where)
    assert policy.log_std is not None
    policy.log_std.data.copy_(case.tensor("log_std"))
    columns = {"observation": "state", "next_observation": "next_state", "action": "action"}
    rows = {name: case.tensor(theirs, torch.float32).unsqueeze(1) for name, theirs in columns.items()}
    over = case.tensor("over")
    rows |= {"reward": case.tensor("reward", torch.float32), "terminated": over, "mask": torch.ones_like(over)}
    batch = values(Trajectories({**rows, "length": torch.ones(len(over), dtype=torch.long)}), where)
    method.update(batch.replace(advantage=method.advantage(batch, where)), where)
    values.fit(batch, where)
    for controller in method.controllers:
        controller(where)
    slopes = {"actor": policy.actor.pairs}
    for name, network, target in zip(("v1", "v2"), policy.value_nets, policy.target_values, strict=True):
        slopes[name] = of(network)
        for i, parameter in enumerate(of(target) if "target_v1_0" in case.outputs else []):
            case.check(f"target_{name}_{i}", parameter)
    for name, parameters in slopes.items():
        for i, parameter in enumerate(parameters):
            case.check(f"{name}_grad_{i}", parameter.grad)
    case.check("log_std_grad", policy.log_std.grad)
