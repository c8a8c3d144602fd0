"""SPO: the numbers of its card."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import ToyEngine, ToyPolicy, ToyTask
from tests.harness import context, loss_of, random_batch
from tests.methods.toys import assert_resumes, gain, trainer
from tests.reference import Case, cases
from vantage.advantages.groups import ScoreLessBaseline
from vantage.core import Prompts, Trajectories, UserError
from vantage.methods import registry
from vantage.methods.credit.spo_single_stream import OpenPrompts, SuccessTracker
from vantage.rewards.mixing import Total
from vantage.rollouts.tokens.sampling import Sampling


class Binary(ToyTask):
    """1 where the first symbol is the prompt's."""

    def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
        return {"right": ((batch.action[:, 0] == batch.prompt % 5) & batch.mask[:, 0]).float()}


def visited(tracker: SuccessTracker, alpha: float, beta: float, prompt: int = 3) -> None:
    tracker._records.write(torch.tensor([prompt]), alpha=torch.tensor([alpha]), beta=torch.tensor([beta]))


def batch_of(scores: list[float], prompts: list[int]) -> Trajectories:
    count = len(scores)
    return random_batch(count, 4, size=1).replace(
        score=torch.tensor(scores), prompt=torch.tensor(prompts), action=torch.ones(count, 4, dtype=torch.int64)
    )


def test_tracker_is_an_average_with_an_adaptive_step() -> None:
    tracker = SuccessTracker(constant=0.9)
    visited(tracker, 2.0, 3.0)
    v = float(tracker.estimate(torch.tensor([3])))
    tracker.fit(batch_of([1.0], [3]), context())
    step = 1 / (0.9 * 5.0 + 1)
    assert float(tracker.estimate(torch.tensor([3]))) == pytest.approx(v + step * (1 - v))


@pytest.mark.parametrize(("rho", "total"), [(0.875, 8.0), (0.96, 25.0)])
def test_effective_memory_has_its_fixed_point(rho: float, total: float) -> None:
    tracker = SuccessTracker(constant=rho)
    for _ in range(300):
        tracker.fit(batch_of([1.0], [3]), context())
    held = tracker._records.read(torch.tensor([3]))
    assert float(held["alpha"] + held["beta"]) == pytest.approx(total, rel=1e-4)


def test_without_forgetting_it_is_the_posterior_mean_under_jeffreys_prior() -> None:
    tracker = SuccessTracker(constant=1.0)
    scores = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    for score in scores:
        tracker.fit(batch_of([score], [3]), context())
    assert float(tracker.estimate(torch.tensor([3]))) == pytest.approx((sum(scores) + 0.5) / (len(scores) + 1))


def test_start_of_a_prompt_that_is_always_solved() -> None:
    task = Binary()
    policy = ToyPolicy()
    engine = ToyEngine(policy)
    task.score = lambda batch, where: {"right": torch.ones(len(batch))}  # type: ignore[method-assign]
    trained = trainer(vantage.method("spo-single-stream", prompts=2), 1)
    trained.context.task, trained.context.engine = task, engine
    tracker = SuccessTracker()
    tracker.start(trained.context)
    held = tracker._records.read(torch.arange(6))
    assert held["alpha"].tolist() == pytest.approx([7.5556] * 6, abs=1e-4)
    assert held["beta"].tolist() == pytest.approx([0.4444] * 6, abs=1e-4)
    assert tracker.estimate(torch.arange(6)).tolist() == pytest.approx([0.9444] * 6, abs=1e-4)
    before = engine.calls
    tracker.start(trained.context)
    assert engine.calls == before


def test_answers_before_the_first_step_are_scored_by_the_methods_rewards_and_recorded_apart() -> None:
    class TwoRewards(Binary):
        def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
            ones = torch.ones(len(batch))
            return {"right": ones, "style": ones}

    made = vantage.method("spo-single-stream", prompts=3).replace(rewards=(Total({"right": 0.25, "style": 0.0}),))
    trained = trainer(made, 1, task=TwoRewards())
    tracker = trained.context.method.values
    tracker.start(trained.context)
    # Above 0 is a success before the first step.
    assert tracker.estimate(torch.arange(6)).tolist() == pytest.approx([8.5 / 9] * 6)
    metrics = trained.context.metrics.collect()
    assert metrics["start/score"] == 0.25
    assert "score" not in metrics


