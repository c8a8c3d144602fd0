"""POISE: the numbers of its card."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import STEPS
from tests.harness import context, random_batch
from tests.methods.toys import assert_resumes, gain, trainer
from tests.reference import Case, cases
from vantage.advantages.groups import LeaveOneOut, ScoreLessBaseline
from vantage.core import Schedule, Trainer, Trajectories, UserError
from vantage.methods.credit.poise import CHUNK, HiddenProbe, Ridge
from vantage.tasks.registry import make_task


def pairs(score: list[float]) -> Trajectories:
    rows = random_batch(len(score), 3, dtype=torch.float32, size=2)
    return rows.replace(score=torch.tensor(score))


class Given(HiddenProbe):
    """A probe whose features are given."""

    def features(self, batch: Trajectories, context: Any) -> torch.Tensor:
        return batch["given"]


def credit(part: HiddenProbe, rows: Trajectories) -> list[float]:
    return ScoreLessBaseline()(part(rows, context()), context())[:, 0].tolist()


def constant(value: float, size: int = 4) -> Ridge:
    zero = torch.zeros(size, dtype=torch.float64)
    return Ridge(zero, zero + 1, zero, torch.tensor(value, dtype=torch.float64))


def test_ridge_is_the_closed_form_on_standardised_features() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, size in ((40, 5), (6, 12)):
        x = torch.randn(rows, size, generator=generator) * 3 + 1
        x[:, 2] = 4.0  # never varies: read as std 1
        y = torch.rand(rows, generator=generator)
        fitted = Ridge.fit(x, y, 0.01)
        wide = x.double()
        std = wide.std(0, correction=0)
        std[2] = 1.0
        z = (wide - wide.mean(0)) / std
        weight = (
            torch.linalg.inv(z.T @ z + 0.01 * torch.eye(size, dtype=torch.float64))
            @ z.T
            @ (y.double() - y.double().mean())
        )
        torch.testing.assert_close(fitted.weight, weight, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(fitted(x), y.double().mean() + z @ weight)
        assert fitted.weight[2] == 0


def test_ridge_equals_a_peer() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(30, 4, generator=generator), torch.rand(30, generator=generator)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    peer = linear.Ridge(alpha=0.01).fit(z.double().numpy(), y.double().numpy())
    assert Ridge.fit(x, y, 0.01)(x).tolist() == pytest.approx(peer.predict(z.double().numpy()).tolist(), abs=1e-5)


def test_before_the_first_fit_it_is_rloo() -> None:
    rows = pairs([1.0, 0.0, 1.0, 1.0]).replace(given=torch.zeros(4, 4))
    assert credit(Given(), rows) == [1.0, -1.0, 0.0, 0.0]
    torch.testing.assert_close(
        ScoreLessBaseline()(HiddenProbe(memory=0)(rows, context()), context()), LeaveOneOut()(rows, context())
    )


def test_a_constant_probe_is_a_constant_baseline() -> None:
    part = Given()
    part._memory["probe"] = constant(0.25)
    rows = pairs([1.0, 0.0, 1.0, 1.0]).replace(given=torch.randn(4, 4))
    assert credit(part, rows) == pytest.approx([0.75, -0.25, 0.75, 0.75])
    # Both right: 2 - g - g, not 0 as in a group of two. Predictions stay in [0, 1].
    part._memory["probe"] = constant(1.7)
    assert credit(part, rows) == pytest.approx([0.0, -1.0, 0.0, 0.0])


def test_the_baseline_is_read_off_the_other_answer() -> None:
    part = Given()
    weight = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    part._memory["probe"] = Ridge(0 * weight, 0 * weight + 1, weight, torch.tensor(0.0, dtype=torch.float64))
    given = torch.zeros(4, 4)
    given[:, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    rows = pairs([1.0, 0.0, 1.0, 0.0]).replace(given=given)
    assert credit(part, rows) == pytest.approx([0.8, -0.1, 0.6, -0.3])
    three = rows.replace(group=torch.tensor([0, 0, 0, 1]))
    assert credit(part, three)[:3] == pytest.approx([1 - 0.25, -0.2, 1 - 0.15])


def test_the_others_features_keep_the_gradient_unbiased_and_the_own_do_not() -> None:
    """Expectations over both answers of a categorical policy, enumerated."""
    pi = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    g = torch.tensor([0.9, 0.2, 0.4], dtype=torch.float64)  # what the probe says of each answer's states
    score = torch.eye(3, dtype=torch.float64) - pi
    joint = pi.unsqueeze(1) * pi
    true = ((pi * reward).unsqueeze(1) * score).sum(0)
    other = (joint.unsqueeze(-1) * (reward.view(3, 1, 1) - g.view(1, 3, 1)) * score.unsqueeze(1)).sum((0, 1))
    torch.testing.assert_close(other, true)
    own = ((pi * (reward - g)).unsqueeze(1) * score).sum(0)
    covariance = ((pi * g).unsqueeze(1) * score).sum(0)  # the score has mean 0
    torch.testing.assert_close(own - true, -covariance)
    assert covariance.abs().max() > 0.1


def test_features_are_the_first_the_last_states_and_the_entropies() -> None:
    made = vantage.method("poise", prompts=6, group_size=2, pool=2)
    where = trainer(made, 1).context
    batch = where.verify(where.method.rollout(where))
    entropy, hidden = where.evaluate(batch, "entropy"), where.evaluate(batch, "hidden")
    batch = batch.replace(entropy_old=entropy)
    found = HiddenProbe(pool=2).features(batch, where)
    assert found.shape == (12, 2 * hidden.shape[-1] + 3)
    for row in range(12):
        size = int(batch.length[row])
        own = entropy[row, :size]
        expected = [hidden[row, 0], hidden[row, max(size - 2, 0) : size].mean(0)]
        statistics = torch.stack([own.mean(), own.std(correction=0), own.max()])
        torch.testing.assert_close(found[row], torch.cat([*expected, statistics]))
    where.micro_batch = 5
    torch.testing.assert_close(HiddenProbe(pool=2).features(batch, where), found)
    # Places that the environment wrote are passed over.
    gaps = batch.mask & (torch.arange(STEPS) != 1)
    found = HiddenProbe(pool=2).features(batch.replace(mask=gaps), where)
    for row in range(12):
        own = hidden[row][gaps[row]]
        expected = torch.cat([own[0], own[-2:].mean(0)])
        torch.testing.assert_close(found[row, : len(expected)], expected)


@pytest.mark.parametrize(("run", "update", "most"), [(None, None, CHUNK), (None, 4, 4), (3, 4, 3), (5, 4, 4)])
def test_the_states_of_few_rows_stand_at_once(run: int | None, update: int | None, most: int) -> None:
    where = trainer(vantage.method("poise", prompts=40, group_size=2, micro_batch=update), 1).context
    where.micro_batch = run
    batch = where.verify(where.method.rollout(where))
    batch = batch.replace(entropy_old=where.evaluate(batch, "entropy"))
    sizes = []
    judge = where.policy.evaluate

    def watch(rows: Trajectories, want: frozenset[str]) -> Any:
        sizes.append(len(rows))
        return judge(rows, want)

    where.policy.evaluate = watch  # type: ignore[method-assign]
    HiddenProbe().features(batch, where)
    assert sum(sizes) == len(batch) == 80
    assert max(sizes) == most


def test_the_probe_is_fitted_after_the_update_to_the_others_scores() -> None:
    part = Given(memory=2)
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(3):
        x = torch.randn(8, 4, generator=generator)
        rows = pairs(torch.randint(2, (8,), generator=generator).float().tolist()).replace(given=x)
        rows = part(rows, context())
        swapped = rows.score.view(4, 2).flip(1).reshape(-1)
        assert torch.equal(rows["target"], swapped)
        before = part._memory.get("probe")
        if before is not None:  # the probe of before this step
            expected = before(x).clamp(0, 1).float().view(4, 2).flip(1).reshape(-1)
            torch.testing.assert_close(rows.value[:, 0], expected)
        part.fit(rows, context())
        seen.append((x, swapped))
    features, target = torch.cat([x for x, _ in seen[1:]]), torch.cat([y for _, y in seen[1:]])
    torch.testing.assert_close(part._memory["probe"].weight, Ridge.fit(features, target, 0.01).weight)
    again = Given(memory=2)
    again.load_state_dict(part.state_dict())
    torch.testing.assert_close(again._memory["probe"](features), part._memory["probe"](features))
    assert Given().state_dict() == {"held": [], "probe": None}


def test_one_answer_costs_less_variance_than_two() -> None:
    """Cov = (within + m between) / (n m), by enumeration of two prompts with m answers each."""
    prompts = torch.tensor([[1.0, 3.0], [5.0, 9.0]], dtype=torch.float64)  # outcomes, each half of the time
    within = prompts.var(1, correction=0).mean()
    between = prompts.mean(1).var(correction=0)
    means = []
    for one in range(2):  # a single prompt drawn, with m = 2 answers
        for i in range(2):
            means += [(prompts[one, i] + prompts[one, j]) / 2 for j in range(2)]
    assert float(torch.stack(means).var(correction=0)) == pytest.approx(float((within + 2 * between) / 2))


def test_settings_out_of_range_are_refused() -> None:
    for settings, message in (
        ({"group_size": 1}, r"poise\.group_size=1"),
        ({"penalty": 0.0}, r"penalty=0\.0"),
        ({"pool": 0}, "pool=0"),
        ({"memory": -1}, "memory=-1"),
    ):
        with pytest.raises(UserError, match=message):
            vantage.method("poise", **settings)


def test_it_learns_what_prompts_are_worth_and_resumes(tmp_path: Any) -> None:
    made = vantage.method("poise", prompts=48, group_size=2, lr=3e-2, minibatches=2)
    assert gain(made, 40) > 0.3
    history = trainer(made, 20).run().history
    assert history[-1]["probe/correlation"] > 0.2
    assert "probe/mae" not in history[1]
    assert_resumes(tmp_path, made)
    assert STEPS == 4


def test_it_runs_on_conversations_of_a_language_model() -> None:
    pytest.importorskip("transformers")
    task = make_task("calculator:terms=2,digits=1", options={"max_new_tokens": 5, "evaluated": 4})
    task.score = lambda rows, where: {"correct": (rows.action[:, 0] % 2).float()}
    policy: Any = task.make_policy(seed=0)
    made = vantage.method("poise", prompts=8, lr=1e-3, minibatches=2, micro_batch=4)
    run = Trainer(made, task, policy, task.make_engine(policy), Schedule(3), seed=1, micro_batch=5)
    history = run.run().history
    assert all(math.isfinite(value) for line in history for value in line.values())
    assert history[-1]["probe/mae"] < 1


@pytest.mark.parametrize("value", [0.1, 0.7, 100.3])
def test_a_constant_feature_weighs_nothing_and_predicts_nothing(value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    told = torch.randn(12, 1, generator=generator)
    rounding = value * (1 + 6e-8 * torch.randint(-1, 2, (12, 1), generator=generator))
    features = torch.cat([told, torch.full((12, 1), value), rounding], 1)
    made = Ridge.fit(features, 2 * told[:, 0] + 1, 1e-6)
    assert made.std[1:].tolist() == [1.0, 1.0]
    assert made.weight[1:].abs().max() < 1e-4
    torch.testing.assert_close(made(features).float(), 2 * told[:, 0] + 1, rtol=1e-4, atol=1e-4)


@cases("poise", "ridge")
def test_the_probe_is_scikit_learns(case: Case) -> None:
    fitted = Ridge.fit(case.tensor("features"), case.tensor("targets"), case.settings["alpha"])
    case.check("predictions", fitted(case.tensor("new")))
