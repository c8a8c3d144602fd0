"""GRPO: equality with TRL and verl, and the worked numbers of its advantage."""

from __future__ import annotations

import pytest

import vantage
from tests.methods.family import check_advantage, check_against_trl, check_groups, check_loss, worked_case
from tests.reference import Case, cases


@pytest.mark.peers
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_and_gradient_equal_trl(beta: float, seed: int) -> None:
    check_against_trl(vantage.method("grpo", beta=beta), "grpo", seed, low=0.2, high=0.2, beta=beta)


def test_advantages_are_standardised_in_the_group() -> None:
    # mean 0.25, sample std 0.5, eps 1e-4
    assert worked_case(vantage.method("grpo")) == pytest.approx([1.4997, -0.4999, -0.4999, -0.4999], abs=1e-4)
    check_groups(vantage.method("grpo"))


@cases("grpo", "advantage")
def test_advantages_of_verl_at_the_epsilon_of_trl(case: Case) -> None:
    check_advantage(case, vantage.method("grpo"))


@cases("grpo", "loss")
def test_loss_and_gradient_with_huge_ratios(case: Case) -> None:
    settings = {"dual": case.settings["clip_ratio_c"]} if "clip_ratio_c" in case.settings else {}
    check_loss(case, vantage.method("grpo", **settings))
