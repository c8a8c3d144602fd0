"""ST-PPO: the numbers of its card."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import ToyPolicy, toy_batch
from tests.harness import context
from tests.methods.conversations import talk
from tests.methods.family import of_episodes
from tests.methods.rewards.test_otc import in_turns
from tests.methods.toys import assert_resumes, gain
from tests.reference import Case, cases
from vantage.core import Evaluation, Schedule, Trainer, Trajectories, UserError
from vantage.core.loss import backward
from vantage.methods import registry
from vantage.methods.credit.st_ppo import ClippingCorrected, TurnClip
from vantage.objectives.surrogates import Clip, Surrogate
from vantage.tasks.registry import make_task
from vantage.updates.optimizers import SGD


def random_talk(turns: list[list[int]], seed: int = 0, spread: float = 0.5) -> tuple[Trajectories, torch.Tensor]:
    """Conversations with advantages, and new log-probabilities that take gradient."""
    rows = talk(turns, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    noise = torch.randn(rows.mask.shape, generator=generator, dtype=torch.float64)
    advantage = torch.randn(rows.mask.shape, generator=generator, dtype=torch.float64)
    return rows.replace(advantage=advantage), (rows.logp_old + spread * noise).requires_grad_()


def loss(part: Any, rows: Trajectories, logp: torch.Tensor) -> torch.Tensor:
    return torch.where(rows.mask, part(Evaluation(logp=logp), rows, context()), 0.0)


def test_a_turns_ratio_is_the_geometric_mean_of_its_tokens() -> None:
    rows = talk([[2]]).replace(advantage=torch.ones(1, 2, dtype=torch.float64))
    logp = rows.logp_old + torch.tensor([[2.0, 0.5]]).log()
    assert loss(TurnClip(), rows, logp)[0].tolist() == pytest.approx([-1.0, -1.0])
    # Token by token the first is clipped; with the other sign the second.
    assert loss(TurnClip(level="token"), rows, logp)[0].tolist() == pytest.approx([-1.2, -0.5])
    assert loss(TurnClip(level="token"), rows.replace(advantage=-rows.advantage), logp)[0].tolist() == pytest.approx(
        [2.0, 0.8]
    )


def test_one_token_a_turn_is_ppo_and_one_turn_a_row_gspo() -> None:
    rows, logp = random_talk([[1, 1, 1, 1], [1, 1], [1]])
    torch.testing.assert_close(loss(TurnClip(0.2), rows, logp), loss(Clip(0.2), rows, logp))
    torch.testing.assert_close(loss(TurnClip(0.2, "token"), rows, logp), loss(Clip(0.2), rows, logp))
    rows, logp = random_talk([[5], [3], [1]], seed=4)
    torch.testing.assert_close(loss(TurnClip(0.2), rows, logp), loss(Clip(0.2, level="sequence"), rows, logp))


@pytest.mark.parametrize("turn_advantage", [False, True])
def test_unclipped_gradient_is_that_of_the_turn(turn_advantage: bool) -> None:
    rows, logp = random_talk([[3, 2], [4]], spread=0.05)
    part = TurnClip(10.0 if not turn_advantage else 0.9, turn_advantage=turn_advantage)
    loss(part, rows, logp).sum().backward()
    assert logp.grad is not None
    for row in range(2):
        for turn in rows.turn[row].unique().tolist():
            own = rows.mask[row] & (rows.turn[row] == turn)
            ratio = (logp - rows.logp_old)[row, own].mean().exp()
            # w_k (sum of A over the turn / its tokens) for each of its tokens.
            torch.testing.assert_close(
                logp.grad[row, own], (-ratio * rows.advantage[row, own].mean()).detach().expand(int(own.sum()))
            )
    assert not logp.grad[~rows.mask].any()


def test_opposite_advantages_in_a_turn_cancel() -> None:
    rows = talk([[2]]).replace(advantage=torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    logp = (rows.logp_old + torch.tensor([[0.1, -0.05]])).requires_grad_()
    loss(TurnClip(), rows, logp).sum().backward()
    assert logp.grad is not None
    assert logp.grad.abs().max() < 1e-12


@pytest.mark.parametrize("level", ["turn", "token"])
@pytest.mark.parametrize("turn_advantage", [False, True])
def test_what_is_left_and_what_is_removed_are_the_unclipped_gradient(level: str, turn_advantage: bool) -> None:
    rows, logp = random_talk([[3, 2, 4], [4], [2, 2]], spread=0.6)
    part, open_ = TurnClip(0.2, level, turn_advantage), TurnClip(1e9, level, turn_advantage)
    (left,) = torch.autograd.grad(loss(part, rows, logp).sum(), logp)
    removed = torch.where(rows.mask, part.removed(Evaluation(logp=logp), rows), 0.0)
    assert 0 < int((removed != 0).sum()) < int(rows.mask.sum())
    (gone,) = torch.autograd.grad(removed.sum(), logp)
    (whole,) = torch.autograd.grad(loss(open_, rows, logp).sum(), logp)
    torch.testing.assert_close(left + gone, whole)
    if level == "token" and not turn_advantage:
        (plain,) = torch.autograd.grad(loss(Surrogate(), rows, logp).sum(), logp)
        torch.testing.assert_close(whole, plain)


def prepared(
    floor: float | None = 1.0, level: str = "turn", critic: bool = True, **update: Any
) -> tuple[Any, ToyPolicy]:
    policy = ToyPolicy(dtype=torch.float64)
    method = vantage.method("st-ppo", level=level, floor=floor)
    own = {} if floor is None else {"floor": floor}
    method = method.replace(update=type(method.update)(optimizer=SGD(0.1), **own, **update))
    if not critic:
        method = method.replace(values=None)
    where = context(method=method, policy=policy, step=0, total_steps=10)
    method.update.prepare(where)
    return where, policy


def stale(scale: float = 1.0) -> Trajectories:
    rows = toy_batch(12, 4)
    turn = (torch.arange(rows.steps) // 2).expand(rows.mask.shape)
    return rows.replace(turn=turn, advantage=scale * rows.advantage)


def gradient(where: Any, policy: ToyPolicy, rows: Trajectories) -> torch.Tensor:
    for p in policy.parameters():
        p.grad = None
    where.method.update.differentiate(rows, where)
    return torch.cat([p.grad.reshape(-1) for p in policy.parameters() if p.grad is not None])


def bias(where: Any) -> float:
    return float(where.metrics.collect()["bias/norm"])


@pytest.mark.parametrize("level", ["turn", "token"])
def test_the_gradient_is_divided_by_the_norm_of_what_was_removed(level: str) -> None:
    rows = stale()
    where, policy = prepared(1e-6, level, critic=False)
    found = gradient(where, policy, rows)
    norm = bias(where)
    plain_where, _ = prepared(level=level, floor=None, critic=False)
    plain_where.policy = policy
    plain = gradient(plain_where, policy, rows)
    torch.testing.assert_close(found, plain / norm)
    # |C| itself, by autograd over the whole batch.
    logp = policy.evaluate(rows, frozenset({"logp"})).logp
    lost = where.method.objective.removed(Evaluation(logp=logp), rows)
    total = (torch.where(rows.mask, lost, 0.0).sum(1) / rows.mask.sum(1)).mean()
    grads = torch.autograd.grad(total, [policy.embed, policy.head])
    assert norm == pytest.approx(float(torch.cat([g.reshape(-1) for g in grads]).norm()), rel=1e-5)


def test_by_default_no_limit_on_the_norm_undoes_the_division() -> None:
    default = vantage.method("st-ppo").update.max_grad_norm
    assert default is None
    assert vantage.method("st-ppo", max_grad_norm=0.5).update.max_grad_norm == 0.5
    where, policy = prepared(max_grad_norm=default, critic=False)
    with torch.no_grad():  # so stale that the clip removes something, and not nearly everything
        rows = stale(100.0)
        rows = rows.replace(logp_old=policy.evaluate(rows, frozenset({"logp"})).logp + 0.1 * rows.logp_old)
    divided = gradient(where, policy, rows)
    assert bias(where) > 1
    assert divided.norm() > 1
    learning = [p for p in policy.parameters() if p.grad is not None]
    before = torch.cat([p.detach().flatten() for p in learning])
    where.method.update.step(rows, where)
    after = torch.cat([p.detach().flatten() for p in learning])
    torch.testing.assert_close(before - after, 0.1 * divided)


def test_micro_batches_change_nothing() -> None:
    rows = stale()
    where, policy = prepared(1e-6)
    cut, _ = prepared(1e-6, micro_batch=5)
    torch.testing.assert_close(gradient(where, policy, rows), gradient(cut, cut.policy, rows), rtol=1e-6, atol=1e-9)


def test_on_policy_and_below_the_floor_it_is_ppo() -> None:
    where, policy = prepared()
    rows = stale()
    with torch.no_grad():
        rows = rows.replace(logp_old=policy.evaluate(rows, frozenset({"logp"})).logp)
    plain, _ = prepared(floor=None)
    torch.testing.assert_close(gradient(where, policy, rows), gradient(plain, plain.policy, rows))
    assert bias(where) == 0
    halved, _ = prepared(2.0, critic=False)
    alone, _ = prepared(floor=None, critic=False)
    torch.testing.assert_close(2.0 * gradient(halved, halved.policy, rows), gradient(alone, alone.policy, rows))


def test_the_scale_of_advantages_cancels_above_the_floor() -> None:
    one, policy = prepared(1e-6, critic=False)
    two, other = prepared(1e-6, critic=False)
    torch.testing.assert_close(gradient(one, policy, stale()), gradient(two, other, stale(7.0)))
    small, policy = prepared(1e6, critic=False)
    large, other = prepared(1e6, critic=False)
    torch.testing.assert_close(7.0 * gradient(small, policy, stale()), gradient(large, other, stale(7.0)))


def test_the_critic_learns_as_it_does_in_ppo() -> None:
    rows = stale()
    where, policy = prepared(1e-6)
    gradient(where, policy, rows)
    corrected = policy.critic.grad
    plain, other = prepared(floor=None)
    gradient(plain, other, rows)
    assert corrected is not None
    torch.testing.assert_close(corrected, other.critic.grad)
    (alone,) = torch.autograd.grad(_critic_loss(plain, other, rows), [other.critic])
    torch.testing.assert_close(corrected, alone)


def _critic_loss(where: Any, policy: ToyPolicy, rows: Trajectories) -> torch.Tensor:
    values = policy.evaluate(rows, frozenset({"value"}))
    each = where.method.values.loss(values, rows, where)
    return (torch.where(rows.mask, each, 0.0).sum(1) / rows.mask.sum(1)).mean()


def test_the_second_pass_leaves_the_step_metrics_alone() -> None:
    where, policy = prepared()
    gradient(where, policy, stale())
    plain, other = prepared(floor=None)
    backward(stale(), plain, None)
    assert set(where.metrics.collect()) - {"bias/norm"} == set(plain.metrics.collect())
    assert other is not policy


def test_settings_out_of_range_are_refused() -> None:
    for settings, message in (
        ({"level": "row"}, "level='row'"),
        ({"eps": -0.1}, r"eps=-0\.1"),
        ({"floor": 0.0}, r"floor=0\.0"),
    ):
        with pytest.raises(UserError, match=message):
            vantage.method("st-ppo", **settings)
    assert isinstance(vantage.method("st-ppo").update, ClippingCorrected)
    assert not isinstance(vantage.method("st-ppo", floor=None).update, ClippingCorrected)


@pytest.mark.parametrize("level", ["turn", "token"])
def test_it_learns_from_stale_data_and_resumes(tmp_path: Any, level: str) -> None:
    settings = {"level": level, "prompts": 6, "group_size": 16, "lr": 6e-2, "epochs": 4, "minibatches": 2}
    made = in_turns(vantage.method("st-ppo", **settings))
    assert gain(made, 12) > 0.2
    assert_resumes(tmp_path, made)


def test_nothing_follows_an_answer_that_the_length_limit_cut() -> None:
    pytest.importorskip("transformers")
    task = make_task("calculator:terms=2,digits=1", options={"max_new_tokens": 5, "evaluated": 4})
    task.score = lambda rows, where: {"correct": torch.zeros(len(rows))}
    policy: Any = task.make_policy(seed=0)
    made = vantage.method("st-ppo", prompts=12, lam=1.0)
    where = Trainer(made, task, policy, task.make_engine(policy), Schedule(1), seed=1).context
    with torch.no_grad():
        policy.value_head.bias.fill_(0.5)
    rows = where.verify(made.rollout(where))
    cut = rows.truncated.any(-1)
    assert cut.any()
    rows = made.values(made.rewards[0](rows, where), where)
    assert rows.value[rows.mask].tolist() == pytest.approx([0.5] * int(rows.mask.sum()))
    found = made.advantage(rows, where)
    assert found.returns[cut].abs().max() < 1e-6
    assert found.returns[rows.mask].abs().max() < 1e-6


def test_it_runs_on_conversations_of_a_language_model() -> None:
    pytest.importorskip("transformers")
    task = make_task("calculator:terms=2,digits=1", options={"max_new_tokens": 5, "evaluated": 4})
    task.score = lambda rows, where: {"correct": (rows.action[:, 0] % 2).float()}
    policy: Any = task.make_policy(seed=0)
    with torch.no_grad():
        policy.model.lm_head.weight[policy.stop_tokens[0]] += 0.3
    made = vantage.method("st-ppo", prompts=16, lr=1e-2, epochs=3, minibatches=2, micro_batch=4)
    history = Trainer(made, task, policy, task.make_engine(policy), Schedule(2), seed=1).run().history
    assert all(math.isfinite(value) for line in history for value in line.values())
    assert history[-1]["bias/norm"] > 0


def test_the_defaults_compose_what_the_page_states() -> None:
    method = vantage.method("st-ppo")
    values, advantage, clip, update = method.values, method.advantage, method.objective, method.update
    assert (values.coefficient, values.clip) == (0.5, 0.2)
    assert (advantage.gamma, advantage.lam, advantage.whiten) == (1.0, 0.95, True)
    assert (clip.eps, clip.level, clip.turn_advantage) == (0.2, "turn", False)
    assert (update.floor, update.minibatches, update.max_grad_norm) == (1.0, 4, None)
    assert (method.rollout.prompts, method.rollout.size, method.averaging) == (128, 1, "seq-mean-token-mean")
    assert not hasattr(vantage.method("st-ppo", floor=None).update, "floor")


@cases("st-ppo")
def test_advantage_is_verls_over_a_tools_tokens_too(case: Case) -> None:
    made = registry.page("st-ppo").make({"lam": case.settings["lam"]})
    found = made.advantage(of_episodes(case), context())
    case.check("advantages", found.advantage)
