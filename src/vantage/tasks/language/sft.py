"""Supervised fine-tuning: texts to imitate as rows whose decisions are the texts' tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch

from vantage.core import at_least, component, memory
from vantage.core.context import Context
from vantage.core.costs import Cost
from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories
from vantage.rewards.verifiers import verifier
from vantage.rollouts.continuation import padded
from vantage.tasks.language.data import ProblemTable, prompt_key
from vantage.tasks.language.pairs import Demonstration
from vantage.tasks.language.problem import Problem
from vantage.tasks.language.space import held_out as falls_out

TURNS = "turns"
"""Field of a problem whose solution is a conversation: the turns of the policy and its environment."""


class _Example(NamedTuple):
    number: int
    prompt: list[int]
    completion: list[int]
    learnt: list[bool]
    cut: bool


@component
class Demonstrations:
    """Rollout that reads the next `batch` worked solutions of the task's training problems; nothing is sampled.

    Every problem is used once per epoch, in an order that the run's seed determines. The problems of `bucket` batches are sorted
    by length, divided into batches, and the batches are shuffled, so that rows of a batch have similar lengths.

    Attributes:
        batch: rows per step, at least 1.
        bucket: number of batches that are sorted together, at least 1; 1 keeps the random order.
        max_tokens: longest completion, in tokens; a longer one is truncated and marked so. 0 for no limit.
    """

    batch: Annotated[int, at_least(1)] = 64
    bucket: Annotated[int, at_least(1)] = 8
    max_tokens: Annotated[int, at_least(0)] = 0
    _state: dict[str, int] = memory()
    _ready: list[Any] = memory(list)
    needs = frozenset({"demonstrations"})

    def prepare(self, context: Context) -> None:
        """Sample the seed of the orders.

        Raises:
            UserError: the task has no problems with worked solutions.
        """
        if not hasattr(context.task, "problems"):
            raise UserError(
                f"Demonstrations: the task {context.task.name!r} has no worked solutions: take a language task, or"
                " --data FILE with solutions"
            )
        self._state.update(seed=int(torch.randint(2**62, (), generator=context.generator)), step=0)
        self._ready.clear()

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step."""
        return Cost(self.batch, self.batch)

    def __call__(self, context: Context) -> Trajectories:
        """Return the next batch."""
        step = self._state["step"]
        self._state["step"] += 1
        round_, place = divmod(step, self.bucket)
        if not self._ready or self._ready[0] != round_:
            self._ready[:] = [round_, self._sorted(round_, context)]
        return _rows(self._ready[1][place], context.policy, context.device)

    def _sorted(self, round_: int, context: Context) -> list[list[_Example]]:
        """Return the encoded batches of a round."""
        task: Any = context.task
        policy: Any = context.policy
        chosen = self._numbers(round_ * self.batch * self.bucket, self.batch * self.bucket, task.size)
        examples = []
        for number in chosen:
            problem = task.problems.problem("train", number)
            if TURNS in problem.fields:
                prompt = policy.encode(problem.prompt)
                completion, learnt = conversation(policy, problem.fields[TURNS])
            else:
                prompt, completion = encoded(policy, problem)
                learnt = [True] * len(completion)
            most = self.max_tokens or len(completion)
            examples.append(_Example(number, prompt, completion[:most], learnt[:most], most < len(completion)))
        if self.bucket > 1:
            examples.sort(key=lambda example: (len(example.prompt) + len(example.completion), example.number))
        batches = [examples[start : start + self.batch] for start in range(0, len(examples), self.batch)]
        order = torch.randperm(len(batches), generator=self._generator(-1 - round_)).tolist()
        return [batches[i] for i in order] if self.bucket > 1 else batches

    def _numbers(self, start: int, count: int, size: int) -> list[int]:
        """Return problems `start` to `start + count` of the infinite sequence of shuffled epochs."""
        found: list[int] = []
        while len(found) < count:
            epoch, cursor = divmod(start + len(found), size)
            order = torch.randperm(size, generator=self._generator(epoch))
            found += order[cursor : cursor + count - len(found)].tolist()
        return found

    def _generator(self, stream: int) -> torch.Generator:
        # Random streams of epochs are 0, 1, ...; those of the order of batches are negative.
        return torch.Generator().manual_seed((self._state["seed"] + 0x9E3779B97F4A7C15 * stream) % 2**63)

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and the number of steps done."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self._state.update({name: int(value) for name, value in state.items()})
        self._ready.clear()


