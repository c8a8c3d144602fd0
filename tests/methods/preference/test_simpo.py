"""SimPO: the numbers of its card, TRL's loss, and no reference anywhere."""

from __future__ import annotations

import math

import pytest
import torch

import vantage
from tests.harness import context, loss_of, new_logp, random_batch
from tests.methods.preference.peers import trl_simpo_loss
from tests.reference import Case, cases
from vantage.core import Evaluation, Trajectories, UserError
from vantage.methods import registry
from vantage.objectives.preference import ChosenLikelihood


def pair(chosen: list[float], rejected: list[float]) -> tuple[Trajectories, torch.Tensor]:
    longest = max(len(chosen), len(rejected))
    rows = [side + [float("nan")] * (longest - len(side)) for side in (chosen, rejected)]
    logp = torch.tensor(rows, dtype=torch.float64)
    mask = ~logp.isnan()
    return Trajectories({"mask": mask, "group": torch.zeros(2, dtype=torch.int64)}), logp.requires_grad_()


def test_worked_pair() -> None:
    batch, logp = pair([-0.5, -1.5], [-1.0, -2.0, -1.0, -2.0])
    method = vantage.method("simpo", beta=2.0, gamma_beta_ratio=0.5)
    loss = loss_of(method, batch, logp=logp)
    assert float(loss.detach()) == pytest.approx(math.log(2))
    loss.backward()
    assert logp.grad[0, :2].tolist() == pytest.approx([-2.0 / 2 * 0.5] * 2)
    assert logp.grad[1].tolist() == pytest.approx([2.0 / 4 * 0.5] * 4)
    assert logp.grad[0, 2:].tolist() == [0, 0]


def test_doubling_every_token_changes_nothing_here_and_doubles_the_margin_of_dpo() -> None:
    batch, logp = pair([-0.5, -1.5], [-1.0, -2.5, -1.0])
    twice, logp2 = pair([-0.5, -0.5, -1.5, -1.5], [-1.0, -1.0, -2.5, -2.5, -1.0, -1.0])
    simpo = vantage.method("simpo")
    assert float(loss_of(simpo, batch, logp=logp)) == pytest.approx(float(loss_of(simpo, twice, logp=logp2)))

    def margin(rows: Trajectories, values: torch.Tensor) -> float:
        where = context()
        rows = rows.replace(logp_ref=torch.zeros_like(values))
        vantage.method("dpo", beta=1.0).objective(Evaluation(logp=values), rows, where)
        return where.metrics.collect()["pairs/margin"]

    assert margin(twice, logp2) == pytest.approx(2 * margin(batch, logp))


def test_without_margin_and_at_equal_lengths_it_is_dpo_with_a_constant_reference() -> None:
    batch = random_batch(8, 5, size=2)
    batch = batch.replace(mask=torch.ones_like(batch.mask), logp_ref=torch.full_like(batch.logp_ref, -1.7))
    logp = new_logp(batch)
    ours = loss_of(vantage.method("simpo", beta=2.0, gamma_beta_ratio=0.0), batch, logp=logp)
    dpo = loss_of(vantage.method("dpo", beta=2.0 / 5), batch, logp=logp)
    torch.testing.assert_close(ours, dpo)


def test_the_margin_only_shifts_the_argument() -> None:
    batch, logp = pair([-1.0], [-1.8])
    with_margin = loss_of(vantage.method("simpo", beta=2.0, gamma_beta_ratio=0.3), batch, logp=logp)
    shifted, moved = pair([-1.0], [-1.5])
    without = loss_of(vantage.method("simpo", beta=2.0, gamma_beta_ratio=0.0), shifted, logp=moved)
    assert float(with_margin.detach()) == pytest.approx(float(without.detach()))
    (one,), (other,) = torch.autograd.grad(with_margin, logp), torch.autograd.grad(without, moved)
    torch.testing.assert_close(one, other)


def test_hinge_is_flat_beyond_one() -> None:
    batch, logp = pair([-0.1], [-1.0])
    for beta, flat in ((2.0, True), (0.9, False)):
        loss = loss_of(vantage.method("simpo", beta=beta, gamma_beta_ratio=0.0, hinge=True), batch, logp=logp)
        (gradient,) = torch.autograd.grad(loss, logp)
        assert (float(loss.detach()) == 0.0) == flat
        assert bool((gradient == 0).all()) == flat


@pytest.mark.peers
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_are_trls(smoothing: float) -> None:
    for seed in range(3):
        batch = random_batch(10, 7, seed, size=2)
        logp = new_logp(batch, seed)
        ours = loss_of(vantage.method("simpo", beta=2.5, gamma_beta_ratio=0.55, smoothing=smoothing), batch, logp=logp)
        peer = trl_simpo_loss(logp, batch.mask, beta=2.5, gamma=2.5 * 0.55, smoothing=smoothing)
        torch.testing.assert_close(ours, peer, atol=1e-5, rtol=1e-5)
        one, other = (torch.autograd.grad(loss, logp)[0] for loss in (ours, peer))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_likelihood_term_is_the_mean_over_chosen_tokens() -> None:
    batch = random_batch(6, 5, size=2)
    logp = new_logp(batch)
    part = vantage.method("simpo", sft_weight=0.5).regularizers[0]
    assert isinstance(part, ChosenLikelihood)
    found = part(Evaluation(logp=logp), batch, context())
    chosen = torch.cat([logp[row, : int(batch.length[row])] for row in (0, 2, 4)])
    torch.testing.assert_close(found, -0.5 * chosen.mean())


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"coefficient=-0\.1"):
        vantage.method("simpo", sft_weight=-0.1)


def test_the_rate_falls_from_its_full_height_once_it_is_reached() -> None:
    factors = [vantage.method("simpo").update.schedule(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[99] < 1e-3


def test_no_reference_is_asked_for() -> None:
    method = vantage.method("simpo", sft_weight=0.1)
    assert "logp_ref" not in method.declared("columns")
    assert not method.declared("policies")
    run = vantage.train(method, "preference:arms=4,contexts=2,pairs=50", steps=2)
    assert run.outcome.step == 2


def pairs_of(case: Case) -> Trajectories:
    mask = case.tensor("mask")
    return Trajectories({"mask": mask, "length": mask.sum(1), "group": torch.arange(len(mask)) // 2})


@cases("simpo", "loss")
def test_loss_and_gradient_are_the_authors(case: Case) -> None:
    """Their likelihood term is a mean over a device's batch, which is the minibatch here."""
    logp = case.tensor("logp").requires_grad_()
    settings = {name: case.settings[name] for name in ("beta", "gamma_beta_ratio", "sft_weight")}
    settings |= {"smoothing": case.settings["label_smoothing"], "hinge": case.settings["loss_type"] == "hinge"}
    loss = loss_of(registry.page("simpo").make(settings), pairs_of(case), logp=logp)
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, logp)[0])


def test_no_limit_on_the_gradient_acts() -> None:
    update = registry.page("simpo").make().update
    assert update.max_grad_norm is None
    assert type(update.optimizer.build([torch.nn.Parameter(torch.ones(1))])) is torch.optim.Adam
