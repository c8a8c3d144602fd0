"""PPO: the identities of its card, and equality with the peers' formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import vantage
from tests.harness import context, loss_of, random_batch, step_of
from tests.reference import Case, cases
from vantage.core import Method, Trajectories
from vantage.functions.returns import gae
from vantage.functions.surrogates import value_loss
from vantage.functions.whitening import whiten
from vantage.methods import registry
from vantage.objectives.surrogates import Clip


def one(ratio: float, advantage: float, eps: float = 0.2) -> tuple[float, float]:
    """(objective, its gradient in the ratio) of one decision."""
    log = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    batch = random_batch(1, 1, size=1).replace(
        logp_old=torch.zeros(1, 1),
        advantage=torch.tensor([[float(advantage)]]),
        mask=torch.ones(1, 1, dtype=torch.bool),
    )
    method = vantage.method("ppo").replace(objective=Clip(eps), values=None, regularizers=())
    loss = loss_of(method, batch, logp=log)
    loss.backward()
    return -float(loss.detach()), -float(log.grad) / ratio


@pytest.mark.parametrize(
    ("ratio", "advantage", "value"), [(1.5, 2, 2.4), (1.5, -2, -3.0), (0.5, -2, -1.6), (0.5, 2, 1.0)]
)
def test_values_of_the_card(ratio: float, advantage: float, value: float) -> None:
    assert one(ratio, advantage)[0] == pytest.approx(value)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [(1.1, 1, 1), (1.3, 1, 0), (0.5, 1, 1), (0.9, -1, -1), (0.7, -1, 0), (1.5, -1, -1)],
)
def test_gradient_in_the_ratio(ratio: float, advantage: float, gradient: float) -> None:
    assert one(ratio, advantage)[1] == pytest.approx(gradient)


def test_without_clip_it_is_the_importance_weighted_surrogate_and_at_ratio_one_the_policy_gradient() -> None:
    assert one(7.0, 2.0, eps=float("inf"))[0] == pytest.approx(14.0)
    assert one(1.0, 3.0)[1] == pytest.approx(3.0)


def test_generalised_advantages_of_the_card() -> None:
    ones, no = torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool)
    end = torch.tensor([[False, False, True]])
    advantage, _ = gae(ones, torch.zeros(1, 3), torch.zeros(1, 3), end, no, ~no, 0.5, 0.5)
    assert advantage[0].tolist() == pytest.approx([1.3125, 1.25, 1.0])


def test_value_clipping_of_the_card() -> None:
    v = torch.tensor([0.5], requires_grad=True)
    loss = value_loss(v, torch.tensor([1.0]), torch.tensor([0.0]), 0.2)
    assert float(loss) == pytest.approx(0.32)
    loss.backward()
    assert float(v.grad) == 0.0


def test_minibatch_normalisation_makes_the_gradient_blind_to_scale_and_shift() -> None:
    torch.manual_seed(0)
    raw, mask = torch.randn(64, 1, dtype=torch.float64), torch.ones(64, 1, dtype=torch.bool)
    torch.testing.assert_close(whiten(raw, mask), whiten(3.0 * raw - 7.0, mask), rtol=1e-6, atol=1e-6)
    assert float(whiten(raw, mask).std()) == pytest.approx(1.0, abs=1e-6)


def test_loss_equals_stable_baselines_and_cleanrl() -> None:
    """Their training steps, written out from their sources' formulas, on random inputs; gradients included."""
    torch.manual_seed(1)
    count = 128
    logits = torch.randn(count, 3, dtype=torch.float64, requires_grad=True)
    value = torch.randn(count, dtype=torch.float64, requires_grad=True)
    action = torch.randint(3, (count,))
    old, old_value = -torch.rand(count, dtype=torch.float64) - 0.5, torch.randn(count, dtype=torch.float64)
    raw, returns = torch.randn(count, dtype=torch.float64), torch.randn(count, dtype=torch.float64)
    eps, c1, c2 = 0.2, 0.5, 0.01

    def peer(clip_value: bool) -> torch.Tensor:
        distribution = torch.distributions.Categorical(logits=logits)
        logp = distribution.log_prob(action)
        scaled = (raw - raw.mean()) / (raw.std() + 1e-8)
        ratio = torch.exp(logp - old)
        policy = torch.max(-scaled * ratio, -scaled * torch.clamp(ratio, 1 - eps, 1 + eps)).mean()
        if clip_value:  # CleanRL's form
            clipped = old_value + torch.clamp(value - old_value, -eps, eps)
            critic = 0.5 * torch.max((value - returns) ** 2, (clipped - returns) ** 2).mean()
        else:  # Stable-Baselines3's form: plain squared error, with vf_coef 0.5 standing for CleanRL's 0.5 * 0.5 * 2
            critic = 0.5 * F.mse_loss(returns, value)
        return policy - c2 * distribution.entropy().mean() + c1 * critic

    for clip_value in (True, False):
        method = vantage.method("ppo", clip_value=clip_value, eps=eps, value_coefficient=c1, entropy_coefficient=c2)
        logs = logits.log_softmax(-1)
        mask = torch.ones(count, 1, dtype=torch.bool)
        batch = Trajectories(
            {
                "mask": mask,
                "logp_old": old.unsqueeze(1),
                "advantage": whiten(raw.unsqueeze(1), mask),
                "returns": returns.unsqueeze(1),
                "value": old_value.unsqueeze(1),
            }
        )
        mine = loss_of(
            method,
            batch,
            logp=logs.gather(1, action.unsqueeze(1)),
            entropy=-(logs.exp() * logs).sum(-1, keepdim=True),
            value=value.unsqueeze(1),
        )
        theirs = peer(clip_value)
        assert float(mine.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
        for a, b in zip(
            torch.autograd.grad(mine, (logits, value)), torch.autograd.grad(theirs, (logits, value)), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_it_learns_cartpole() -> None:
    method = vantage.method(
        "ppo", rows=16, length=64, minibatches=4, epochs=6, lr=4e-3, gamma=0.98, lam=0.9, clip_value=False
    )
    run = vantage.train(method, "cartpole", steps=16_000, seed=0, evaluate_samples=4)
    assert run.outcome.history[0]["eval/return"] < 100
    assert run.outcome.history[-1]["eval/return"] > 300


@cases("ppo", "gae")
def test_returns_are_ppo2s(case: Case) -> None:
    """Episodes that end anywhere, one right after the other, and one that ends with the batch."""
    done, value = case.tensor("done"), case.tensor("value")
    after = torch.cat([value[:, 1:], case.tensor("last_value").unsqueeze(1)], 1)
    columns = {"reward": case.tensor("reward"), "value": value, "next_value": after, "terminated": done}
    batch = Trajectories({**columns, "truncated": torch.zeros_like(done), "mask": torch.ones_like(done)})
    found = registry.page("ppo").build(case.settings).advantage(batch, context())
    case.check("returns", found.returns)
    case.check("advantage", found.advantage)


@cases("ppo", "sb3")
def test_the_step_is_that_of_stable_baselines(case: Case) -> None:
    """Its value loss has no half in front and is not clipped; its advantages are standardised by the sample's deviation."""
    theirs = case.settings
    settings = {"entropy_coefficient": theirs["ent_coef"], "value_coefficient": 2 * theirs["vf_coef"]}
    settings |= {"eps": theirs["cliprange"], "max_grad_norm": theirs["max_grad_norm"], "clip_value": False}
    method = registry.page("ppo").build({**settings, "update.normalize_advantage": True})
    check_step(method, case)


@cases("ppo", "step")
def test_the_step_is_ppo2s(case: Case) -> None:
    """Advantages standardised by the population's deviation, ratios and values beyond both bounds, the gradient's norm clipped."""
    names = {"ent_coef": "entropy_coefficient", "vf_coef": "value_coefficient", "cliprange": "eps"}
    method = registry.page("ppo").build({names.get(name, name): value for name, value in case.settings.items()})
    batch, outputs = check_step(method, case)
    standard = torch.tensor(case.outputs["advantage"], dtype=torch.float64).unsqueeze(1)
    case.check("loss", loss_of(method, batch.replace(advantage=standard), **outputs))


def check_step(method: Method, case: Case) -> tuple[Trajectories, dict[str, torch.Tensor]]:
    """Compare the three gradients of one optimiser step; return the batch and the policy's outputs."""
    old, returns = case.tensor("value_old").unsqueeze(1), case.tensor("returns").unsqueeze(1)
    columns = {"logp_old": case.tensor("logp_old").unsqueeze(1), "value": old, "returns": returns}
    batch = Trajectories({**columns, "advantage": returns - old, "mask": torch.ones_like(old, dtype=torch.bool)})
    outputs = {name: case.tensor(name).unsqueeze(1) for name in ("logp", "value", "entropy")}
    slopes = step_of(method, batch, **outputs)
    assert set(slopes) == set(outputs)
    for name, slope in slopes.items():
        case.check(f"{name}_grad", slope.squeeze(1))
    return batch, outputs
