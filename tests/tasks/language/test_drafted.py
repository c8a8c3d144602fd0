"""Additions with drafts: how many come with one, how many of those are right, and what is held out."""

import pytest

from vantage.core.errors import UserError
from vantage.tasks.language.arithmetic import Addition
from vantage.tasks.language.drafted import Drafted
from vantage.tasks.language.problems import alphabet, problem_set


def test_shares_of_drafts_and_of_right_ones() -> None:
    task, plain = Drafted(2, shown=0.6, right=0.3), Addition(2)
    drafts = []
    for index in range(1500):
        problem, bare = task.problem("train", index), plain.problem("train", index)
        draft, _, question = str(problem.prompt).rpartition(";")
        assert question == bare.prompt
        assert problem.answer == problem.solution == bare.answer
        assert set(str(problem.prompt)) <= set(alphabet(task))
        assert problem.fields.get("draft", "") == draft
        assert task.score(problem, problem.solution) == {"correct": 1.0}
        if draft:
            drafts.append((draft, problem.answer))
    assert len(drafts) / 1500 == pytest.approx(0.6, abs=0.05)
    assert sum(draft == answer for draft, answer in drafts) / len(drafts) == pytest.approx(0.3, abs=0.05)
    # A wrong one differs in one digit.
    assert all(sum(one != other for one, other in zip(draft, answer, strict=True)) <= 1 for draft, answer in drafts)


def test_held_out_are_the_plain_additions() -> None:
    task, plain = Drafted(2, shown=1.0), Addition(2)
    assert task.size("test") == plain.size("test")
    for index in range(100):
        held, bare = task.problem("test", index), plain.problem("test", index)
        assert (held.prompt, held.answer) == (bare.prompt, bare.answer)
        assert "draft" not in held.fields
    assert [Drafted(2, shown=0.0).problem("train", index).prompt for index in range(20)] == [
        plain.problem("train", index).prompt for index in range(20)
    ]


def test_problems_do_not_change_between_versions() -> None:
    """Changing these changes what every stored result was measured on."""
    task = problem_set("drafted:digits=2,shown=1")
    assert [(p.prompt, p.answer) for p in (task.problem("train", index) for index in range(4))] == [
        ("134;59+75=", "134"),
        ("103;55+45=", "100"),
        ("49;37+12=", "49"),
        ("175;81+54=", "135"),
    ]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="digits=19 is out of range"):
        problem_set("drafted:digits=19")
    with pytest.raises(UserError, match=r"shown=1.5 is out of range"):
        Drafted(shown=1.5)
    with pytest.raises(UserError, match=r"right=-1.0 is out of range"):
        Drafted(right=-1.0)
