"""Verifiers read the policy's own words: what a tool printed earns nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.harness import context
from vantage.core import Trajectories, UserError
from vantage.core.trajectories import ENVIRONMENT
from vantage.metrics import Metrics
from vantage.rewards.mixing import Overlong, Total
from vantage.tasks.language.calculator import task_from_spec
from vantage.tasks.language.problem import Problem
from vantage.tasks.language.task import LanguageTask
from vantage.tasks.language.turns import marked_texts, verified_texts

ANSWER = "125"


class OneSum:
    """A problem set of one sum."""

    name, description = "one-sum", "one sum"

    def size(self, split: str) -> int:
        return 1

    def problem(self, split: str, index: int) -> Problem:
        return Problem("58+67=", ANSWER, ANSWER)

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        return {"correct": float(problem.answer in completion.split())}

    def alphabet(self) -> str:
        return "0123456789+=x \n"


def task_of(**options: Any) -> LanguageTask:
    return LanguageTask(OneSum(), **options)


@pytest.fixture(scope="module")
def policy() -> Any:
    return task_of().make_policy()


def conversation(policy: Any, *parts: tuple[str, bool]) -> Trajectories:
    """One row: pieces of text, each with whether the policy said it."""
    ids = [(policy.tokenizer(text)["input_ids"], mine) for text, mine in parts]
    tokens = [token for piece, _ in ids for token in piece]
    mine = torch.tensor([[said for piece, said in ids for _ in piece]])
    return Trajectories(
        {
            "action": torch.tensor([tokens]),
            "mask": mine,
            "length": torch.tensor([len(tokens)]),
            "origin": torch.where(mine, 0, ENVIRONMENT).to(torch.int8),
            "prompt": torch.tensor([0]),
        }
    )


def scored(task: LanguageTask, batch: Trajectories, policy: Any) -> float:
    metrics = Metrics()
    where: Any = SimpleNamespace(policy=policy, metrics=metrics, record=metrics.record)
    return float(task.score(batch, where)["correct"])


def test_what_a_tool_printed_earns_nothing(policy: Any) -> None:
    idle = conversation(policy, ("xxx", True), (f" {ANSWER} ", False), ("xxx", True))
    assert scored(task_of(), idle, policy) == 0.0
    assert scored(task_of(reads="last"), idle, policy) == 0.0
    assert scored(task_of(reads="all"), idle, policy) == 1.0
    early = conversation(policy, (ANSWER, True), (" 9 ", False), ("xxx", True))
    assert scored(task_of(), early, policy) == 1.0
    assert scored(task_of(reads="last"), early, policy) == 0.0
    with pytest.raises(UserError, match=r"one-sum: reads='some' is not known: own, last, all"):
        task_of(reads="some")


def test_kept_words_of_the_policy_are_read_though_they_are_not_learnt_from(policy: Any) -> None:
    batch = conversation(policy, (ANSWER, True), (" 9", False), (" x", True))
    learnt = torch.zeros_like(batch.mask)
    learnt[0, -1] = True
    assert scored(task_of(), batch.replace(mask=learnt), policy) == 1.0
    plain = batch.replace(mask=learnt, origin=None, action=batch.action, length=torch.tensor([3]))
    assert scored(task_of(), plain, policy) == 1.0


def test_turns_stand_on_lines_of_their_own() -> None:
    tokens = torch.tensor([[1, 2, 9, 9, 3, 0], [9, 4, 9, 5, 6, 9], [7, 8, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0]])
    length = torch.tensor([5, 6, 2, 1])

    def decode(rows: list[list[int]]) -> list[str]:
        return ["".join(map(str, row)) for row in rows]

    def read(reads: str) -> list[str]:
        return verified_texts(tokens, length, tokens != 9, reads, decode)

    assert read("own") == ["12\n3", "4\n56", "78", ""]
    assert read("last") == ["3", "56", "78", ""]
    assert read("all") == ["12993", "949569", "78", "9"]
    assert marked_texts(tokens, length, tokens != 9, decode) == [
        "[policy] 12\n[inserted] 99\n[policy] 3",
        "[inserted] 9\n[policy] 4\n[inserted] 9\n[policy] 56\n[inserted] 9",
        "78",
        "[inserted] 9",
    ]
    assert marked_texts(tokens, length, None, decode) == ["12993", "949569", "78", "9"]
    assert marked_texts(tokens[:, :0], torch.zeros(4, dtype=torch.int64), None, decode) == [""] * 4


def test_an_evaluation_reads_the_same_words(policy: Any) -> None:
    for reads, expected in (("own", 0.0), ("last", 0.0), ("all", 1.0)):
        task = task_of(reads=reads, evaluated=1)
        batch = conversation(policy, ("xxx", True), (f" {ANSWER} ", False), ("xxx", True))
        engine = task.make_engine(policy)
        found = SimpleNamespace(
            tokens=batch.action, length=batch.length, forced=~batch.mask, finished=torch.tensor([True])
        )
        engine.complete = lambda *given, found=found, **settings: found  # type: ignore[method-assign]
        assert task.evaluate(policy, samples=1, seed=0)["pass@1"] == expected


def test_a_tool_that_prints_the_answer_pays_a_policy_that_says_nothing_of_it_nothing(policy: Any) -> None:
    """Through `converse`: whatever the policy says, the tool prints the answer."""
    task = task_of(max_new_tokens=8)
    engine = task.make_engine(policy)
    where: Any = SimpleNamespace(generator=torch.Generator().manual_seed(0))
    prompts = task.prompts(torch.tensor([0]))
    batch = engine.converse(prompts, 200, where, lambda rows, texts: [f" {ANSWER} " for _ in rows], turns=2)
    answered = batch.turn.amax(-1) > 0
    assert int(answered.sum()) > 0
    metrics = Metrics()
    context: Any = SimpleNamespace(policy=policy, metrics=metrics, record=metrics.record)
    assert float(task.score(batch, context)["correct"].sum()) == 0.0
    whole = task_of(reads="all").score(batch, context)["correct"]
    assert torch.equal(whole.bool(), answered)


def test_length_rewards_count_the_policys_own_tokens() -> None:
    """Ten positions, of which the policy said four and a tool six: with a limit of 6 and a buffer of 4 four cost 2 / 4."""
    mask = torch.tensor([[True] * 2 + [False] * 6 + [True] * 2])
    batch = Trajectories(
        {
            "mask": mask,
            "origin": (~mask).to(torch.int8),
            "length": torch.tensor([10]),
            "rewards": {"correct": torch.tensor([1.0])},
            "group": torch.zeros(1, dtype=torch.int64),
        }
    )
    found = Overlong(buffer=4, limit=6)(Total()(batch, context()), context())
    assert found.score.tolist() == [0.5]
    assert found.reward[0].tolist() == [0.0] * 9 + [0.5]
    engine = task_from_spec("calculator:terms=2,digits=1", options={"max_new_tokens": 8, "turns": 2})
    held: Any = engine.make_engine(engine.make_policy())
    assert (held.max_decisions, held.max_length) == (16, 24)
