"""pass@k and maj@k against enumeration."""

import itertools
import math

import pytest
import torch

from vantage.core.errors import UserError
from vantage.tasks.language.evaluation import majority, pass_at_k, voted


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples):
    for right in range(samples + 1):
        outcomes = [1] * right + [0] * (samples - right)
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(outcomes, k))
            expected = sum(any(subset) for subset in subsets) / len(subsets)
            assert float(pass_at_k(torch.tensor([right]), samples, k)) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow():
    found = pass_at_k(torch.tensor([3]), 10_000, 100)
    expected = 1 - math.comb(9_997, 100) / math.comb(10_000, 100)
    assert float(found) == pytest.approx(expected, rel=1e-10)


def test_k_must_fit():
    for k in (0, 5):
        with pytest.raises(UserError, match=f"pass@{k}"):
            pass_at_k(torch.tensor([1]), 4, k)


def test_the_most_frequent_answer_wins_and_ties_are_averaged():
    assert majority(["5", "5", "7"], [1.0, 1.0, 0.0]) == 1.0
    assert majority(["7", "5", "7"], [0.0, 1.0, 0.0]) == 0.0
    assert majority(["7", "5"], [0.0, 1.0]) == 0.5
    assert majority(["", "5", ""], [0.0, 1.0, 0.0]) == 1.0
    assert majority(["", ""], [0.0, 0.0]) == 0.0


def test_what_a_completion_votes_for():
    assert voted("so 3+4=7 #### 7 ") == "7"
    assert voted(r"thus \boxed{1} and \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert voted("8+7=15;5+6+1=12;125") == "125"
    assert voted("<think>5; 6</think>  The Answer\nis 4") == "the answer is 4"
    assert voted(" 42 ") == "42"
