"""A probe sees a changed line, and no processor. What those of the pages say is compared in `test_every_probe.py`."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from vantage.methods import registry
from vantage.objectives import surrogates
from vantage.study import claims, probes, tiny_runs
from vantage.study.claims import Stated
from vantage.study.draws import Draws
from vantage.study.probes import Probe, Side, bless, compare, differences, measure, sides_of
from vantage.study.records import Results

pytest.importorskip("scipy.stats", reason="the study extra is not installed")

ROOT = Path(__file__).parents[2]
CLAIMS = ROOT / "claims"


def test_every_stored_probe_is_of_a_page_and_small() -> None:
    expected = {Probe.path(CLAIMS, page) for page in registry.pages() if sides_of(page)}
    assert set(CLAIMS.glob("*/*.probe.json")) == expected
    assert max(path.stat().st_size for path in expected) < 8_000


# what a probe sees ------------------------------------------------------------------------------------------------------


def side_of(name: str, at: int = 0) -> tuple[Stated, probes.Entrant]:
    return next(iter(sides_of(registry.page(name)).values()))[at]


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_runs, "_DONE", {})


def test_a_probe_repeats_itself_and_sees_a_changed_line(monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = measure(*side_of("rloo"))
    assert len(before.figures["loss/policy"]) >= 2
    assert before.figures["parameters/moved"][0] > 0
    monkeypatch.setattr(tiny_runs, "_DONE", {})
    again, draws = measure(*side_of("rloo"), before.choices)
    assert (list(compare(before, again, draws)), draws.otherwise) == ([], 0)
    assert draws.count > 50
    # The loss is larger by a thousandth.
    whole = surrogates.PolicyGradient.__call__
    monkeypatch.setattr(surrogates.PolicyGradient, "__call__", lambda *a, **k: whole(*a, **k) * 1.001)
    monkeypatch.setattr(tiny_runs, "_DONE", {})
    told = dict(compare(before, *measure(*side_of("rloo"), before.choices)))
    assert told["grad_norm"].startswith("at step 1: ")


def test_a_probe_of_a_field_without_a_rollout_loop_runs_its_own_function() -> None:
    found, _ = measure(*side_of("ucbvi"))
    assert found.figures["spent"][0] == 0
    assert len(found.figures["mean_regret"]) >= 2


def test_choices_are_repeated_and_counted_where_the_code_would_choose_otherwise() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    with Draws() as first:
        assert scores.argmax(-1).tolist() == [1, 0, 1]
        drawn = torch.multinomial(torch.ones(4), 2, generator=torch.Generator().manual_seed(0))
    with Draws(first.made) as second:
        assert (-scores).argmax(-1).tolist() == [1, 0, 1]
        assert torch.equal(torch.multinomial(torch.ones(4), 2), drawn)
    assert second.count == 5
    assert second.otherwise >= 3
    side = Side({"x": (1.0,)}, first.made)
    assert list(compare(side, side, replace_counts(second, 100, 2))) == []
    assert list(compare(side, side, replace_counts(second, 100, 3))) == [
        ("choices", "sampled: 3 of 100 would be made otherwise")
    ]


def replace_counts(draws: Draws, count: int, otherwise: int) -> Draws:
    changed = copy.copy(draws)
    changed.count, changed.otherwise = count, otherwise
    return changed


def test_numbers_that_torch_draws_by_other_algorithms_elsewhere_follow_from_uniform_ones() -> None:
    uniform = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with Draws():
        found = torch.empty(5, 3).exponential_(generator=torch.Generator().manual_seed(3))
        heads = torch.bernoulli(torch.full((5, 3), 0.5), generator=torch.Generator().manual_seed(3))
        picked = torch.multinomial(torch.tensor([0.0, 1.0, 0.0]), 50, True)
    torch.testing.assert_close(found, (-torch.log1p(-uniform)).float())
    assert torch.equal(heads.bool(), uniform < 0.5)
    assert picked.eq(1).all()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ((1.0, 2.0), (1.0, 2.00002), []),
        ((1.0, 2.0), (1.0, 2.00004), [("x", "at step 2: 2 -> 2.00004")]),
        ((0.0,), (4e-6,), []),
        ((0.0,), (5e-6,), [("x", "at step 1: 0 -> 5e-06")]),
        ((math.nan, 1.0), (5.0, 1.0), []),  # rounding decides it
        ((1.0, 1.0), (1.0,), [("x", "has 1 values where it had 2")]),
    ],
)
def test_figures_are_compared_to_a_hundred_thousandth(
    old: tuple[float, ...], new: tuple[float, ...], told: list[tuple[str, str]]
) -> None:
    assert list(compare(Side({"x": old, "gone": (1.0,)}), Side({"x": new, "more": (2.0,)}))) == told


def test_a_probe_whose_figures_are_all_gone_is_no_probe() -> None:
    assert list(compare(Side({"x": (1.0,)}), Side({"y": (1.0,)}))) == [("figures", "are others than x")]


def test_bless_stores_the_probe_and_marks_the_results_that_its_change_alters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = registry.page("simpo")
    for one in claims.of_page(page):
        claims.store(tmp_path, page, claims.result_of(one, claims.contest_of(one).study()))
    known = dict.fromkeys(sides_of(page), Side({"parameters/moved": (1.0, 2.0), "kl/old": (0.0, 0.0)}))
    monkeypatch.setattr(probes, "measure", lambda one, side, *_, **__: (known[side_name(one, side)], Draws()))
    assert all(line.endswith("none was stored") for line in bless(tmp_path, page, "first"))
    assert list(bless(tmp_path, page, "nothing has changed")) == []
    # A diagnostic that no claim is about is stored and marks nothing.
    name = next(iter(known))
    known[name] = Side({"parameters/moved": (1.0, 2.0), "kl/old": (0.0, 0.1)})
    assert list(bless(tmp_path, page, "kl by token")) == [f"{name}: kl/old at step 2: 0 -> 0.1"]
    assert not [result for result in Results.of(tmp_path, page).claims.values() if result.changes]
    # The side learns something else: the claims that have it are marked.
    known[name] = Side({"parameters/moved": (1.0, 3.0), "kl/old": (0.0, 0.1)})
    assert differences(tmp_path, page) == [f"{name}: parameters/moved at step 2: 2 -> 3"]
    altered = {one.claim.label for one, _ in sides_of(page)[name]}
    told = list(bless(tmp_path, page, "a new margin"))
    assert told[0] == f"{name}: parameters/moved at step 2: 2 -> 3"
    assert set(told[1:]) == {f"simpo/{label}: measured before this change" for label in altered}
    assert differences(tmp_path, page) == []
    held = Results.of(tmp_path, page).claims
    assert {label for label, result in held.items() if result.changes} == altered
    assert {change.reason for result in held.values() for change in result.changes} == {"a new margin"}


@pytest.mark.parametrize(
    ("figure", "metric", "altered"),
    [
        ("parameters/moved", "", True),
        ("loss/policy", "mean:kl", True),
        ("clip_fraction", "", False),
        ("clip_fraction", "mean:clip_fraction", True),
        ("kl/reference", "kl", True),  # what the report calls it
    ],
)
def test_a_diagnostic_alters_the_results_of_claims_about_it_alone(figure: str, metric: str, altered: bool) -> None:
    assert probes.alters(figure, Side({"parameters/moved": (1.0,)}), metric) is altered
    assert probes.alters(figure, Side({"return": (1.0,)}), metric)  # a field's own function


def side_name(one: Stated, side: probes.Entrant) -> str:
    return next(
        name
        for name, several in sides_of(one.page).items()
        if any(each.claim == one.claim and each_side == side for each, each_side in several)
    )
