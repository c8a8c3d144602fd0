"""Values, gradients and losses beside libraries that live in environments of their own (`make peers`)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness import context, loss_of
from tests.peers.remote import NAMES, REQUIRED, Peer
from vantage.advantages.estimators import RewardToGo
from vantage.advantages.groups import GroupStandardized, LeaveOneOut
from vantage.core import Evaluation, Trajectories
from vantage.functions.divergences import divergence
from vantage.functions.returns import gae
from vantage.methods import registry
from vantage.objectives.deterministic import AnchoredGradient
from vantage.objectives.surrogates import Clip
from vantage.rollouts.routing import edges
from vantage.tasks.routing.evaluation import symmetries
from vantage.updates.trust_region import conjugate_gradient

DOUBLE = torch.float64


def language(dtype: torch.dtype = DOUBLE) -> Trajectories:
    """Ragged rows of four groups: mixed scores, ties, all equal, and one row alone; ratios far beyond both bounds."""
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor([5, 1, 3, 5, 2, 4, 5, 5, 1, 3, 5, 4, 2])
    rows, steps = len(length), 5
    score = torch.tensor([1.0, 0, 0, 1, 0.5, 0.5, -2, 3, 0.7, 0.7, 0.7, 0.7, 1.0], dtype=dtype)
    mask = torch.arange(steps) < length.unsqueeze(1)
    old = -torch.rand(rows, steps, generator=generator, dtype=dtype) - 0.1
    log = torch.randn(rows, steps, generator=generator, dtype=dtype) * 0.3
    log[0, 0], log[1, 0], log[3, 1], log[6, 2], log[7, 0] = 4.0, 25.0, -6.0, 4.0, -25.0
    last = torch.arange(steps) == (length - 1).unsqueeze(1)
    return Trajectories(
        {
            "mask": mask,
            "length": length,
            "logp_old": old,
            "logp": old + log,
            "logp_ref": old + log.flip(0),
            "group": torch.tensor([0] * 4 + [1] * 4 + [2] * 4 + [3]),
            "prompt": torch.tensor([0] * 4 + [1] * 4 + [2] * 4 + [3]),
            "score": score,
            "reward": torch.where(last, score.unsqueeze(1), 0.0),
            "terminated": last,
            "truncated": torch.zeros_like(mask),
            "advantage": torch.where(mask, (score - score.mean()).unsqueeze(1), 0.0),
        }
    )


def close(one: Tensor, other: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.peers
def test_advantages_of_verl() -> None:
    batch = language()
    given = {"score": batch.score, "mask": batch.mask, "group": batch.group}
    kinds = ("grpo", "rloo", "reinforce_plus_plus")
    theirs = dict(zip(kinds, Peer("verl").call(*(("advantage", {"kind": kind}, given) for kind in kinds)), strict=True))
    # verl lets a group of one learn from its bare score; here it has no baseline and teaches nothing.
    several = batch.group < 3
    close(GroupStandardized(eps=1e-6)(batch, context())[several], theirs["grpo"]["advantage"][several], 1e-5)
    close(LeaveOneOut()(batch, context())[several], theirs["rloo"]["advantage"][several])
    whole = RewardToGo(whiten=True)(batch, context()).advantage
    close(whole, theirs["reinforce_plus_plus"]["advantage"])


MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")


@pytest.mark.peers
def test_losses_of_verl() -> None:
    """PPO's clip with the dual clip and GSPO's, under each averaging: loss and gradient."""
    batch = language()
    given = {"logp": batch.logp, "old": batch.logp_old, "advantage": batch.advantage, "mask": batch.mask}
    settings = [
        {"kind": kind, "mode": mode, "low": 0.2, "high": 0.28, "dual": dual}
        for kind, mode, dual in [*itertools.product(("vanilla",), MODES, (3.0, 10.0)), ("gspo", MODES[1], 3.0)]
    ]
    for one, theirs in zip(
        settings, Peer("verl").call(*(("policy_loss", one, given) for one in settings)), strict=True
    ):
        clip = Clip(0.2, 0.28, level="sequence") if one["kind"] == "gspo" else Clip(0.2, 0.28, dual=float(one["dual"]))
        method = registry.page("grpo").build().replace(objective=clip, averaging=str(one["mode"]), regularizers=())
        logp = batch.logp.clone().requires_grad_()
        loss = loss_of(method, batch, logp=logp)
        loss.backward()
        assert logp.grad is not None
        close(loss, theirs["loss"])
        close(logp.grad, theirs["grad"])


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_divergences_of_verl(kind: str) -> None:
    batch = language()
    theirs = Peer("verl").call(("kl", {"kind": kind}, {"logp": batch.logp, "ref": batch.logp_ref}))[0]
    logp = batch.logp.clone().requires_grad_()
    ours = divergence(logp, batch.logp_ref, kind)
    ours.sum().backward()
    assert logp.grad is not None
    close(ours, theirs["kl"])
    close(logp.grad, theirs["grad"])


@pytest.mark.peers
def test_advantage_estimates_of_torchrl() -> None:
    generator = torch.Generator().manual_seed(1)
    reward, value, following = torch.randn(3, 4, 40, generator=generator, dtype=DOUBLE)
    terminated = torch.rand(4, 40, generator=generator) < 0.08
    truncated = ~terminated & (torch.rand(4, 40, generator=generator) < 0.08)
    given = {
        "reward": reward, "value": value, "next_value": following, "terminated": terminated, "done": terminated | truncated
    }  # fmt: skip
    settings = [{"gamma": 0.99, "lam": 0.95}, {"gamma": 1.0, "lam": 1.0}, {"gamma": 0.9, "lam": 0.0}]
    for one, theirs in zip(settings, Peer("torchrl").call(*(("gae", one, given) for one in settings)), strict=True):
        whole = torch.ones_like(terminated)
        advantage, returns = gae(reward, value, following, terminated, truncated, whole, **one)
        close(advantage, theirs["advantage"])
        close(returns, theirs["returns"])


@pytest.mark.peers
def test_conjugate_gradients_of_sb3_contrib() -> None:
    generator = torch.Generator().manual_seed(2)
    half = torch.randn(12, 12, generator=generator, dtype=DOUBLE)
    matrix, target = half @ half.T + torch.eye(12, dtype=DOUBLE), torch.randn(12, generator=generator, dtype=DOUBLE)
    theirs = Peer("sb3-contrib").call(("solve", {"iterations": 30}, {"matrix": matrix, "target": target}))[0]["x"]
    ours = conjugate_gradient(lambda x: matrix @ x, target, iterations=30)
    # Theirs starts from random numbers of 1e-4 and stops at a squared residual of 1e-10.
    close(ours, theirs, 1e-5)
    close(matrix @ ours, target, 1e-5)


@pytest.mark.peers
def test_routing_of_rl4co() -> None:
    generator = torch.Generator().manual_seed(3)
    places = torch.rand(2, 7, 2, generator=generator, dtype=DOUBLE)
    order = torch.stack([torch.randperm(7, generator=generator) for _ in range(2)])
    reward, logp = torch.randn(2, 3 * 5, generator=generator, dtype=DOUBLE)
    peer = Peer("rl4co")
    length, images, pomo = peer.call(
        ("length", {}, {"places": places, "order": order}),
        ("symmetries", {}, {"places": places}),
        ("pomo", {"starts": 5}, {"reward": reward, "logp": logp}),
    )
    ours = edges("tsp", places, order.unsqueeze(1), torch.full((2, 1), 7)).sum(-1).squeeze(1)
    close(ours, length["length"])

    def rows(found: Tensor) -> list[list[float]]:
        return sorted(found.reshape(len(found), -1).tolist())

    # The order of the eight copies is free.
    close(torch.tensor(rows(symmetries(places))), torch.tensor(rows(images["places"])))
    # Their rows go start by start, ours instance by instance.
    by_instance = torch.arange(15).view(5, 3).T.reshape(-1)
    leaf = logp.clone().requires_grad_()
    batch = Trajectories(
        {
            "mask": torch.ones(15, 1, dtype=torch.bool),
            "length": torch.ones(15, dtype=torch.int64),
            "logp_old": logp[by_instance].unsqueeze(1),
            "group": torch.arange(15) // 5,
            "score": reward[by_instance],
        }
    )
    method = registry.page("pomo").build()
    batch = batch.replace(advantage=method.advantage(batch, context()))
    loss = loss_of(method, batch, logp=leaf[by_instance].unsqueeze(1))
    loss.backward()
    assert leaf.grad is not None
    close(loss, pomo["loss"])
    close(leaf.grad, pomo["grad"])


@pytest.mark.peers
def test_td3_bc_of_d3rlpy() -> None:
    generator = torch.Generator().manual_seed(4)
    action, data = torch.rand(2, 6, 3, generator=generator, dtype=DOUBLE) * 2 - 1
    weight = torch.randn(3, generator=generator, dtype=DOUBLE)
    theirs = Peer("d3rlpy").call(("td3_bc_actor", {"alpha": 2.5}, {"action": action, "data": data, "weight": weight}))[
        0
    ]
    leaf = action.clone().requires_grad_()
    batch = Trajectories({"action": data.unsqueeze(1)})
    held = Evaluation(extras={"mean": leaf.unsqueeze(1), "q_mean": (leaf @ weight).unsqueeze(1)})
    loss = AnchoredGradient(2.5)(held, batch, context()).mean()
    loss.backward()
    assert leaf.grad is not None
    close(loss, theirs["loss"])
    close(leaf.grad, theirs["grad"])


def test_a_missing_peer_is_skipped_or_fails(tmp_path: Path, monkeypatch: Any) -> None:
    peer = Peer("verl", tmp_path)
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="make peers verl"):
        peer.call(("advantage", {}, {}))
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="make peers verl"):
        peer.call(("advantage", {}, {}))


@pytest.mark.parametrize("name", NAMES)
def test_every_peer_has_a_side_and_pins_its_version(name: str) -> None:
    folder = Path(__file__).parent
    assert (folder / "sides" / f"of_{name.replace('-', '_')}.py").is_file()
    lines = (folder / f"{name}.txt").read_text().splitlines()
    assert any(line.startswith(f"{name}==") for line in lines)
    assert all("==" in line or line.startswith("#") for line in lines)
