"""Counting down: answers by arithmetic, every pair once, the lengths that the set promises."""

from collections import Counter

import pytest

from vantage.core.errors import UserError
from vantage.tasks.language.counting import Counting
from vantage.tasks.language.problems import alphabet, problem_set


@pytest.mark.parametrize("most", [2, 7, 40, 99])
def test_every_pair_is_one_problem(most: int) -> None:
    task = Counting(most)
    assert task == problem_set(f"counting:most={most}")
    seen = []
    for split in ("train", "test"):
        for index in range(task.size(split)):
            problem = task.problem(split, index)
            first, last = map(int, str(problem.prompt)[:-1].split(":"))
            assert problem.answer == "".join(str(value)[-1] for value in reversed(range(last, first + 1)))
            assert problem.fields["difficulty"] == len(problem.answer) == first - last + 1
            assert set(f"{problem.prompt}{problem.solution}") <= set(alphabet(task))
            assert task.score(problem, problem.solution) == {"correct": 1.0}
            for wrong in (problem.answer + problem.answer[-1], problem.answer[:-1], problem.answer + "="):
                assert task.score(problem, wrong) == {"correct": 0.0}
            seen.append((first, last))
    assert sorted(seen) == [(first, last) for first in range(1, most + 1) for last in range(1, first + 1)]


def test_long_answers_are_few() -> None:
    task = Counting(40)
    lengths = Counter(
        len(task.problem(split, index).answer) for split in ("train", "test") for index in range(task.size(split))
    )
    assert all(lengths[size] == 41 - size for size in range(1, 41))
    assert sum(size * times for size, times in lengths.items()) / lengths.total() == 42 / 3


def test_problems_do_not_change_between_versions() -> None:
    """Changing these changes what every stored result was measured on."""
    task = Counting(40)
    found = [task.problem(split, index) for split, index in (("train", 0), ("train", 1), ("test", 0))]
    assert [(problem.prompt, problem.answer) for problem in found] == [
        ("38:20=", "8765432109876543210"),
        ("37:26=", "765432109876"),
        ("23:2=", "3210987654321098765432"),
    ]
    assert (task.size("train"), task.size("test")) == (707, 113)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="most=100 is out of range"):
        Counting(100)
    with pytest.raises(UserError, match="no problem 820 in 'test'"):
        Counting(40).problem("test", 820)
