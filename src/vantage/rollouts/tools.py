"""Engine of conversations with a tool: a function that answers the policy's turns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from vantage.core import at_least
from vantage.core.component import check_value
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.rollouts.language import Answer, LanguageEngine
from vantage.rollouts.tokens.completions import Completions
from vantage.rollouts.tokens.sampling import Sampling

Tool = Callable[[str], str | None]
"""Function from the text of the policy's turn, without special tokens, to the text that is inserted after it, or None where the
turn calls no tool and ends the conversation."""


class ToolEngine(LanguageEngine):
    """Engine that samples conversations with a tool where a `LanguageEngine` samples completions; rows as of its `converse`.

    `max_new_tokens` of the sampling, and `limit`, bound each turn. The tool is called in this process, once for each turn that
    ended by itself and is not the last one that is allowed. A call fails where the tool raises an exception or returns anything
    but a text of at least one token or None: "Error: " and the exception's message is inserted then, the first failure of each
    kind is shown as a warning, and the share of failed calls is recorded as `tool/errors`.

    Args:
        policy: policy to sample from.
        tool: the tool. A `UserError` that it raises ends the run.
        turns: largest number of the policy's turns, at least 1.
        max_answer_tokens: largest number of inserted tokens of an answer, at least 1; the rest is cut off.
        **settings: arguments of `LanguageEngine`.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self, policy: Any, tool: Tool, *, turns: int = 4, max_answer_tokens: int = 256, **settings: Any
    ) -> None:
        check_value("turns", turns, Annotated[int, at_least(1)])
        check_value("max_answer_tokens", max_answer_tokens, Annotated[int, at_least(1)])
        super().__init__(policy, **settings)
        self.tool, self.turns, self.max_answer_tokens = tool, turns, max_answer_tokens
        self._calls = self._failed = 0
        self._warned: set[str] = set()

    @property
    def max_length(self) -> int:
        """Longest conversation, in tokens, answers of the tool included."""
        return self.max_decisions + (self.turns - 1) * self.max_answer_tokens

    @property
    def max_decisions(self) -> int:
        """Largest number of tokens of a conversation that the policy itself produces."""
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
        """Sample `count` conversations on each prompt; arguments as of `LanguageEngine.sample`."""
        settings = self.settings(sampling, greedy=greedy, limit=limit)
        self._calls = self._failed = 0
        rows = self.converse(prompts, count, context, self._answers, turns=self.turns, sampling=settings)
        context.record("tool/errors", self._failed / max(self._calls, 1))
        return rows

    def resume(self, *given: Any, **settings: Any) -> Trajectories:
        """Raise a UserError: turns that continue from their middle would not be answered."""
        raise UserError(
            "resume: a conversation with a tool cannot be continued from its middle; take a task without a tool"
        )

    def complete(
        self,
        items: Sequence[Any],
        count: int,
        *,
        seed: int,
        sampling: Sampling | None = None,
        answer: Answer | None = None,
        turns: int | None = None,
    ) -> Completions:
        """Sample `count` conversations on each item outside of a run; the tool's answers are `forced`.

        `answer` and `turns` replace the tool and the limit of turns.
        """
        answer, turns = answer or self._answers, turns or self.turns
        return super().complete(items, count, seed=seed, sampling=sampling, answer=answer, turns=turns)

    def _answers(self, rows: list[int], texts: list[str]) -> list[list[int] | None]:
        return [self._answer(text) for text in texts]

    def _answer(self, text: str) -> list[int] | None:
        try:
            said = self.tool(text)
            if said is None:
                return None
            if not isinstance(said, str):
                raise TypeError(f"the tool returned {said!r:.80}, which is neither a text nor None")
            tokens = self.token_ids(said)
            if not tokens:
                raise ValueError("the tool returned a text without a token; None would end the conversation")
        except UserError:
            raise
        except Exception as error:
            kind = type(error).__name__
            if kind not in self._warned:
                self._warned.add(kind)
                warnings.warn(f"the tool failed on {text!r:.80}: {kind}: {error}", stacklevel=2)
            tokens = self.token_ids(f"Error: {error}")
            self._failed += 1
        self._calls += 1
        return tokens[: self.max_answer_tokens]
