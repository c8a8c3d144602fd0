"""Rows are scored once, as the method's rewards do it, whoever asks; and what has no reward is learnt from nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import ToyEngine, ToyPolicy, ToyTask, toy_method
from tests.harness import context, random_batch
from vantage.advantages.groups import GroupStandardized, LeaveOneOut
from vantage.core import Method, Schedule, Trainer, TrainingError, Trajectories, UserError
from vantage.core.scoring import memory_kept, scored
from vantage.methods import registry
from vantage.methods.credit.poise import HiddenProbe
from vantage.methods.generative.branchgrpo import node_values
from vantage.methods.objectives.dcpo import SmoothStandardized
from vantage.methods.objectives.oblr_po import weighted_baseline
from vantage.methods.objectives.riskpo import BundleRisk
from vantage.methods.preference.rebel import Whiten, both_scored
from vantage.methods.rewards.grpo_lambda import BestSolvedShorter
from vantage.methods.sampling.repo_replay import FreshRecorded, PromptReplay
from vantage.rewards.mixing import DivergencePenalty, Overlong, Total
from vantage.rollouts.pairs import Duels
from vantage.rollouts.plans import Groups, Refill
from vantage.rollouts.replay import RecentReplay

NAN = float("nan")


class TwoRewards(ToyTask):
    """Right where the first symbol is even; well formed where it is above 2."""

    def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
        first = batch.action[:, 0]
        return {"correct": (first % 2 == 0).float(), "format": (first > 2).float()}


class Always(ToyTask):
    """Every answer is right."""

    def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
        return {"correct": torch.ones(len(batch))}


def trainer(method: Method, task: ToyTask | None = None, steps: int = 4) -> Trainer:
    torch.manual_seed(0)
    policy = ToyPolicy()
    return Trainer(method, task or TwoRewards(), policy, ToyEngine(policy), Schedule(steps), seed=5)


def learnt(run: Trainer) -> tuple[Trajectories, dict[str, float]]:
    """One step: what it learnt from, and its metrics."""
    metrics, _ = run.step()
    assert run._batch is not None
    return run._batch, metrics


def total(**weights: float) -> Total:
    return Total(weights)


# Who scores rows itself goes by the method's rewards ------------------------------------------------------------------


def test_remax_a_right_answer_whose_greedy_twin_is_right_has_advantage_0_under_a_weight() -> None:
    parts = {"rewards.0.weights": {"correct": 0.5}}
    method = vantage.method("remax", prompts=3, group_size=4, parts=parts)
    batch, metrics = learnt(trainer(method, Always()))
    assert batch.score.tolist() == batch["baseline"].tolist() == [0.5] * 12
    assert not batch.advantage.any()
    assert metrics["greedy/score"] == metrics["score"] == 0.5


def test_vineppo_values_are_weighted_like_scores() -> None:
    method = vantage.method("vineppo", prompts=3, group_size=2, count=3, steps="tokens", unfinished=None)
    batch, metrics = learnt(trainer(method.replace(rewards=(total(correct=0.5),)), Always()))
    inside = torch.arange(4) < batch.length.unsqueeze(1)
    assert batch.score.tolist() == [0.5] * 6
    assert set(batch.value[inside].tolist()) == {0.5}
    assert metrics["vine/score"] == 0.5


def test_igrpo_scaffolded_and_duels_go_by_the_weights() -> None:
    only_format = (total(correct=0.0),)
    draft = vantage.method("igrpo", prompts=3, group_size=2, drafts=3, template="{prompt}{draft}")
    run = trainer(draft.replace(rewards=only_format))
    with pytest.raises((TypeError, ValueError)):  # the toy's prompts are numbers, which no text can be put into
        run.context.method.rollout(run.context)
    drafted = run.context.metrics.collect()
    assert drafted["draft/mean"] == drafted["draft/score"] == drafted["draft/reward/format"]
    run = trainer(vantage.method("nash-mp", prompts=4, group_size=2).replace(rewards=(total(correct=0.0, format=0.0),)))
    batch, metrics = learnt(run)
    assert batch["win"].tolist() == [0.5] * 8
    assert metrics["opponent/score"] == 0.0
    scaffolded = vantage.method("scaf-grpo", prompts=3, group_size=4, warmup=0, right_at=0.5)
    run = trainer(scaffolded.replace(rewards=(total(correct=0.5),)), Always())
    _, metrics = learnt(run)
    assert metrics["rescue/failed"] == 0.0  # a right answer scores 0.5, which is what counts as right here


def test_dynamic_sampling_drops_groups_that_differ_in_a_reward_of_weight_0_alone() -> None:
    kept = trainer(toy_method(rollout=Refill(Groups(3, 8), 3, 2), rewards=(total(correct=0.0),)))
    batch, metrics = learnt(kept)
    assert (batch.rewards["format"].view(-1, 8).std(1) > 0).all()
    assert metrics["drawn/score"] == pytest.approx(metrics["drawn/reward/format"])
    nothing = trainer(toy_method(rollout=Refill(Groups(3, 8), 3, 2), rewards=(total(correct=0.0, format=0.0),)))
    batch, metrics = learnt(nothing)
    assert metrics["rollout/informative"] == 0.0
    assert not batch.advantage.any()


def test_dynamic_sampling_by_a_named_reward() -> None:
    run = trainer(toy_method(rollout=Refill(Groups(3, 3), 3, 8, "format"), rewards=(total(format=0.0),)))
    batch, _ = learnt(run)
    assert (batch.rewards["format"].view(-1, 3).std(1) > 0).all()
    with pytest.raises(UserError, match=r"Refill\.metric='formal' is no reward of the task; did you mean format\?"):
        trainer(toy_method(rollout=Refill(Groups(3, 3), 3, 1, "formal"))).step()
    assert vantage.method("dapo", metric="correct").rollout.metric == "correct"


@pytest.mark.parametrize("name", ["dapo", "treepo"])
def test_the_logged_score_is_that_of_the_rows_learnt_from(name: str) -> None:
    settings = {"prompts": 3, "group_size": 8, "minibatches": 1, "rounds": 3}
    method = vantage.method(name, **settings)
    if name == "treepo":
        plain = {"rewards": method.rewards[:1], "advantage": GroupStandardized()}
        method = method.replace(rollout=Refill(Groups(3, 8), 3, 3), **plain)
    batch, metrics = learnt(trainer(method, Sometimes()))
    assert metrics["score"] == pytest.approx(float(batch.score.mean()))
    assert metrics["reward/correct"] == pytest.approx(float(batch.rewards["correct"].mean()))
    assert metrics["drawn/score"] < metrics["score"]


class Sometimes(ToyTask):
    """Prompts 0 and 1 can be solved; the others never are."""

    def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
        return {"correct": ((batch.action[:, 0] % 2 == 0) & (batch.prompt < 2)).float()}


@dataclass(frozen=True)
class Counting:
    """A reward that remembers how many rows it has seen."""

    _memory: dict[str, int] = field(
        default_factory=lambda: {"rows": 0, "calls": 0}, init=False, repr=False, compare=False
    )

    def __call__(self, batch: Trajectories, context: Any) -> Trajectories:
        self._memory["rows"] += len(batch)
        self._memory["calls"] += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        return dict(self._memory)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._memory.update(state)


@pytest.mark.parametrize(
    "rollout",
    [Groups(3, 8), Refill(Groups(3, 8), 3, 3), PromptReplay(Groups(3, 8), 8, 2, 2), RecentReplay(Groups(3, 8), 0.5)],
    ids=lambda plan: type(plan).__name__,
)
def test_a_reward_with_memory_sees_what_is_learnt_from_once(rollout: Any) -> None:
    run = trainer(toy_method(rollout=rollout, rewards=(Total(), Counting())))
    batch, _ = learnt(run)
    assert run.context.method.rewards[1].state_dict() == {"rows": len(batch), "calls": 1}


def test_a_recorded_reward_with_memory_sees_fresh_rows_once() -> None:
    plan = PromptReplay(Groups(3, 8), 8, 2, 2)
    run = trainer(toy_method(rollout=plan, rewards=(Total(), FreshRecorded(Counting()))))
    batch, _ = learnt(run)
    assert run.context.method.rewards[1].reward.state_dict() == {"rows": len(batch), "calls": 1}


def test_memory_is_kept_when_scoring_fails() -> None:
    counting = Counting()

    def fail() -> None:
        with memory_kept(counting):
            counting(random_batch(4), context())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert counting.state_dict() == {"rows": 0, "calls": 0}


def test_replay_chooses_by_the_weighted_score() -> None:
    run = trainer(toy_method(rollout=PromptReplay(Groups(6, 8), 8, 8, 2), rewards=(total(correct=0.0),)))
    where = run.context
    where.method.rollout(where)
    held = where.method.rollout._memory["queues"].table.rows.to("cpu")
    assert torch.equal(held.score, held.rewards["format"])
    batch = where.method.rollout(where)
    old = batch.select(batch.source == 1)
    assert len(old) == 12
    for prompt in old.prompt.unique().tolist():
        best = held.rewards["format"][held.prompt == prompt].topk(2).values
        assert float(old.rewards["format"][old.prompt == prompt].sum()) == float(best.sum())


def test_columns_that_a_reward_declares_are_filled_for_rows_scored_aside() -> None:
    rewards = (Total(), DivergencePenalty(0.5))
    batch, metrics = learnt(trainer(toy_method(rollout=Refill(Groups(3, 8), 3, 3), rewards=rewards)))
    # The penalty is paid once: the policy is still the reference, so the divergence is 0 up to rounding.
    assert metrics["drawn/kl/reference"] == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(batch.score, batch.rewards["correct"] + batch.rewards["format"], atol=1e-5, rtol=0)


# Missing is not zero -------------------------------------------------------------------------------------------------


def missing(scores: list[float], size: int = 4, **named: list[float]) -> Trajectories:
    """Rows in groups of `size` whose named reward `correct` is as given."""
    batch = random_batch(len(scores), 3, size=size, dtype=torch.float32)
    rewards = {"correct": torch.tensor(scores), **{name: torch.tensor(value) for name, value in named.items()}}
    return batch.replace(rewards=rewards, prompt=batch.group, score=None)


def test_a_row_without_reward_is_left_out_of_its_group() -> None:
    batch = Total()(missing([1.0, 0.0, NAN, 1.0]), context())
    assert batch.score.tolist()[:2] == [1.0, 0.0]
    assert batch.score.isnan().tolist() == [False, False, True, False]
    assert not batch.reward.isnan().any()
    first = torch.arange(len(batch)), batch.mask.long().argmax(1)
    credit = GroupStandardized("none")(batch, context())
    assert credit[first].tolist() == pytest.approx([1 / 3, -2 / 3, 0.0, 1 / 3], abs=1e-6)
    std = (1 / 3) ** 0.5
    assert GroupStandardized(eps=0.0)(batch, context())[first].tolist() == pytest.approx(
        [1 / 3 / std, -2 / 3 / std, 0.0, 1 / 3 / std], abs=1e-6
    )
    assert LeaveOneOut()(batch, context())[first].tolist() == pytest.approx([0.5, -1.0, 0.0, 0.5], abs=1e-6)


def test_one_of_two_rewards_missing_leaves_the_other() -> None:
    where: Any = context()
    batch = Total({"format": 2.0})(missing([1.0, NAN, NAN, 0.0], format=[0.5, 0.5, NAN, NAN]), where)
    assert batch.score.tolist()[:2] == [2.0, 1.0]
    assert batch.score.isnan().tolist() == [False, False, True, False]
    metrics = where.metrics.collect()
    assert metrics == {"reward/correct": 0.5, "reward/format": 0.5, "score": 1.0}
    # A reward of weight 0 is no reward.
    alone = Total({"format": 0.0})(missing([1.0, NAN, NAN, 0.0], format=[0.5, 0.5, NAN, NAN]), context())
    assert alone.score.isnan().tolist() == [False, True, True, False]


class NoneOfSome(ToyTask):
    """No verdict on odd prompts' answers that begin with an even symbol."""

    def fields(self, ids: torch.Tensor) -> list[dict[str, Any]]:
        return [{} for _ in ids]

    def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
        first = batch.action[:, 0]
        unknown = (batch.prompt % 2 == 1) & (first % 2 == 0)
        return {"correct": (first > 1).float().masked_fill(unknown, NAN)}


