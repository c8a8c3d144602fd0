"""TRPO: the identities of its card."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import vantage
from tests.harness import context
from tests.reference import Case, cases
from vantage.core import Evaluation, Schedule, Trainer, Trajectories
from vantage.methods import registry
from vantage.policies.distributions import Categorical
from vantage.updates.trust_region import TrustRegion, conjugate_gradient


class Logit(nn.Module):
    """A Bernoulli policy with one logit z; p = sigmoid(z). Its Fisher information is p (1 - p)."""

    memoryless = True

    def __init__(self, z: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor([z / scale], dtype=torch.float64))
        self.scale = scale

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        logit = (self.z * self.scale).expand(batch.mask.shape)
        distribution = Bernoulli(logit)
        logp = torch.where(batch.action == 1, nn.functional.logsigmoid(logit), nn.functional.logsigmoid(-logit))
        return Evaluation(logp=logp, distribution=distribution)


class Bernoulli:
    def __init__(self, logit: torch.Tensor) -> None:
        self.logit = logit

    def kl(self, other: Bernoulli) -> torch.Tensor:
        p = self.logit.sigmoid()
        log = nn.functional.logsigmoid
        return p * (log(self.logit) - log(other.logit)) + (1 - p) * (log(-self.logit) - log(-other.logit))


def coin(advantages: tuple[float, float] = (1.0, -1.0), count: int = 50) -> Trajectories:
    action = torch.arange(2 * count).unsqueeze(1) % 2
    advantage = torch.where(action == 1, advantages[0], advantages[1]).double()
    old = torch.full((2 * count, 1), 0.5, dtype=torch.float64).log()
    return Trajectories(
        {"action": action, "mask": torch.ones(2 * count, 1, dtype=torch.bool), "logp_old": old, "advantage": advantage}
    )


def step(policy: Any, update: TrustRegion, batch: Trajectories) -> float:
    method = vantage.method("trpo").replace(update=update)
    place = context(method=method, policy=policy)
    before = policy.z.detach() * policy.scale
    update(batch, place)
    return float(policy.z.detach() * policy.scale - before)


def test_conjugate_gradients_solve_the_card_s_quadratic() -> None:
    matrix, target = torch.diag(torch.tensor([1.0, 4.0])), torch.tensor([1.0, 2.0])
    x = conjugate_gradient(lambda v: matrix @ v, target, 2)
    assert x.tolist() == pytest.approx([1.0, 0.5], abs=1e-6)
    full = x * (2 * 0.5 / x.dot(matrix @ x)).sqrt()
    assert full.tolist() == pytest.approx([0.7071, 0.3536], abs=1e-4)
    assert float(0.5 * full.dot(matrix @ full)) == pytest.approx(0.5)


def test_conjugate_gradients_are_exact_after_as_many_steps_as_unknowns() -> None:
    torch.manual_seed(0)
    root = torch.randn(9, 9, dtype=torch.float64)
    matrix, target = root @ root.T + 0.1 * torch.eye(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    found = conjugate_gradient(lambda v: matrix @ v, target, 9, tolerance=0.0)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("advantages", "sign"), [((1.0, -1.0), 1), ((-1.0, 1.0), -1), ((100.0, 3.0), 1)])
def test_bernoulli_step_has_the_length_of_the_card_whatever_the_gradient(
    advantages: tuple[float, float], sign: int
) -> None:
    exact = TrustRegion(max_kl=0.01, damping=0.0, fisher_stride=1)
    assert step(Logit(), exact, coin(advantages)) == pytest.approx(sign * 0.2828, abs=1e-4)
    damped = TrustRegion(max_kl=0.01, damping=0.1, fisher_stride=1)
    assert step(Logit(), damped, coin(advantages)) == pytest.approx(sign * 0.2390, abs=1e-4)


def test_step_is_invariant_to_reparametrisation_without_damping() -> None:
    exact = TrustRegion(max_kl=0.01, damping=0.0, fisher_stride=1)
    assert step(Logit(scale=7.0), exact, coin()) == pytest.approx(step(Logit(), exact, coin()), rel=1e-6)


def test_fisher_product_is_the_expected_outer_product_of_scores() -> None:
    policy = Logit(0.7)
    p = torch.sigmoid(torch.tensor(0.7))
    product = TrustRegion(damping=0.0)._fisher(coin(), [policy.z], policy)
    assert float(product(torch.ones(1, dtype=torch.float64))) == pytest.approx(float(p * (1 - p)), rel=1e-6)


def test_no_gradient_no_move() -> None:
    update = TrustRegion(standardize=False)
    assert step(Logit(), update, coin((0.0, 0.0))) == 0.0


def test_a_line_search_that_finds_nothing_restores_the_policy() -> None:
    class Liar(Logit):
        """Its loss gets worse wherever it goes."""

        def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
            evaluation = super().evaluate(batch, want)
            moved = (self.z.detach() != 0).double()
            evaluation.logp = evaluation.logp - moved * torch.where(batch.advantage > 0, 5.0, -5.0)
            return evaluation

    policy = Liar()
    assert step(policy, TrustRegion(), coin()) == 0.0
    assert float(policy.z.detach()) == 0.0


def test_every_update_keeps_the_bound_or_the_policy() -> None:
    method = vantage.method("trpo", rows=4, length=128)
    task = vantage.task("cartpole")
    policy = task.make_policy(seed=0)
    trainer = Trainer(method, task, policy, task.make_engine(policy, seed=0), Schedule(12, evaluate_samples=4))
    returns = []
    for _ in range(12):
        before = [p.detach().clone() for p in policy.parameters()]
        metrics, _ = trainer.step()
        assert metrics["kl/old"] <= 1.5 * 0.01 + 1e-6
        if metrics["trust_region/accepted"] == 0:
            actor = dict(policy.named_parameters())
            moved = [n for (n, p), b in zip(actor.items(), before, strict=True) if not torch.equal(p, b)]
            assert all("critic" in n or "value" in n for n in moved)
        returns.append(metrics.get("episode/return", 0.0))
    assert sum(returns[-3:]) > 2 * sum(returns[:3])


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7])
def test_equal_advantages_are_a_step_refused(value: float) -> None:
    policy = Logit(0.4)
    place = context(method=vantage.method("trpo").replace(update=TrustRegion()), policy=policy)
    TrustRegion()(coin((value, value)), place)
    recorded = place.metrics.collect()
    assert recorded["trust_region/accepted"] == 0.0
    assert recorded["loss/policy"] == 0.0
    assert float(policy.z.detach()) == pytest.approx(0.4, abs=0)


class Softmax(nn.Module):
    """A policy whose logits are linear in the observation."""

    memoryless = True

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        distribution = Categorical(batch.observation @ self.weights)
        logp = distribution.log_prob(batch.action)
        return Evaluation(logp=logp, distribution=distribution, entropy=distribution.entropy())


@cases("trpo")
def test_an_iteration_is_that_of_trpo_mpi(case: Case) -> None:
    """From rewards and values to the new weights: a whole step, one that the line search shrinks, one with an entropy term."""
    names = {"cg_iters": "cg_iterations", "cg_damping": "damping", "ent_coef": "entropy_coefficient"}
    method = registry.page("trpo").build({names.get(name, name): value for name, value in case.settings.items()})

    def row(name: str) -> torch.Tensor:
        return case.tensor(name).unsqueeze(0)

    done, value = row("done"), row("value")
    after = torch.cat([value[:, 1:], torch.full((1, 1), case.inputs["last_value"], dtype=torch.float64)], 1)
    columns = {"reward": row("reward"), "value": value, "next_value": after, "terminated": done}
    columns |= {"truncated": torch.zeros_like(done), "mask": torch.ones_like(done), "observation": row("observation")}
    batch = Trajectories({**columns, "action": row("action").long()})
    policy = Softmax(case.tensor("weights"))
    where = context(method=method, policy=policy)
    old = policy.evaluate(batch, frozenset()).logp.detach()
    batch = method.advantage(batch.replace(logp_old=old), where)
    case.check("returns", batch.returns[0])
    method.update(batch, where)
    case.check("weights", policy.weights)
    assert where.metrics.collect()["trust_region/step"] == (0.125 if case.name == "shrunk step" else 1.0)
