"""Sums of several numbers with a calculator at hand: a conversation of turns, each a question to the calculator or the answer.

    prompt      12+34+56=
    policy      12+34<eos>          a turn that holds an operation is a question
    calculator  =46;                what is inserted is not learnt from
    policy      46+56<eos>
    calculator  =102;
    policy      102<eos>            any other turn is the answer and ends the conversation

Half of the worked solutions ask, half answer at once, so that a policy that imitates them does both and can learn which pays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch

from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.tiny import EOS
from vantage.rewards.specs import build, parse, within
from vantage.rollouts.language import LanguageEngine
from vantage.rollouts.tokens.sampling import Sampling
from vantage.tasks.language import space
from vantage.tasks.language.arithmetic import STEP, graded
from vantage.tasks.language.problem import Problem
from vantage.tasks.language.task import ENGINE_OPTIONS, LanguageTask

_QUESTION = re.compile(r"(\d{1,18})([+*-])(\d{1,18})")


def calculate(text: str) -> str | None:
    """Return what the calculator says to a turn: `=46;` to `12+34`, `=?;` to what it cannot read, None to an answer.

    One operation of two whole numbers of at most 18 digits is read.
    """
    question = text.strip()
    if not any(sign in question for sign in "+-*"):
        return None
    found = _QUESTION.fullmatch(question)
    if found is None:
        return f"=?{STEP}"
    first, sign, second = int(found[1]), found[2], int(found[3])
    value = first + second if sign == "+" else first - second if sign == "-" else first * second
    return f"={value}{STEP}"


@dataclass(frozen=True)
class Sums:
    """Add `terms` numbers of `digits` digits: "12+34+56=" has the answer "102".

    Attributes:
        terms: numbers to add, 2 to 6.
        digits: digits of each, 1 to 6.
        asked: share of the worked solutions that ask the calculator, 0 to 1.
    """

    terms: int = 3
    digits: int = 2
    asked: float = 0.5

    def __post_init__(self) -> None:
        within("calculator", "terms", self.terms, 2, 6)
        within("calculator", "digits", self.digits, 1, 6)
        within("calculator", "asked", self.asked, 0, 1)

    @property
    def name(self) -> str:
        """The name, settings included."""
        return f"calculator:terms={self.terms},digits={self.digits},asked={self.asked:g}"

    @property
    def description(self) -> str:
        """One line for people."""
        return f"add {self.terms} numbers of {self.digits} digits, with a calculator"

    @property
    def _least(self) -> int:
        return 10 ** (self.digits - 1) if self.digits > 1 else 0

    @property
    def count(self) -> int:
        """Ordered lists of numbers."""
        return int(10**self.digits - self._least) ** self.terms

    density = 1.0

    def _numbers(self, number: int) -> list[int]:
        found = []
        for _ in range(self.terms):
            number, one = divmod(number, 10**self.digits - self._least)
            found.append(one + self._least)
        return found

    def key(self, number: int) -> str:
        """The numbers without their order."""
        return "+".join(map(str, sorted(self._numbers(number)))) + "="

    def valid(self, number: int) -> bool:
        """Every list is a problem."""
        return True

    def size(self, split: str) -> int:
        """Number of problems in a split."""
        return space.size(self, split)

    def problem(self, split: str, index: int) -> Problem:
        """Return problem `index` of a split; its solution is a conversation for a share `asked` of them."""
        terms = self._numbers(space.number(self, split, index))
        answer = str(sum(terms))
        prompt = "+".join(map(str, terms)) + "="
        # Whether it asks is drawn from the problem's own text, so that it is the same in every process.
        solution = self._conversation(terms) if space.held_out(f"ask {prompt}", self.asked) else answer
        return Problem(prompt, answer, solution, {"task": "calculator", "difficulty": self.terms})

    def _conversation(self, terms: Sequence[int]) -> str:
        said, total = "", terms[0]
        for term in terms[1:]:
            question = f"{total}+{term}"
            said += f"{question}{EOS}{calculate(question)}"
            total += term
        return f"{said}{total}{EOS}"

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return {"correct": 1.0 or 0.0}: whether the last turn is the sum."""
        return graded(problem, completion)

    def alphabet(self) -> str:
        """Every character that a prompt or a solution can hold."""
        return "0123456789+-*=?;"


class CalculatorEngine(LanguageEngine):
    """Samples conversations with the calculator wherever a `LanguageEngine` samples completions.

    Args:
        policy: what acts.
        turns: turns of the policy at most; `max_new_tokens` of the sampling bounds each.
        **settings: of `LanguageEngine`.
    """

    def __init__(self, policy: Any, turns: int, **settings: Any) -> None:
        super().__init__(policy, **settings)
        self.turns = turns

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
        """Sample `count` conversations of each prompt."""
        settings = self._settings(sampling)
        if greedy:
            settings = replace(settings, greedy=True)
        if limit is not None:
            settings = replace(settings, max_new_tokens=min(limit, settings.max_new_tokens))
        return self.converse(prompts, count, context, _answers, turns=self.turns, sampling=settings)

    def complete(self, items: Sequence[Any], count: int, *, seed: int, sampling: Sampling | None = None) -> Any:
        """Hold `count` conversations of each item outside of a run; `tokens`, `length`, `finished` of the completions."""
        alone: Any = SimpleNamespace(generator=torch.Generator().manual_seed(seed % 2**63))
        found = self.sample(Prompts(torch.arange(len(items)), list(items)), count, alone, sampling=sampling)
        return SimpleNamespace(tokens=found.action, length=found.length, finished=found.terminated.any(-1))


def _answers(rows: list[int], texts: list[str]) -> list[str | None]:
    return [calculate(text) for text in texts]


class CalculatorTask(LanguageTask):
    """Sums of several numbers with a calculator; the option `turns` bounds a conversation (default: terms + 1)."""

    def __init__(self, problems: Sums, turns: int | None = None, **options: Any) -> None:
        super().__init__(problems, None, **options)
        self.turns = problems.terms + 1 if turns is None else int(turns)
        within("calculator", "turns", self.turns, 1, 32)

    def make_engine(self, policy: Any, seed: int = 0) -> LanguageEngine:
        """Return an engine that holds conversations."""
        given = {name: self.options[name] for name in ENGINE_OPTIONS if name in self.options}
        sampling = super().make_engine(policy, seed).sampling
        self._engine = CalculatorEngine(policy, self.turns, sampling=sampling, **given)
        return self._engine


def task_from_spec(spec: str, verifier: str = "", options: Mapping[str, Any] | None = None) -> CalculatorTask:
    """Return the task of `calculator:terms=3,digits=2`.

    Raises:
        UserError: a setting is not known or out of range, or a verifier is given: the task judges itself.
    """
    name, settings = parse("task", spec, {"calculator": Sums}, {})
    if verifier:
        raise UserError(f"--verifier={verifier}: the task {name!r} judges itself")
    made: Any = build("task", name, Sums, settings)
    return CalculatorTask(made, **dict(options or {}))