@pytest.mark.parametrize("rollout", [Groups(6, 8), Refill(Groups(6, 8), 6, 2)], ids=["groups", "refill"])
def test_the_loop_learns_nothing_from_a_row_without_reward(rollout: Any) -> None:
    run = trainer(toy_method(rollout=rollout, rewards=(Total(), Overlong(2))), NoneOfSome())
    batch, metrics = learnt(run)
    lacks = batch.rewards["correct"].isnan()
    assert 0 < int(lacks.sum()) < len(batch)
    assert not batch.mask[lacks].any()
    assert not batch.advantage[lacks].any()
    assert torch.isfinite(batch.advantage).all()
    assert metrics["reward/missing"] == pytest.approx(float(lacks.float().mean()))
    assert metrics["score"] == pytest.approx(float(batch.rewards["correct"].nanmean()))


def test_a_step_without_any_reward_ends_the_run() -> None:
    class Nothing(ToyTask):
        def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
            return {"correct": torch.full((len(batch),), NAN)}

    with pytest.raises(TrainingError, match="step 1: none of the 24 rows has a reward"):
        trainer(toy_method(), Nothing()).run()


PAGES: dict[str, dict[str, Any]] = {
    "grpo": {}, "dr-grpo": {}, "rloo": {}, "dapo": {"rounds": 2}, "gspo": {}, "dcpo": {}, "gdpo": {}, "remax": {}, "disco": {},
    "riskpo": {"bundle": 2}, "oblr-po": {"pieces": 2}, "reinforce-plus-plus": {}, "grpo-lambda": {}, "r2vpo": {},
    "repo-replay": {"capacity": 8, "least": 2, "take": 2}, "remix": {}, "rebel": {"whiten": True}, "poise": {},
    "spo-single-stream": {"samples": 0}, "nash-mp": {}, "ppo": {}, "reinforce": {}, "a2c": {},
    "scaf-grpo": {"warmup": 0}, "vineppo": {"count": 2, "steps": "tokens"}, "t-ppo": {"rows": 12, "window": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PAGES))