def test_scores_outside_of_the_range_are_refused() -> None:
    class Signed(ToyTask):
        def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
            return {"right": torch.where(batch.action[:, 0] == 1, 1.0, -1.0)}

    with pytest.raises(UserError, match=r"has the score -1\.0, .* in the range 0 to 1"):
        trainer(vantage.method("spo-single-stream", prompts=3), 2, task=Signed()).run()
    with pytest.raises(UserError, match=r"has the score -1\.0, .* in the range 0 to 1"):
        SuccessTracker(samples=0)(batch_of([1.0, -1.0], [3, 4]), context())
    tracker = SuccessTracker(constant=0.9)
    # A sum of weights may miss 1 by rounding, and stays a success.
    tracker.fit(batch_of([1.0 + 1e-6], [3]), context())
    assert tracker._records.read(torch.tensor([3]))["beta"].tolist() == pytest.approx([0.45], abs=1e-7)


def rho_at(drift: float) -> float:
    """rho of a prompt whose stored answer moved by `drift` in every token."""
    tracker = SuccessTracker()
    batch = batch_of([1.0], [3])
    logs = iter([batch.logp_old.float(), batch.logp_old.float() + drift, batch.logp_old.float()])
    where = context(evaluate=lambda rows: next(logs))
    tracker.fit(batch, where)
    first = where.metrics.collect()["tracker/rho"]
    assert first == pytest.approx(0.96)
    tracker.fit(batch, where)
    return where.metrics.collect()["tracker/rho"]


def test_memory_fades_with_the_drift_of_the_stored_answer() -> None:
    assert rho_at(0.06) == pytest.approx(0.875)
    assert rho_at(-0.06) == pytest.approx(0.875)
    assert rho_at(0.0) == pytest.approx(0.96)
    assert rho_at(0.0035) == pytest.approx(0.96)
    assert rho_at(0.008) == pytest.approx(2 ** (-0.008 / 0.06), rel=1e-4)


def test_stored_log_probabilities_are_those_after_the_update() -> None:
    trained = trainer(vantage.method("spo-single-stream", prompts=6, samples=0, lr=3e-2), 3, task=Binary())
    seen: list[Trajectories] = []
    trained.context.method = trained.context.method.replace(selection=(lambda b, c: seen.append(b) or b,))
    for _ in range(3):
        trained.step()
    tracker = trained.context.method.values
    slots, there = tracker._last.slots(seen[-1].prompt)
    assert there.all()
    stored = tracker._last.table.get(slots[:, 0])
    now = trained.context.evaluate(seen[-1])
    torch.testing.assert_close(stored.logp_then, now)
    assert (now - seen[-1].logp_old)[seen[-1].mask].abs().max() > 1e-3


def test_baseline_comes_from_before_the_answer_and_one_prompt_alone_teaches() -> None:
    tracker = SuccessTracker(constant=0.9)
    visited(tracker, 3.0, 1.0)
    batch = tracker(batch_of([1.0, 1.0, 0.0], [3, 5, 5]), context())
    assert batch.value[:, 0].tolist() == pytest.approx([0.75, 0.5, 0.5])
    excess = torch.tensor([0.25, 0.5, -0.5])
    expected = (excess - excess.mean()) / (excess.std() + 1e-8)
    advantage = ScoreLessBaseline(whiten=True)(batch, context())
    for row in range(3):
        assert advantage[row][batch.mask[row]].tolist() == pytest.approx(
            [float(expected[row])] * int(batch.length[row])
        )
    assert advantage[~batch.mask].abs().sum() == 0
    assert float(expected.mean()) == pytest.approx(0, abs=1e-6)


def test_baseline_leaves_the_expected_gradient_alone() -> None:
    probs = torch.tensor([0.3, 0.7], dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0], dtype=torch.float64)
    score = torch.eye(2, dtype=torch.float64) - probs
    for v in (0.0, 0.4, 0.9):
        found = sum(probs[a] * (reward[a] - v) * score[a] for a in range(2))
        torch.testing.assert_close(found, torch.tensor([0.21, -0.21], dtype=torch.float64))


