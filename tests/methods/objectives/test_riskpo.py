"""RiskPO: the numbers of its card."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import vantage
from tests.harness import context, loss_of, random_batch
from tests.methods.toys import assert_resumes, gain
from tests.reference import Case, cases
from vantage.core import Trajectories, UserError
from vantage.methods.objectives.riskpo import BundleRisk, risk


def answers(scores: list[list[float]]) -> Trajectories:
    """One row of scores for each question."""
    sizes = [len(row) for row in scores]
    group = torch.arange(len(scores)).repeat_interleave(torch.tensor(sizes))
    flat = torch.tensor([s for row in scores for s in row])
    return Trajectories({"mask": torch.ones(len(flat), 1, dtype=torch.bool), "score": flat, "group": group})


def credit(part: BundleRisk, scores: list[list[float]]) -> list[float]:
    return part(answers(scores), context())[:, 0].tolist()


@cases("riskpo", "advantage")
def test_the_advantages_are_the_authors(case: Case) -> None:
    part = vantage.method("riskpo", **case.settings).advantage
    found, seen = [], []
    for scores in case.inputs["scores"]:
        found.append(credit(part, scores))
        seen.append([float(part.tracker.read(level)) for level in (0.2, 0.9)])
    case.check("advantage", torch.tensor(found))
    if "quantiles" in case.outputs:
        case.check("quantiles", torch.tensor(seen))


@cases("riskpo", "loss")
def test_the_loss_is_the_authors(case: Case) -> None:
    columns = {name: case.tensor(name) for name in ("mask", "logp_old", "advantage")}
    logp = case.tensor("logp").requires_grad_()
    batch = random_batch(*case.tensor("mask").shape).replace(**columns)
    loss = loss_of(vantage.method("riskpo"), batch, logp=logp)
    loss.backward()
    case.check("loss", loss)
    case.check("grad", logp.grad)


def worked(score: float, tail: float = 1.5, baseline: bool = True, seeking: bool = False) -> float:
    return float(risk(torch.tensor(score), torch.tensor(1.0), torch.tensor(3.0), 0.2, 0.8, tail, baseline, seeking))


def test_worked_values_and_slopes() -> None:
    assert [worked(s) for s in (0.0, 2.0, 4.0)] == pytest.approx([-4.3333, -0.6667, 0.0], abs=1e-3)
    # Pure range value-at-risk.
    assert [worked(s, tail=0.0) for s in (0.0, 2.0)] == pytest.approx([-3.3333, -1.6667], abs=1e-3)
    slopes = [worked(s + 0.5) - worked(s) for s in (0.0, 1.5, 3.5)]
    assert [2 * s for s in slopes] == pytest.approx([3.0, 0.6667, 0.0], abs=1e-3)


def test_signs_with_and_without_the_natural_baseline() -> None:
    scores = torch.linspace(-1, 6, 50).tolist()
    values = [worked(s) for s in scores]
    assert max(values) <= 1e-6
    assert all(v == pytest.approx(0, abs=1e-6) for v, s in zip(values, scores, strict=True) if s >= 3)
    assert all(b >= a - 1e-6 for a, b in itertools.pairwise(values))
    assert all(worked(s, baseline=False) >= 0 for s in scores if s >= 1)


def test_equal_slopes_make_one_line_up_to_the_upper_quantile() -> None:
    tail = 0.2 / 0.6
    slopes = [worked(s + 0.25, tail=tail) - worked(s, tail=tail) for s in (0.0, 0.6, 1.2, 2.0, 2.7)]
    assert slopes == pytest.approx([slopes[0]] * 5, rel=1e-3)


def test_seeking_variant() -> None:
    # g3 = (5 - 3) / 0.2 = 10, g1 = (4 - 2 - 2) / 0.6 = 0: (1.5 * 10 + 0) / 2.5
    assert worked(5.0, seeking=True) == pytest.approx(6.0, rel=1e-4)


def reference(
    part: BundleRisk, scores: list[list[float]], low: float | None = None, high: float | None = None
) -> list[float]:
    """The card's steps in loops."""
    found: list[float] = []
    for start in range(0, len(scores), part.bundle):
        questions = scores[start : start + part.bundle]
        papers = torch.tensor([sum(column) for column in zip(*questions, strict=True)])
        q_lo = torch.quantile(papers, part.alpha) if low is None else torch.tensor(low)
        q_hi = torch.quantile(papers, part.beta) if high is None else torch.tensor(high)
        a = risk(papers, q_lo, q_hi, part.alpha, part.beta, part.tail, part.baseline, part.seeking)
        if part.scale:
            std = float(papers.std()) if len(papers) > 1 else 0.0
            a = a / ((std if std > 1e-3 else 1.0) + 1e-6)
        means = [sum(q) / len(q) for q in questions]
        for q, mean in zip(questions, means, strict=True):
            std = float(torch.tensor(q).std()) if len(q) > 1 else 0.0
            for i, r in enumerate(q):
                if part.credit == "std":
                    found.append(float(a[i]) / ((std if std > 1e-3 else 1.0) + 1e-6))
                elif part.credit == "score":
                    found.append(float(a[i]) * (0.5 if r > 0 else 1.5))
                elif part.credit == "sum-mean":
                    total = sum(p[i] - m for p, m in zip(questions, means, strict=True))
                    flat = abs(total) <= 1e-6
                    found.append(float(a[i]) * (1 / len(questions) if flat else (r - mean) / total))
                else:
                    found.append(float(a[i]))
    return found