def test_pages_learn_from_a_batch_with_missing_rewards(name: str) -> None:
    settings = {"prompts": 6, "group_size": 4, "minibatches": 1, "rows": 12, **PAGES[name]}
    known = set(registry.page(name).settings())
    method = vantage.method(name, **{key: value for key, value in settings.items() if key in known})
    run = trainer(method, NoneOfSome())
    for _ in range(3):
        metrics, _ = run.step()
        losses = {key: value for key, value in metrics.items() if key.startswith(("loss/", "grad"))}
        assert losses
        assert all(value == value for value in losses.values()), losses
    assert all(torch.isfinite(parameter).all() for parameter in run.context.policy.parameters())


def test_dcpo_a_visit_without_scores_is_none() -> None:
    part = SmoothStandardized()
    scores = [1.0, 0.0, NAN, 1.0, NAN, NAN, NAN, NAN]
    batch = Total()(missing(scores), context())
    credit = part(batch, context())
    held = part._records.read(torch.tensor([0, 1]))
    assert held["visits"].tolist() == [1.0, 0.0]
    assert held["mean"].tolist() == pytest.approx([2 / 3, 0.0], abs=1e-6)
    assert not credit[4:].any()
    # On the next visit of prompt 1 its share of the past is nothing.
    again = Total()(missing([1.0, 0.0, NAN, 1.0, 1.0, 0.0, NAN, 1.0]), context())
    part(again, context())
    held = part._records.read(torch.tensor([0, 1]))
    assert held["visits"].tolist() == [2.0, 1.0]
    assert held["mean"].tolist() == pytest.approx([2 / 3, 2 / 3], abs=1e-6)


