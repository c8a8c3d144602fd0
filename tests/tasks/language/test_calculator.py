"""The calculator: what it says, what is learnt from, how turns are counted and bounded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tasks.language.scripted import Scripted
from vantage.core import Schedule, Trainer, UserError
from vantage.core.trajectories import Trajectories
from vantage.methods import registry
from vantage.policies.language import LanguagePolicy
from vantage.rollouts.continuation import last_turn
from vantage.rollouts.language import LanguageEngine
from vantage.study.arenas import arena
from vantage.study.evaluation import task_of
from vantage.tasks.language.calculator import CalculatorTask, task_from_spec
from vantage.tasks.language.sft import TURNS, Demonstrations, conversation
from vantage.tasks.language.sums import Sums, calculate
from vantage.tasks.registry import make_task

pytest.importorskip("transformers")

SCRIPT = {  # what the scripted policy says in its turns, by the prompt
    "1+2+3=": ["1+2", "3+3", "6"],
    "4+5+6=": ["15"],
    "7+8+9=": ["7+8+9", "7x8", "24"],
    "1+1+1=": ["1+1", "2+1", "3+0", "3"],
    "2+2+2=": ["", "6"],
    "3+3+3=": ["3+3+3+3+3+3", "9"],
}


def said(prompt: str, row: int) -> list[str]:
    return SCRIPT[prompt]


@pytest.fixture(scope="module")
def policy() -> LanguagePolicy:
    return LanguagePolicy.new()


def scripted(policy: LanguagePolicy, **options: Any) -> tuple[CalculatorTask, LanguageEngine]:
    task = task_from_spec("calculator:terms=3,digits=1", options={"max_new_tokens": 8, **options})
    engine = task.make_engine(policy)
    engine.tokens = Scripted(policy, said)  # type: ignore[assignment]
    return task, engine


def held(policy: LanguagePolicy, count: int = 1, **options: Any) -> tuple[Trajectories, list[str]]:
    _, engine = scripted(policy, **options)
    where: Any = SimpleNamespace(generator=torch.Generator().manual_seed(0), record=lambda name, value: None)
    prompts: Any = SimpleNamespace(ids=torch.arange(len(SCRIPT)), items=list(SCRIPT))
    batch = engine.sample(prompts, count, where)
    return batch, engine.texts(batch)


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        ("12+34", "=46;"), ("7-9", "=-2;"), ("12*12", "=144;"), (" 1+1 ", "=2;"), ("46", None), ("", None), ("5;6", None),
        ("1+2+3", "=?;"), ("+3", "=?;"), ("1+", "=?;"), ("=46;46+56", "=?;"), ("1234567890123456789+1", "=?;"), ("²+1", "=?;"),
    ],
)  # fmt: skip
def test_what_the_calculator_says(turn: str, answer: str | None) -> None:
    assert calculate(turn) == answer


def test_turns_are_heard_answered_and_numbered(policy: LanguagePolicy) -> None:
    batch, texts = held(policy)
    assert texts == ["1+2=3;3+3=6;6", "15", "7+8+9=?;7x8", "1+1=2;2+1=3;3+0=3;3", "", "3+3+3+3+"]
    assert last_turn(batch).tolist() == [2, 0, 1, 3, 0, 0]
    for row, text in enumerate(texts):
        size = int(batch.length[row])
        inside = batch.turn[row, :size]
        assert bool((inside.diff() >= 0).all())
        assert bool((inside.diff() <= 1).all())
        for turn in range(int(inside.max()) + 1):
            spoken = batch.action[row, :size][(inside == turn) & batch.mask[row, :size]]
            # Each turn of the policy is what it said and its end token, and nothing of the calculator's.
            assert policy.tokenizer.decode(spoken, skip_special_tokens=True) == SCRIPT[list(SCRIPT)[row]][turn][:8]
        put_in = batch.action[row, :size][~batch.mask[row, :size]]
        answers = [part for part in text.replace(";", ";|").split("|") if part.endswith(";")]
        assert policy.tokenizer.decode(put_in) == "".join(part[part.index("=") :] for part in answers)


def test_a_turn_that_is_cut_is_not_answered_and_counts_as_truncated(policy: LanguagePolicy) -> None:
    batch, _ = held(policy)
    assert batch.truncated.any(-1).tolist() == [False] * 5 + [True]
    assert batch.terminated.any(-1).tolist() == [True] * 5 + [False]
    assert int(batch.length[5]) == 8


def test_the_number_of_turns_is_bounded(policy: LanguagePolicy) -> None:
    batch, texts = held(policy, turns=2)
    assert texts == ["1+2=3;3+3", "15", "7+8+9=?;7x8", "1+1=2;2+1", "", "3+3+3+3+"]
    assert last_turn(batch).tolist() == [1, 0, 1, 1, 0, 0]
    alone, texts = held(policy, turns=1)
    assert texts[:2] == ["1+2", "15"]
    assert bool((alone.turn == 0).all())
    _, engine = scripted(policy, turns=3)
    # The longest question is of seven characters and the end token: 999*999 and =998001;
    assert engine.max_length == 3 * 8 + 2 * 8
    assert len(str(calculate("999*999"))) == 8
    assert scripted(policy)[0].turns == 4
    for wrong in (0, 33):
        with pytest.raises(UserError, match=f"turns={wrong}"):
            task_from_spec("calculator", options={"turns": wrong})


def test_evaluation_holds_conversations_and_counts_calls(policy: LanguagePolicy, monkeypatch: Any) -> None:
    task, _ = scripted(policy, evaluated=4)
    made = task.make_engine(policy)
    made.tokens = Scripted(policy, said)  # type: ignore[assignment]
    prompts = list(SCRIPT)
    problems = [
        task.problems.problem("test", 0).__class__(p, str(sum(map(int, p[:-1].split("+"))))) for p in prompts[:4]
    ]
    monkeypatch.setattr(Sums, "problem", lambda self, split, index: problems[index])
    judged = task.evaluate(policy, samples=2, seed=0)
    assert judged["pass@1"] == judged["pass@2"] == judged["maj@2"] == 0.75  # the third says 7x8
    assert judged["calls"] == pytest.approx((2 + 0 + 1 + 3) / 4)
    assert judged["truncated"] == 0
    assert judged["length"] == pytest.approx(
        sum(map(len, ["1+2|=3;3+3|=6;6|", "15|", "7+8+9|=?;7x8|", "1+1|=2;2+1|=3;3+0|=3;3|"])) / 4
    )


def test_the_mask_of_worked_conversations_leaves_out_the_calculator(policy: LanguagePolicy) -> None:
    task = task_from_spec("calculator:terms=4,digits=2,asked=1.0")
    where: Any = SimpleNamespace(
        policy=policy, task=task, generator=torch.Generator().manual_seed(0), device=torch.device("cpu")
    )
    part = Demonstrations(batch=8, bucket=1)
    part.prepare(where)
    batch = part(where)
    end = policy.tokenizer.eos_token
    for row in range(8):
        problem = task.problems.problem("train", int(batch.prompt[row]))
        turns = problem.fields[TURNS]
        assert len(turns) == 7
        own, said = batch.mask[row], batch.action[row]
        assert policy.tokenizer.decode(said[own]) == end.join([*turns[::2], ""])
        size = int(batch.length[row])
        assert policy.tokenizer.decode(said[:size][~own[:size]]) == "".join(turns[1::2])
        assert not own[size:].any()
    # No gradient reaches what the model predicts for the calculator.
    logp = policy.evaluate(batch, frozenset({"logp"})).logp
    assert bool((logp[~batch.mask] == 0).all())
    with pytest.raises(UserError, match="2 turns does not end with the policy's"):
        conversation(policy, ("1+1", "=2;"))


def test_a_conversation_that_repeats_a_worked_one_is_the_same_row(policy: LanguagePolicy) -> None:
    """What is imitated is, token by token, what the engine holds."""
    tokens, learnt = conversation(policy, ("1+2", "=3;", "3+3", "=6;", "6"))
    batch, _ = held(policy)
    assert batch.action[0, : int(batch.length[0])].tolist() == tokens
    assert batch.mask[0, : int(batch.length[0])].tolist() == learnt


def test_worked_solutions_are_right_and_half_of_them_ask() -> None:
    problems = Sums(3, 2)
    found = [problems.problem("train", index) for index in range(400)]
    assert all(problems.score(one, one.solution) == {"correct": 1.0} for one in found)
    asked = sum(TURNS in one.fields for one in found)
    assert 160 < asked < 240
    letters = set(problems.alphabet())
    assert all(set(f"{one.prompt}{one.solution}") <= letters for one in found)
    for share, expected in ((0.0, 0), (1.0, 50)):
        given = [Sums(3, 2, share).problem("train", index) for index in range(50)]
        assert sum(TURNS in one.fields for one in given) == expected
    for turns in (one.fields[TURNS] for one in found if TURNS in one.fields):
        assert [calculate(question) for question in turns[::2]] == [*turns[1::2], None]
    careful = [Sums(3, 2, 1.0, 0.5).problem("train", index) for index in range(200)]
    assert all(problems.score(one, one.solution) == {"correct": 1.0} for one in careful)
    twice = [one.fields[TURNS] for one in careful if len(one.fields[TURNS]) == 7]
    assert 70 < len(twice) < 130
    assert all(turns[4] == f"{turns[-1]}+0" for turns in twice)
    held = [problems.problem("test", i) for i in range(problems.size("test"))]
    test, train = ({"+".join(sorted(str(one.prompt)[:-1].split("+"))) for one in part} for part in (held, found))
    assert not test & train


def test_settings_are_checked_and_ranges_mixed() -> None:
    task = make_task("calculator:terms=2..3,digits=1..2")
    assert isinstance(task, CalculatorTask)
    assert task.turns == 4
    assert Sums(2, 1, 0.25, 1.0).name == "calculator:terms=2,digits=1,asked=0.25,checked=1"
    assert {task.problems.problem("train", index).fields["difficulty"] for index in range(8)} == {1, 2}
    for spec, message in (
        ("calculator:terms=1", "terms=1"),
        ("calculator:asked=1.5", r"asked=1\.5"),
        ("calculator:term=3", "no setting 'term'"),
    ):
        with pytest.raises(UserError, match=message):
            make_task(spec)
    with pytest.raises(UserError, match="has a verifier of its own"):
        make_task("calculator", verifier="numeric")
    with pytest.raises(UserError, match="no option 'turn'"):
        make_task("calculator", options={"turn": 3})


def test_going_on_from_the_middle_is_refused(policy: LanguagePolicy) -> None:
    batch, _ = held(policy)
    _, engine = scripted(policy)
    where: Any = SimpleNamespace(generator=torch.Generator())
    with pytest.raises(UserError, match="cannot be continued from its middle"):
        engine.resume(batch, torch.tensor([0]), torch.tensor([1]), 1, where)


def test_the_real_engine_trains_on_conversations(tmp_path: Any) -> None:
    task = task_from_spec("calculator:terms=2,digits=1,asked=1.0", options={"max_new_tokens": 5, "evaluated": 8})
    policy: Any = task.make_policy(seed=0)
    made = registry.page("sft").build({"batch": 32, "lr": 3e-3})
    Trainer(made, task, policy, task.make_engine(policy), Schedule(40), seed=0).run()
    grpo = registry.page("grpo").build({"prompts": 8, "group_size": 4, "beta": 0.0, "lr": 1e-4})
    run = Trainer(grpo, task, policy, task.make_engine(policy), Schedule(2), seed=0)
    batch = run.context.method.rollout(run.context)
    assert int(last_turn(batch).max()) >= 1
    inside = torch.arange(batch.steps) < batch.length[:, None]
    put_in = inside & ~batch.mask
    assert bool(put_in.any())
    ends = policy.stop_tokens[0]
    texts = policy.tokenizer.batch_decode(
        [row[:n] for row, n in zip(batch.action.tolist(), batch.length.tolist(), strict=True)]
    )
    for row, text in enumerate(texts):
        turns = text.split(policy.tokenizer.decode([ends]))
        if last_turn(batch)[row] == 1:
            assert turns[1].startswith(str(calculate(turns[0])))
    # The policy that acted gives the recorded log-probabilities again, past what was put in.
    again = policy.evaluate(batch, frozenset({"logp"})).logp
    torch.testing.assert_close(again[batch.mask], batch.logp_old[batch.mask], rtol=1e-3, atol=1e-3)
    history = run.run().history
    assert history[-1]["rollout/calls"] > 0
    judged = task.evaluate(policy, samples=2, seed=0)
    assert 0 < judged["calls"] <= 2


def test_the_arena_holds_conversations() -> None:
    found = task_of(arena("calculator"))
    assert isinstance(found, CalculatorTask)
    assert found.turns == 4
    assert found.evaluated > 200