def test_prompts_are_drawn_where_the_outcome_is_open() -> None:
    tracker = SuccessTracker(samples=0)
    ids = torch.arange(6)
    tracker._records.write(ids, alpha=torch.tensor([1.0, 1, 1, 1, 1, 99]), beta=torch.tensor([1.0, 1, 1, 1, 1, 1]))
    trained = trainer(vantage.method("spo-single-stream", prompts=3, samples=0), 1)
    where = trained.context
    where.method = where.method.replace(values=tracker)
    part = where.method.prompts
    drawn = torch.cat([part(3, where).ids for _ in range(400)])
    counts = torch.bincount(drawn, minlength=6).float()
    assert all(len(set(batch.tolist())) == 3 for batch in drawn.view(-1, 3))
    # Weights 0.55 for the five and 0.1495 for the last.
    assert float(counts[5] / counts[:5].mean()) < 0.5
    assert counts.min() > 20
    assert len(part(9, where)) == 9  # more than there are: with replacement


def test_several_answers_to_a_prompt_are_one_visit() -> None:
    tracker = SuccessTracker(constant=0.5)
    tracker.fit(batch_of([1.0, 0.0, 1.0], [3, 3, 3]), context())
    held = tracker._records.read(torch.tensor([3]))
    assert (float(held["alpha"]), float(held["beta"])) == pytest.approx((0.25 + 2, 0.25 + 1))