def encoded(policy: Any, problem: Problem) -> tuple[list[int], list[int]]:
    """Return the tokens of a problem's prompt and of the text to imitate, its solution or else its answer, with the end token.

    After a prompt of chat messages, the chat template formats the text as the assistant's answer.

    Raises:
        UserError: the problem has neither solution nor answer.
    """
    text = problem.solution or problem.answer
    if not text.strip():
        raise UserError(
            f"there is nothing to imitate: the problem {problem.prompt!r:.80} has neither solution nor answer"
        )
    return encoded_answer(policy, problem.prompt, text)


def encoded_answer(policy: Any, asked: Any, text: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt, as text or chat messages, and of an answer to it, up to the first end token.

    A sampled completion ends there, so that what a template appends, a second end token included, is never sampled. An empty
    answer is the end token alone, with the chat template's tokens before it.
    """
    tokenizer, stops = policy.tokenizer, policy.stop_tokens
    prompt = policy.encode(asked)
    if isinstance(asked, str):
        completion = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    else:
        said = [*asked, {"role": "assistant", "content": text}]
        whole = list(tokenizer.apply_chat_template(said, tokenize=True, return_dict=False))
        if whole[: len(prompt)] == prompt:
            completion = whole[len(prompt) :]
        else:  # the template's generation prompt differs from the beginning of its answer
            completion = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    end = next((place for place, token in enumerate(completion) if token in stops), None)
    return prompt, [*completion, stops[0]] if end is None else completion[: end + 1]


def conversation(policy: Any, turns: Sequence[str]) -> tuple[list[int], list[bool]]:
    """Return the tokens of a worked conversation and whether each is in the loss.

    Turns of the policy and its environment alternate, the policy's first and last. Each turn is encoded by itself, as in a
    sampled conversation; the policy's end with its end token. The environment's tokens are no decisions of the policy and
    are not in the loss.

    Raises:
        UserError: the last turn is not the policy's.
    """
    if not len(turns) % 2:
        raise UserError(
            f"a worked conversation of {len(turns)} turns does not end with the policy's: give an odd number"
        )
    tokens: list[int] = []
    learnt: list[bool] = []
    for place, text in enumerate(turns):
        own = place % 2 == 0
        said = list(policy.tokenizer(text, add_special_tokens=False)["input_ids"])
        said += [policy.stop_tokens[0]] if own else []
        tokens += said
        learnt += [own] * len(said)
    return tokens, learnt


def _rows(examples: Sequence[_Example], policy: Any, device: torch.device) -> Trajectories:
    pad = policy.tokenizer.pad_token_id
    tokens, sizes = padded([example.prompt for example in examples], pad)
    action, length = padded([example.completion for example in examples], pad)
    learnt, _ = padded([example.learnt for example in examples], 0)
    cut = torch.tensor([example.cut for example in examples]).unsqueeze(-1)
    place = torch.arange(action.shape[1])
    last = place == (length - 1).unsqueeze(-1)
    numbers = torch.tensor([example.number for example in examples])
    rows = len(examples)
    return Trajectories(
        {
            "observation": {"tokens": tokens, "length": sizes},
            "action": action,
            "length": length,
            "mask": learnt.bool(),
            "group": torch.arange(rows),
            "prompt": numbers,
            "terminated": last & ~cut,
            "truncated": last & cut,
            # There is nothing to verify.
            "rewards": {},
        }
    ).to(device)


def demonstration_set(name: str, found: Sequence[Demonstration], share: float = 0.1) -> ProblemTable:
    """Make a problem set of texts to imitate: each text is solution and answer; `share` of the prompts is held out."""
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for each in found:
        problem = Problem(each.prompt, each.completion, each.completion)
        sides[falls_out(prompt_key(problem), share)].append(problem)
    return ProblemTable(name, sides[0], sides[1], verifier("exact"))
