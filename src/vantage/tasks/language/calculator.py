"""Task of sums with a calculator as the policy's tool: each turn is a question to the calculator, or the answer.

    prompt      12+34+56=
    policy      12+34<eos>      a turn that holds an operation is a question
    calculator  =46;            inserted tokens are outside of the mask: they are not trained on
    policy      46+56<eos>
    calculator  =102;
    policy      102<eos>        any other turn is the answer and ends the conversation

The option `turns` bounds the policy's turns. A question in the last one is not answered, so the conversation ends without the
sum; a turn that reaches `max_new_tokens` is truncated, and ends it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from vantage.core import between
from vantage.core.component import check_value
from vantage.core.errors import UserError
from vantage.rollouts.tokens.sampling import Sampling
from vantage.tasks.language.mixed import Mixed
from vantage.tasks.language.problems import problem_set
from vantage.tasks.language.sums import Sums, calculate
from vantage.tasks.language.task import LanguageTask


class CalculatorTask(LanguageTask):
    """Task of sums with a calculator; the policy's last turn is scored, unless the option `reads` says otherwise.

    Args:
        problems: `Sums`, or several of them mixed.
        turns: largest number of the policy's turns; None for one more than there are numbers to add.
        **options: of `LanguageTask`; `max_new_tokens` bounds a turn.
    """

    def __init__(self, problems: Sums | Mixed, turns: int | None = None, **options: Any) -> None:
        parts: Sequence[Any] = problems.parts if isinstance(problems, Mixed) else (problems,)
        self.turns = max(part.terms for part in parts) + 1 if turns is None else turns
        check_value("calculator: turns", self.turns, Annotated[int, between(1, 32)])
        # With one token per character an answer is no longer than a turn, or `=?;`.
        longest = max(int(options.get("max_new_tokens", Sampling.max_new_tokens)), len("=?;"))
        bounds = {"max_answer_tokens": longest, **options, "turns": self.turns}
        super().__init__(problems, None, tool=calculate, **bounds)


def task_from_spec(spec: str, verifier: str = "", options: Mapping[str, Any] | None = None) -> CalculatorTask:
    """Make the task of `calculator:terms=3,digits=1..2`; a range mixes its sets in equal parts.

    Raises:
        UserError: a setting or option is not known or out of range, or a verifier is given: the task has a verifier of its own.
    """
    if verifier:
        raise UserError(f"--verifier={verifier}: the task {spec!r} has a verifier of its own")
    problems: Any = problem_set(spec, {"calculator": Sums})
    return CalculatorTask(problems, **dict(options or {}))