def test_what_cannot_be_done_is_refused() -> None:
    tracker = SuccessTracker()
    with pytest.raises(UserError, match=r"1000000 prompts are too many .* samples=0"):
        tracker.start(SimpleNamespace(task=SimpleNamespace(size=10**6)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="endless"):
        tracker.start(SimpleNamespace(task=SimpleNamespace(size=0)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="least <= most"):
        SuccessTracker(least=0.99, most=0.9)
    for settings, message in (
        ({"half": 0.0}, r"SuccessTracker\.half=0\.0"),
        ({"samples": -1}, r"SuccessTracker\.samples=-1"),
        ({"constant": 0.0}, r"SuccessTracker\.constant=0\.0"),
        ({"constant": 1.5}, r"SuccessTracker\.constant=1\.5"),
        ({"pool": 0}, r"OpenPrompts\.pool=0"),
        ({"explore": 0.0}, r"OpenPrompts\.explore=0\.0"),
    ):
        with pytest.raises(UserError, match=message):
            vantage.method("spo-single-stream", **settings)
    where = SimpleNamespace(method=SimpleNamespace(values=None), task=ToyTask())
    with pytest.raises(UserError, match="values=SuccessTracker"):
        OpenPrompts()(3, where)  # type: ignore[arg-type]


def test_it_learns_wastes_nothing_and_resumes(tmp_path) -> None:
    method = vantage.method("spo-single-stream", prompts=32, lr=3e-2, minibatches=2)
    assert gain(method, 50, task=Binary()) > 0.1
    history = trainer(method, 6, task=Binary()).run().history
    assert all(line["advantage/zero"] < 0.01 for line in history[1:])
    assert_resumes(tmp_path, method, task=Binary())


def test_a_missing_score_is_no_visit() -> None:
    tracker = SuccessTracker(constant=0.5)
    tracker.fit(batch_of([1.0, float("nan"), float("nan")], [3, 3, 4]), context())
    held = tracker._records.read(torch.tensor([3, 4]))
    assert held["alpha"].tolist() == [0.5 * 0.5 + 1, 0.5]
    assert held["beta"].tolist() == [0.5 * 0.5, 0.5]
    batch = batch_of([1.0, float("nan"), 0.0], [3, 3, 4])
    credit = ScoreLessBaseline(whiten=True)(batch.replace(value=torch.zeros(batch.mask.shape)), context())
    assert credit[:, 0].tolist() == pytest.approx([0.7071068, 0.0, -0.7071068], abs=1e-6)


def test_all_prompts_of_the_task_are_drawn_from_unless_a_pool_is_given() -> None:
    made = vantage.method("spo-single-stream", prompts=2, samples=0)
    assert made.prompts.pool is None
    where = trainer(made, 1, task=Binary()).context
    sizes: list[int] = []

    def source(size: int, context: Any) -> Prompts:
        sizes.append(size)
        return context.task.prompts(torch.arange(size))

    for pool in (None, 2):
        part = OpenPrompts(pool, source=source)  # type: ignore[arg-type]
        assert len(part(2, where)) == 2
    assert sizes == [6, 4]
    with pytest.raises(UserError, match=r"OpenPrompts\.pool=None draws from all prompts"):
        OpenPrompts()(2, SimpleNamespace(method=made, task=SimpleNamespace(size=0)))  # type: ignore[arg-type]


def test_answers_before_the_first_step_are_drawn_by_their_own_settings() -> None:
    where = trainer(vantage.method("spo-single-stream", prompts=2), 1, task=Binary()).context
    seen: list[Sampling] = []

    class Engine(ToyEngine):
        sampling = Sampling(max_new_tokens=4)

        def sample(self, prompts: Any, count: int, context: Any, *, sampling: Sampling, **rest: Any) -> Trajectories:
            seen.append(sampling)
            return super().sample(prompts, count, context, **rest)

    where.engine = Engine(where.policy)  # type: ignore[assignment, arg-type]
    where.method.values.start(where)
    assert seen == [Sampling(0.6, 0.95, max_new_tokens=4)]


def test_the_drift_counts_the_tools_tokens_too() -> None:
    batch = batch_of([1.0], [3])
    part = batch.replace(mask=batch.mask & (torch.arange(4) > 0), length=torch.tensor([4]))
    tracker = SuccessTracker()
    seen: list[torch.Tensor] = []
    where = context(evaluate=lambda rows: seen.append(rows.mask) or rows.mask * 1.0)
    tracker.fit(part, where)
    tracker.fit(part, where)
    assert [mask.tolist() for mask in seen] == [[[True] * 4]] * 3


@cases("spo-single-stream", "start")
def test_the_start_is_the_authors(case: Case) -> None:
    scores = case.tensor("scores", torch.float32)
    where = trainer(vantage.method("spo-single-stream", prompts=2), 1, task=Binary()).context
    settings = {"samples": case.settings["offline_N"], "least": case.settings["clip_lower"]}
    made = registry.page("spo-single-stream").make(settings)

    class Given(Binary):
        size = len(scores)

        def score(self, batch: Trajectories, context: Any) -> dict[str, torch.Tensor]:
            return {"right": scores.flatten()}

    where.task = Given()
    made.values.start(where)
    held = made.values._records.read(torch.arange(len(scores)))
    case.check("alpha", held["alpha"])
    case.check("beta", held["beta"])
    value = made.values.estimate(torch.arange(len(scores)))
    case.check("weight", (value * (1 - value)).sqrt() + made.prompts.explore)


@cases("spo-single-stream", "advantage")
def test_the_advantage_is_the_authors(case: Case) -> None:
    made = registry.page("spo-single-stream").make()
    mask, prompts = case.tensor("mask"), torch.arange(5)
    made.values._records.write(prompts, alpha=case.tensor("alpha").float(), beta=case.tensor("beta").float())
    columns = {"mask": mask, "length": mask.sum(1), "score": case.tensor("scores"), "prompt": prompts, "group": prompts}
    batch = made.values(Trajectories(columns), context())
    case.check("advantages", made.advantage(batch, context()))


@cases("spo-single-stream", "tracker")
def test_the_tracker_is_the_authors(case: Case) -> None:
    made = registry.page("spo-single-stream").make()
    mask = case.tensor("mask")
    rows = Trajectories(
        {
            "mask": torch.cat([mask, mask[:1]]),
            "length": torch.cat([mask, mask[:1]]).sum(1),
            "prompt": torch.arange(5),
            "score": case.tensor("scores").float(),
            "observation": torch.arange(5),
            "action": torch.zeros(5, 3, dtype=torch.int64),
        }
    )
    then, now = case.tensor("then").float(), case.tensor("now").float()
    made.values.fit(rows[:4], context(evaluate=lambda kept: then[kept.observation]))
    made.values._records.write(torch.arange(5), alpha=case.tensor("alpha").float(), beta=case.tensor("beta").float())
    # The fifth prompt is new.
    seen = iter([now, torch.cat([then, then[:1]])])
    where = context(evaluate=lambda kept: next(seen))
    made.values.fit(rows, where)
    assert where.metrics.collect()["tracker/rho"] == pytest.approx(sum(case.outputs["rho"]) / 5, abs=1e-5)
    held = made.values._records.read(torch.arange(5))
    case.check("alpha", held["alpha"])
    case.check("beta", held["beta"])


@cases("spo-single-stream", "loss")
def test_the_loss_is_verls(case: Case) -> None:
    """One micro-batch of theirs is the minibatch."""
    mask = case.tensor("mask")
    columns = {"mask": mask, "length": mask.sum(1), "logp_old": case.tensor("logp_old")}
    logp = case.tensor("logp").requires_grad_()
    batch = Trajectories({**columns, "advantage": case.tensor("advantages")})
    loss = loss_of(registry.page("spo-single-stream").make(), batch, logp=logp)
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, logp)[0])
