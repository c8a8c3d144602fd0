"""Easy additions and hard ones with hints: the parts, the hints by arithmetic, and how they are read."""

import pytest
import torch

from vantage.core.errors import UserError
from vantage.methods.sampling.scaf_grpo import HintLadder
from vantage.rollouts.templates import Template
from vantage.tasks.language.hinted import Hinted, hints
from vantage.tasks.language.loading import task_from_spec
from vantage.tasks.language.problems import alphabet, problem_set

TEMPLATE = Template("{label[0]}{hint};{prompt}")
"""How the set itself shows hints."""


def test_half_is_easy_and_the_held_out_are_hard_without_hints() -> None:
    task = Hinted()
    drawn = [task.problem("train", index) for index in range(400)]
    assert [problem.fields["difficulty"] for problem in drawn] == [1, 3] * 200
    assert all(("hints" in problem.fields) == (problem.fields["difficulty"] == 3) for problem in drawn)
    assert len({problem.prompt for problem in drawn[1::2]}) == 200
    held = [task.problem("test", index) for index in range(200)]
    assert all(len(str(problem.prompt)) == len("123+456=") for problem in [*drawn[1::2], *held])
    assert not {problem.prompt for problem in held} & {problem.prompt for problem in drawn}
    for problem in [*drawn, *held]:
        first, second = map(int, str(problem.prompt)[:-1].split("+"))
        assert problem.answer == problem.solution == str(first + second)
        assert task.score(problem, problem.solution) == {"correct": 1.0}
        assert task.score(problem, f"{problem.answer}1") == {"correct": 0.0}
    with pytest.raises(UserError, match="no problem"):
        task.problem("test", task.size("test"))


def test_hints_are_those_of_the_columns() -> None:
    assert hints("658+671=", "1329") == {
        "knowledge": ("0", "1", "1", "2"),
        "planning": ("4", "9", "12", "12"),
        "solution": ("1", "3", "2", "9"),
    }
    assert hints("105+205=", "310")["knowledge"] == ("1", "0", "0", "1")
    for problem in (Hinted().problem("train", 2 * index + 1) for index in range(300)):
        found = hints(str(problem.prompt), problem.answer)
        assert problem.fields["hints"] == found
        first, second = map(int, str(problem.prompt)[:-1].split("+"))
        carried = [int(first % 10**place + second % 10**place >= 10**place) for place in (1, 2, 3)]
        assert found["knowledge"] == tuple(map(str, [*carried, sum(carried)]))
        count, last, *columns = map(int, found["planning"])
        assert (count, last) == (len(problem.answer), (first + second) % 10)
        assert 100 * columns[1] + 10 * columns[0] + first % 10 + second % 10 == first + second
        assert "".join(found["solution"]) == problem.answer
        assert all(len(parts) <= 4 for parts in found.values())


def test_shown_hints_are_what_the_ladder_asks() -> None:
    shown, bare = Hinted(shown=0.6), Hinted()
    seen = []
    for index in range(1500):
        problem, plain = shown.problem("train", index), bare.problem("train", index)
        assert (problem.answer, problem.fields) == (plain.answer, plain.fields)
        assert set(str(problem.prompt)) <= set(alphabet(shown))
        if index % 2 == 0:
            assert problem == plain
        elif problem.prompt != plain.prompt:
            levels = HintLadder(template=TEMPLATE)(plain.prompt, plain.fields)
            assert len(levels) == 12
            seen.append(levels.index(problem.prompt))
    assert len(seen) / 750 == pytest.approx(0.6, abs=0.06)
    # All levels are about equally frequent; the twelfth repeats the eleventh where the answer has three digits.
    assert all(count > 15 for count in torch.tensor(seen).bincount(minlength=12).tolist())
    assert shown.problem("test", 5) == bare.problem("test", 5)


def test_the_task_gives_the_hints_to_who_asks() -> None:
    task = task_from_spec("hinted:digits=2")
    easy, hard = task.fields(torch.tensor([0, 1]))
    assert "hints" not in easy
    assert hard["hints"] == hints(
        str(task.problems.problem("train", 1).prompt), task.problems.problem("train", 1).answer
    )


def test_problems_do_not_change_between_versions() -> None:
    """Changing these changes what every stored result was measured on."""
    task = problem_set("hinted:digits=3,shown=1")
    found = [task.problem(split, index) for split, index in (("train", 0), ("train", 1), ("train", 3), ("test", 0))]
    assert [(problem.prompt, problem.answer) for problem in found] == [
        ("1+6=", "7"),
        ("K1 0;858+608=", "1466"),
        ("K1 0 0 1;769+214=", "983"),
        ("875+927=", "1802"),
    ]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="digits=4 is out of range"):
        problem_set("hinted:digits=4")
    with pytest.raises(UserError, match=r"shown=1.5 is out of range"):
        Hinted(shown=1.5)
