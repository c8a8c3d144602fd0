"""Sums with a calculator at hand: a conversation of turns, each a question to the calculator or the answer.

    prompt      12+34+56=
    policy      12+34<eos>      a turn that holds an operation is a question
    calculator  =46;            what is put in is outside of the mask: nothing learns from it
    policy      46+56<eos>
    calculator  =102;
    policy      102<eos>        any other turn is the answer and ends the conversation

The option `turns` bounds the policy's turns. A question in the last one is not answered, so the conversation ends without the
sum; a turn that reaches `max_new_tokens` is cut, and ends it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch

from vantage.core import between
from vantage.core.component import check_value
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.rollouts.language import LanguageEngine, last_turn, turn_numbers
from vantage.rollouts.tokens.completions import Completions
from vantage.rollouts.tokens.sampling import Sampling
from vantage.tasks.language.mixed import Mixed
from vantage.tasks.language.problem import Problem
from vantage.tasks.language.problems import problem_set
from vantage.tasks.language.sums import Sums, calculate
from vantage.tasks.language.task import ENGINE_OPTIONS, LanguageTask


class CalculatorEngine(LanguageEngine):
    """Holds conversations with the calculator wherever a `LanguageEngine` samples completions; rows as of its `converse`.

    `max_new_tokens` of the sampling, and `limit`, bound each turn.

    Args:
        policy: what acts.
        turns: turns of the policy at most.
        **settings: of `LanguageEngine`.
    """

    def __init__(self, policy: Any, turns: int, **settings: Any) -> None:
        super().__init__(policy, **settings)
        self.turns = turns

    @property
    def max_length(self) -> int:
        """Tokens of the longest conversation, at a token a character: an answer is no longer than a turn, or `=?;`."""
        turn = self.sampling.max_new_tokens
        return self.turns * turn + (self.turns - 1) * max(turn, len("=?;"))

    @property
    def max_decisions(self) -> int:
        """Most tokens of the policy in a conversation."""
        return self.turns * self.sampling.max_new_tokens

    def sample(
        self,
        prompts: Prompts,
        count: int,
        context: Context,
        *,
        greedy: bool = False,
        limit: int | None = None,
        sampling: Sampling | None = None,
    ) -> Trajectories:
        """Hold `count` conversations on each prompt."""
        settings = self._settings(sampling)
        if greedy:
            settings = replace(settings, greedy=True)
        if limit is not None:
            settings = replace(settings, max_new_tokens=min(limit, settings.max_new_tokens))
        return self.converse(prompts, count, context, _answers, turns=self.turns, sampling=settings)

    def resume(self, *given: Any, **settings: Any) -> Trajectories:
        """Raise a UserError: what goes on from the middle of a turn would not be answered."""
        raise UserError(
            "a conversation with the calculator cannot be gone on with from its middle: use a task of one turn"
        )

    def complete(self, items: Sequence[Any], count: int, *, seed: int, sampling: Sampling | None = None) -> Completions:
        """Hold `count` conversations on each item outside of a run; what the calculator says is `forced`."""
        return self._conversations(self.encode(items), count, self._settings(sampling), seed, _answers, self.turns)


def _answers(rows: list[int], texts: list[str]) -> list[str | None]:
    return [calculate(text) for text in texts]


class CalculatorTask(LanguageTask):
    """Sums with a calculator; the policy's last turn is judged, unless the option `reads` says otherwise.

    Args:
        problems: `Sums`, or several of them mixed.
        turns: turns of the policy at most; None is one for each number to add, and one more.
        **options: of `LanguageTask`; `max_new_tokens` bounds a turn.
    """

    default_reads = "last"

    def __init__(self, problems: Sums | Mixed, turns: int | None = None, **options: Any) -> None:
        super().__init__(problems, None, **options)
        parts: Sequence[Any] = problems.parts if isinstance(problems, Mixed) else (problems,)
        self.turns = max(part.terms for part in parts) + 1 if turns is None else turns
        check_value("calculator: turns", self.turns, Annotated[int, between(1, 32)])

    def make_engine(self, policy: Any, seed: int = 0) -> LanguageEngine:
        """Return an engine that holds conversations."""
        given = {name: self.options[name] for name in ENGINE_OPTIONS if name in self.options}
        self._engine = CalculatorEngine(policy, self.turns, sampling=self._sampling(), **given)
        return self._engine

    def observe(self, batch: Trajectories, context: Context) -> None:
        """Record the mean number of calls too, as `rollout/calls`."""
        context.record("rollout/calls", last_turn(batch).float().mean())
        super().observe(batch, context)

    def _figures(self, problems: Sequence[Problem], found: Any, texts: Sequence[str], samples: int) -> dict[str, float]:
        """The figures of every language task, and `calls`: mean number of questions that were answered."""
        calls = turn_numbers(found.forced).amax(-1) if found.forced.shape[1] else torch.zeros(1)
        return {**super()._figures(problems, found, texts, samples), "calls": float(calls.double().mean())}


def task_from_spec(spec: str, verifier: str = "", options: Mapping[str, Any] | None = None) -> CalculatorTask:
    """Return the task of `calculator:terms=3,digits=1..2`; a range mixes its sets in equal parts.

    Raises:
        UserError: a setting or option is not known or out of range, or a verifier is given: the task judges itself.
    """
    if verifier:
        raise UserError(f"--verifier={verifier}: the task {spec!r} judges itself")
    problems: Any = problem_set(spec, {"calculator": Sums})
    return CalculatorTask(problems, **dict(options or {}))