def test_pairs_baselines_papers_and_trees() -> None:
    batch = Total()(missing([1.0, NAN, 0.0, 1.0], size=2), context())
    assert both_scored(batch, context()).score.isnan().tolist() == [True, True, False, False]
    white = Whiten()(batch, context()).score
    expected = torch.tensor([1.0, 0.0, 1.0])
    expected = (expected - expected.mean()) * torch.rsqrt(expected.var(correction=0) + 1e-8) + expected.mean()
    torch.testing.assert_close(white[torch.tensor([0, 2, 3])], expected)
    found = weighted_baseline(batch.score, torch.tensor([1.0, 9.0, 1.0, 3.0]), torch.zeros(4).long())
    # Row 0 is compared with 0 and 1 of weights 1 and 3; row 3 with 1 and 0 of weights 1 and 1.
    assert found[0].item() == pytest.approx(0.75)
    assert found[3].item() == pytest.approx(0.5)
    group = Total()(missing([1.0, 0.0, NAN, 1.0]), context())
    lowered = BestSolvedShorter(1.0)(group.replace(length=torch.tensor([3, 3, 3, 3])), context())
    assert lowered.score.isnan().tolist() == [False, False, True, False]
    credit = BundleRisk(2)(Total()(missing([1.0, 0.0, NAN, 1.0, 1.0, 1.0, 1.0, 0.0]), context()), context())
    assert torch.isfinite(credit).all()
    assert HiddenProbe(memory=0)(group, context()).value.isfinite().all()


def test_a_leaf_without_score_is_left_out_of_its_tree() -> None:
    edge = torch.tensor([[0, 1], [0, 2], [3, 4], [3, 5]])
    batch = Trajectories({"edge": edge, "group": torch.zeros(4).long(), "score": torch.tensor([1.0, NAN, 0.0, 1.0])})
    values = node_values(batch, weighted=False)
    assert values[:, 0].tolist() == [1.0, 1.0, 0.5, 0.5]


def test_scored_fills_what_the_trainer_would() -> None:
    run = trainer(toy_method(rewards=(total(correct=0.5), Overlong(2))))
    where = run.context
    batch = where.method.rollout(where)
    aside = scored(batch, where.under(""))
    assert where.metrics.collect() == {}
    again = scored(batch, where)
    assert torch.equal(aside.score, again.score)
    assert set(where.metrics.collect()) == {"reward/correct", "reward/format", "reward/overlong", "score"}
    assert isinstance(vantage.method("nash-mp").rollout, Duels)