@pytest.mark.parametrize("how", ["std", "uniform", "score", "sum-mean"])
@pytest.mark.parametrize("questions", [6, 7])
def test_credit_follows_the_steps_also_with_a_smaller_last_bundle(how: str, questions: int) -> None:
    generator = torch.Generator().manual_seed(questions)
    scores = torch.randint(2, (questions, 5), generator=generator).float().tolist()
    part = BundleRisk(bundle=3, credit=how)
    assert credit(part, scores) == pytest.approx(reference(part, scores), rel=1e-4, abs=1e-4)


def test_after_the_first_batch_papers_are_compared_with_the_tracked_quantiles() -> None:
    part = BundleRisk(bundle=2, credit="uniform")
    first = [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    credit(part, first)
    # Papers 0, 1, 2: the levels 0.2 and 0.9 are at 0.4 and 1.8.
    low, high = float(part.tracker.read(0.2)), float(part.tracker.read(0.9))
    assert (low, high) == pytest.approx((0.4, 1.8))
    second = [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]
    assert credit(part, second) == pytest.approx(reference(part, second, low, high), rel=1e-4)
    mixed = BundleRisk(bundle=2, credit="uniform", quantiles="mix")
    credit(mixed, first)
    own_low, own_high = (float(torch.quantile(torch.tensor([2.0, 1.0, 2.0]), level)) for level in (0.2, 0.9))
    expected = reference(mixed, second, (low + own_low) / 2, (high + own_high) / 2)
    assert credit(mixed, second) == pytest.approx(expected, rel=1e-4)


def test_as_released_each_bundle_has_its_own_quantiles_in_every_step() -> None:
    part = vantage.method("riskpo", quantiles="batch", bundle=2, credit="uniform").advantage
    credit(part, [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    second = [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert credit(part, second) == pytest.approx(reference(part, second), rel=1e-4)
    assert vantage.method("riskpo").advantage.quantiles == "track"


def test_single_questions_and_single_papers() -> None:
    scores = [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    alone = BundleRisk(bundle=1, credit="uniform")
    assert credit(alone, scores) == pytest.approx(reference(alone, scores), rel=1e-4)
    one = BundleRisk(bundle=2, credit="std")
    assert credit(one, [[1.0], [0.0]]) == pytest.approx([0.0, 0.0])


def test_a_bundle_of_equal_papers_does_not_drown_the_batch() -> None:
    part = BundleRisk(bundle=1)
    credit(part, [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    found = credit(part, [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    low, high = (float(part.tracker.read(level)) for level in (0.2, 0.9))
    assert max(map(abs, found[:3])) < 2 * (high - low) + low / 0.2 + 2


def test_ragged_groups_leave_papers_with_fewer_questions() -> None:
    part = BundleRisk(bundle=2, credit="uniform", scale=False)
    found = credit(part, [[1.0, 1.0], [1.0, 0.0, 1.0]])
    # Papers (2, 1, 1): answer i of both questions shares its advantage.
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert torch.isfinite(torch.tensor(found)).all()


def test_settings_out_of_range_are_refused() -> None:
    for settings, message in (
        ({"alpha": 0.9, "beta": 0.2}, r"alpha=0\.9 is out of range: above 0, below beta=0\.2"),
        ({"credit": "even"}, "credit='even' is not known"),
        ({"bundle": 0}, "bundle=0"),
        ({"tail": -0.5}, r"tail=-0\.5"),
        ({"quantiles": "own"}, "quantiles='own' is not known"),
        ({"quantile_rate": 0.0}, r"rate=0\.0"),
        ({"quantile_rate": 1.5}, r"rate=1\.5"),
    ):
        with pytest.raises(UserError, match=message):
            vantage.method("riskpo", **settings)


def test_it_learns_and_resumes_with_its_quantiles(tmp_path) -> None:
    settings: dict[str, Any] = {"prompts": 6, "group_size": 8, "bundle": 3, "lr": 3e-2}
    assert gain(vantage.method("riskpo", **settings), 60) > 0.3
    assert_resumes(tmp_path, vantage.method("riskpo", **settings))
