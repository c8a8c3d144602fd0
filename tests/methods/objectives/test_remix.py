"""ReMix: the numbers of its card."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import vantage
from tests.harness import context, loss_of, random_batch
from tests.methods.toys import assert_resumes, gain, trainer
from vantage.core import Evaluation, Trajectories, UserError
from vantage.core.checkpoint import load_tensors
from vantage.methods.objectives.remix import CentredClip, ConvexKL, convex_weight
from vantage.updates.phases import Until


def clip_gradient(ratio: float, advantage: float, centre: float) -> float:
    """Gradient in logp of one token of this ratio to the policy that wrote it."""
    batch = random_batch(1, 1, size=1).replace(
        mask=torch.ones(1, 1, dtype=torch.bool),
        logp_old=torch.zeros(1, 1, dtype=torch.float64),
        logp_current=torch.tensor([[centre]], dtype=torch.float64).log(),
        advantage=torch.tensor([[advantage]], dtype=torch.float64),
    )
    logp = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    CentredClip(0.2)(Evaluation(logp=logp), batch, context()).sum().backward()
    assert logp.grad is not None
    return float(logp.grad)


def test_clip_edges_move_with_the_centre() -> None:
    assert clip_gradient(1.69, 1.0, 1.5) == pytest.approx(-1.69)
    assert clip_gradient(1.71, 1.0, 1.5) == 0
    assert clip_gradient(1.31, -1.0, 1.5) == pytest.approx(1.31)
    assert clip_gradient(1.29, -1.0, 1.5) == 0
    # A stale token at the present policy stands in the middle, where a clip around 1 would stop it at once.
    assert clip_gradient(1.5, 1.0, 1.5) == pytest.approx(-1.5)
    assert clip_gradient(1.5, 1.0, 1.0) == 0


def test_weight_of_the_base() -> None:
    assert [convex_weight(t) for t in (1, 50, 51, 60, 71, 91, 500)] == pytest.approx([1, 1, 0.9, 0.9, 0.7, 0.5, 0.5])


@pytest.mark.parametrize("step", [0, 75, 200])
def test_divergence_is_a_mixture_and_vanishes_at_its_anchors(step: int) -> None:
    batch = random_batch(4, 3)
    where: Any = SimpleNamespace(**vars(context()), step=step)
    lam = convex_weight(step + 1)

    def term(logp: Tensor, base: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        logp = logp.detach().clone().requires_grad_()
        found = ConvexKL(0.5)(Evaluation(logp=logp), batch.replace(logp_ref=base, logp_under_previous=previous), where)[
            batch.mask
        ]
        found.sum().backward()
        assert logp.grad is not None
        return found.detach(), logp.grad[batch.mask]

    value, gradient = term(batch.logp_old, batch.logp_ref, batch.logp_old)
    u = (batch.logp_ref - batch.logp_old)[batch.mask]
    torch.testing.assert_close(value, 0.5 * lam * (u.exp() - 1 - u))
    torch.testing.assert_close(gradient, 0.5 * lam * (1 - u.exp()))
    value, gradient = term(batch.logp_old, batch.logp_old, batch.logp_old)
    assert value.abs().max() == 0
    assert gradient.abs().max() == 0


def test_without_replay_and_at_weight_one_it_is_grpo(tmp_path) -> None:
    common: dict[str, Any] = {"prompts": 6, "group_size": 8, "lr": 1e-2, "beta": 0.1, "minibatches": 2}
    mine = vantage.method("remix", share=0.0, passes=1, until=10**6, **common)
    for name, method in (("remix", mine), ("grpo", vantage.method("grpo", **common))):
        (tmp_path / name).mkdir()
        trainer(method, 6, tmp_path / name).run()
    left, right = (
        load_tensors(tmp_path / name / "checkpoints/step-00000006/policy.safetensors") for name in ("remix", "grpo")
    )
    for key in right:
        torch.testing.assert_close(left[key], right[key], rtol=1e-4, atol=1e-6)


def watched(method: vantage.Method, steps: int) -> tuple[Any, list[Trajectories]]:
    seen: list[Trajectories] = []
    trained = trainer(method, steps)
    kept = trained.context.method.selection
    trained.context.method = trained.context.method.replace(selection=(*kept, lambda b, c: seen.append(b) or b))
    return trained, seen


def test_fresh_rows_have_centre_one_and_stale_rows_that_of_the_present_policy() -> None:
    trained, seen = watched(vantage.method("remix", prompts=8, group_size=4, lr=3e-2), 6)
    for _ in range(6):
        trained.step()
        batch = seen[-1]
        fresh = batch.age == 0
        assert torch.equal(batch.logp_current[fresh], batch.logp_old[fresh])
        if (~fresh).any():
            # The road keeps the policy before the update under this name.
            held = trained.context.evaluate(batch, policy=trained.context.named("previous"))
            torch.testing.assert_close(batch.logp_current[~fresh], held[~fresh])
            assert (batch.logp_current - batch.logp_old)[~fresh].abs().max() > 1e-3
    assert any((batch.age > 0).any() for batch in seen)


def test_previous_is_the_policy_of_one_step_earlier() -> None:
    trained, seen = watched(vantage.method("remix", prompts=6, group_size=4, lr=3e-2, share=0.0), 4)
    before = trained.context.policy.frozen()
    for step in range(3):
        now = trained.context.policy.frozen()
        trained.step()
        anchor = before if step else now  # in the first step there is none before it
        torch.testing.assert_close(seen[-1].logp_under_previous, trained.context.evaluate(seen[-1], policy=anchor))
        before = now


def test_reincarnation_swaps_base_data_and_passes() -> None:
    method = vantage.method("remix", prompts=6, group_size=4, lr=3e-2, share=0.5, until=4, passes=3)
    trained, seen = watched(method, 8)
    history = trained.run().history
    assert [line.get("reincarnated", 0.0) for line in history[1:]] == [0, 0, 0, 1.0, 0, 0, 0, 0]
    assert any((batch.age > 0).any() for batch in seen[1:4])
    assert all((batch.age == 0).all() for batch in seen[4:])
    # In the step after it, base and previous policy differ by that one step alone, and the first minibatch by none.
    torch.testing.assert_close(seen[4].logp_ref, seen[4].logp_old)
    assert history[4]["kl/base"] > 10 * history[5]["kl/base"] >= 0
    epochs = trained.context.method.update.epochs
    assert [epochs(SimpleNamespace(step=s)) for s in (0, 3, 4)] == [3, 3, 1]


def test_named_policies_that_no_checkpoint_needs_are_removed(tmp_path) -> None:
    method = vantage.method("remix", prompts=3, group_size=4, lr=1e-2, until=3)
    trainer(method, 8, tmp_path).run()
    files = sorted(path.name for path in (tmp_path / "policies").iterdir())
    # Two checkpoints are kept, of steps 6 and 8; the base was taken after step 3 and written at step 4.
    assert files == [
        "previous-00000006.safetensors",
        "previous-00000008.safetensors",
        "reference-00000004.safetensors",
    ]


def test_a_phase_ends_where_it_should() -> None:
    with pytest.raises(UserError, match="step=-1"):
        Until(-1, 1, 2)


def test_settings_out_of_range_are_refused() -> None:
    # Also those that the run alone reads, once its phase has come.
    for settings in ({"share": 1.0}, {"share": -0.1}, {"passes": 0}, {"eps": -0.2}, {"beta": -0.01}, {"until": -1}):
        with pytest.raises(UserError, match=str(next(iter(settings.values())))):
            vantage.method("remix", **settings)


def test_entropy_bonus_and_loss_are_composed() -> None:
    method = vantage.method("remix", beta=0.0, entropy=0.01)
    batch = random_batch(4, 3).replace(advantage=torch.zeros(4, 3))
    batch = batch.replace(logp_current=batch.logp_old)
    loss = loss_of(method, batch, logp=batch.logp_old, entropy=torch.ones(4, 3))
    assert float(loss) == pytest.approx(-0.01)


def test_it_learns_and_resumes_across_the_reincarnation(tmp_path) -> None:
    method = vantage.method("remix", prompts=6, group_size=8, lr=3e-2, until=10, beta=0.01)
    assert gain(method, 40) > 0.3
    small = vantage.method("remix", prompts=4, group_size=4, lr=3e-2, until=3)
    assert_resumes(tmp_path, small, steps=8, at=4)
    (tmp_path / "early").mkdir()
    assert_resumes(tmp_path / "early", small, steps=8, at=2)
