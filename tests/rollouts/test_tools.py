"""Conversations with a tool: what is inserted, where they end, and calls that fail."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tasks.language.scripted import Scripted
from vantage import api
from vantage.core import UserError
from vantage.policies.language import LanguagePolicy
from vantage.rollouts.tokens.sampling import Sampling
from vantage.rollouts.tools import ToolEngine
from vantage.tasks.language.preference import PaddedSorting, PairTask
from vantage.tasks.language.sums import Sums
from vantage.tasks.language.task import LanguageTask
from vantage.tasks.registry import check_needs

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def policy() -> LanguagePolicy:
    return LanguagePolicy.new()


def tool(turn: str) -> Any:
    """Answer "ask" by "=1;", an end by None, and fail otherwise."""
    if turn == "stop":
        raise UserError("the service is gone")
    return {"ask": "=1;", "end": None, "number": 3, "empty": "", "long": "=1234567890;"}[turn]


def hold(
    policy: LanguagePolicy, *scripts: list[str], **settings: Any
) -> tuple[list[str], dict[str, float], ToolEngine]:
    """Return the texts of a conversation for each script, what was recorded, and the engine."""
    engine = ToolEngine(policy, tool, **{"sampling": Sampling(max_new_tokens=9), **settings})
    engine.tokens = Scripted(policy, lambda prompt, row: scripts[row])  # type: ignore[assignment]
    recorded: dict[str, float] = {}
    where: Any = SimpleNamespace(generator=torch.Generator().manual_seed(0), record=recorded.__setitem__)
    prompts: Any = SimpleNamespace(ids=torch.arange(len(scripts)), items=["1+1="] * len(scripts))
    return engine.texts(engine.sample(prompts, 1, where)), recorded, engine


def test_a_conversation_ends_without_a_call_at_the_limit_of_turns_and_where_a_turn_is_cut(
    policy: LanguagePolicy,
) -> None:
    texts, recorded, _ = hold(policy, ["ask", "ask", "ask"], ["ask", "end"], ["end"], ["ask", "123456789"], turns=3)
    assert texts == ["ask=1;ask=1;ask", "ask=1;end", "end", "ask=1;123456789"]
    assert recorded == {"tool/errors": 0.0}


def test_an_answer_is_cut_and_bounds_the_length(policy: LanguagePolicy) -> None:
    texts, _, engine = hold(policy, ["long", "end"], max_answer_tokens=4, turns=3)
    assert texts == ["long=123end"]
    assert (engine.max_decisions, engine.max_length) == (3 * 9, 3 * 9 + 2 * 4)


def test_a_call_that_fails_is_answered_by_its_error_and_counted(policy: LanguagePolicy) -> None:
    scripts = [["1", "end"], ["2", "end"], ["number", "end"], ["empty", "end"], ["ask", "end"]]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        texts, recorded, _ = hold(policy, *scripts, max_answer_tokens=13)
    assert texts[:2] == ["1Error: '1'end", "2Error: '2'end"]
    assert texts[2] == "numberError: the toend"  # 13 tokens of the message
    assert texts[4] == "ask=1;end"
    assert recorded == {"tool/errors": 0.8}  # 4 of 5 calls; the turns that end are none
    told = [str(one.message) for one in warned]
    assert len(told) == 3  # the first of each kind
    assert told[0] == "the tool failed on '1': KeyError: '1'"
    assert told[1] == "the tool failed on 'number': TypeError: the tool returned 3, which is neither a text nor None"
    assert told[2].startswith("the tool failed on 'empty': ValueError: the tool returned a text without a token")
    with pytest.raises(UserError, match="the service is gone"):
        hold(policy, ["stop"])


def test_settings_of_a_call_apply_on_top(policy: LanguagePolicy) -> None:
    engine = ToolEngine(policy, tool, sampling=Sampling(max_new_tokens=9, top_k=5))
    found = engine.settings(greedy=True, limit=4)
    assert (found.max_new_tokens, found.greedy, found.top_k, found.temperature) == (4, True, 5, policy.temperature)
    assert engine.settings(Sampling(max_new_tokens=3, temperature=0.5), limit=7).max_new_tokens == 3
    assert engine.settings(Sampling(temperature=0.5)).temperature == 0.5


def test_wrong_settings_are_refused(policy: LanguagePolicy) -> None:
    for name in ("turns", "max_answer_tokens"):
        with pytest.raises(UserError, match=f"{name}=0 is out of range: at least 1"):
            ToolEngine(policy, tool, **{name: 0})
        without: dict[str, Any] = {name: 2}
        with pytest.raises(UserError, match=f"no option '{name}'"):
            LanguageTask(Sums(), **without)
        with pytest.raises(UserError, match=rf"calculator:terms=3,digits=2: {name}=0 is out of range: at least 1"):
            LanguageTask(Sums(), tool=tool, **{name: 0})
    with pytest.raises(UserError, match="tool='calculate' is no function"):
        LanguageTask(Sums(), tool="calculate")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pairs go without a tool"):
        PairTask(PaddedSorting(), tool=tool)


def test_what_a_task_with_a_tool_cannot_do_is_refused_before_anything_is_loaded() -> None:
    task = LanguageTask(Sums(), tool=tool)
    with pytest.raises(UserError, match="vineppo needs an engine that resumes from the middle of a row"):
        api.train("vineppo", task)
    with pytest.raises(UserError, match="otc needs conversations in which the environment answers"):
        check_needs("otc", {"turns"}, "addition:digits=2")
    check_needs("otc", {"turns"}, task)
    with pytest.raises(UserError, match="engine=vllm holds no conversations: leave it out, the task calculator"):
        api._check_engine("vllm", task)
