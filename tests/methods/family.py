"""What the tests of GRPO's near relatives share: credit of a batch, equality with TRL, and with stored reference numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vantage
from tests.harness import context, loss_of, new_logp, random_batch
from tests.peers import trl_loss
from tests.reference import Case
from vantage.core import Trajectories
from vantage.functions.rows import at_last, per_decision


def credited(method: vantage.Method, batch: Trajectories) -> Trajectories:
    """The batch with the method's advantage."""
    credit = method.advantage(batch, context(method=method))
    return credit if isinstance(credit, Trajectories) else batch.replace(advantage=credit)


def check_against_trl(method: vantage.Method, kind: str, seed: int, **peer: Any) -> None:
    """Loss and gradient on ragged random rows equal TRL's; padding gets no gradient."""
    batch = random_batch(16, 7, seed=seed, size=4)
    advantage = torch.randn(16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    batch = batch.replace(advantage=advantage.unsqueeze(1) * batch.mask)
    ours, theirs = new_logp(batch, seed), new_logp(batch, seed)
    mine = loss_of(method, batch, logp=ours)
    ref = batch.logp_ref if peer.get("beta") else None
    their = trl_loss(kind, theirs, batch.logp_old, advantage, batch.mask, ref=ref, **peer)
    assert float(mine.detach()) == pytest.approx(float(their.detach()), rel=1e-6)
    mine.backward()
    their.backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)
    assert ours.grad[batch.mask].abs().sum() > 0
    assert (ours.grad[~batch.mask] == 0).all()


def check_groups(method: vantage.Method) -> None:
    """Equal scores teach nothing, and the advantages of a group sum to zero."""
    batch = random_batch(8, 4, size=4)
    assert credited(method, batch.replace(score=torch.ones(8))).advantage.abs().max() == 0
    row = credited(method, batch.replace(score=torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 1]))).advantage[:, 0]
    assert row.abs().max() > 0.1
    assert row.view(2, 4).sum(1).abs().max() < 1e-5


def worked_case(method: vantage.Method) -> list[float]:
    """The advantages of scores 1, 0, 0, 0."""
    batch = random_batch(4, 3, size=4).replace(score=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    return [float(value) for value in credited(method, batch).advantage[:, 0]]


def batch_of(case: Case) -> Trajectories:
    """The inputs of a case as a batch: a row's score is paid at its last token, its advantage [N] to all of them."""
    mask = case.tensor("mask")
    columns: dict[str, Any] = {"mask": mask, "length": mask.sum(1), "truncated": torch.zeros_like(mask)}
    columns["terminated"] = at_last(torch.ones(len(mask)), mask) > 0
    columns |= {name: case.tensor(name) for name in case.inputs if name not in ("mask", "group", "advantage", "logp")}
    if "group" in case.inputs:
        columns["group"] = case.tensor("group", torch.int64)
    if "score" in case.inputs:
        columns["reward"] = at_last(columns["score"], mask).double()
    if "advantage" in case.inputs:
        columns["advantage"] = per_decision(case.tensor("advantage"), mask)
    return Trajectories(columns)


def check_loss(case: Case, method: vantage.Method) -> None:
    """Loss and gradient of a case are theirs. Rows without tokens are dropped first, as the update drops them."""
    batch, logp = batch_of(case), case.tensor("logp").requires_grad_()
    kept = batch.mask.any(1)
    loss = loss_of(method, batch.select(kept), logp=logp[kept])
    loss.backward()
    assert logp.grad is not None
    case.check("loss", loss)
    case.check("grad", logp.grad)


def check_advantage(case: Case, method: vantage.Method) -> None:
    """The advantages [N, T] of a case are theirs."""
    case.check("advantage", credited(method, batch_of(case)).advantage)


def of_episodes(case: Case) -> Trajectories:
    """Whole answers of a case with values; what a tool inserted is outside of the mask."""
    mask, value = case.tensor("mask"), case.tensor("value")
    length = torch.tensor(case.inputs["length"])
    place = torch.arange(mask.shape[1])
    following = torch.where((place > place.unsqueeze(1)) & mask.unsqueeze(1), place, mask.shape[1]).amin(-1)
    zero = torch.zeros(len(mask), 1, dtype=value.dtype)
    over = place == length.unsqueeze(1) - 1
    return Trajectories(
        {
            "mask": mask,
            "length": length,
            "value": value,
            "next_value": torch.cat([value, zero], 1).gather(1, following),
            "reward": case.tensor("reward"),
            "terminated": over,
            "truncated": torch.zeros_like(over),
        }
    )
