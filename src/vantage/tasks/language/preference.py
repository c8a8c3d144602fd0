"""Tasks of preference pairs in language: the user's own, and generated ones whose labels correlate with length.

A problem of such a set holds both answers in its fields, `chosen` and `rejected`; pair i is problem i, and methods that sample
use its prompt. `vantage train dpo --model DIR --data pairs.jsonl` reads {"prompt", "chosen", "rejected"}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.core import between, component
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories
from vantage.functions.rows import preferred, rounding_of, row_logp
from vantage.rewards.specs import build, parse
from vantage.rewards.verifiers import verifier as verifier_of
from vantage.rollouts.continuation import padded
from vantage.rollouts.language import LanguageEngine
from vantage.tasks.language.arithmetic import STEP, Sorting, graded
from vantage.tasks.language.data import ProblemTable, prompt_key
from vantage.tasks.language.pairs import Pair, load_pairs
from vantage.tasks.language.problem import Problem, ProblemSet
from vantage.tasks.language.sft import encoded_answer
from vantage.tasks.language.space import held_out as falls_out
from vantage.tasks.language.task import LanguageTask

ROWS = 64
"""Rows per forward pass of an evaluation."""


@component(label="padded-sorting")
class PaddedSorting:
    """Pairs of correctly and wrongly sorted digits, one of them after filler characters; correctness alone decides the label.

    The digits 3, 1, 2 have the correct answers "123" and "....;123". In a share `longer` of the pairs the rejected answer has the
    filler, so that length is a misleading cue. The worked text of a problem (`solution`) is one of its two answers with
    equal probability: supervised fine-tuning on it gives the policy from which the pairs are samples.

    Attributes:
        length: number of digits to sort.
        filler: number of filler characters, 1 to 64.
        longer: share of pairs whose rejected answer is the longer one, 0 to 1.
    """

    length: Annotated[int, between(2, 32)] = 3
    filler: Annotated[int, between(1, 64)] = 6
    longer: Annotated[float, between(0, 1)] = 0.7

    @property
    def name(self) -> str:
        """Name, settings included."""
        return f"padded-sorting:length={self.length},filler={self.filler},longer={self.longer}"

    @property
    def description(self) -> str:
        """One line for a reader."""
        return f"pairs of correctly and wrongly sorted digits; {self.longer:.0%} of the wrong ones are longer"

    @cached_property
    def _base(self) -> Sorting:
        return Sorting(self.length)

    def size(self, split: str) -> int:
        """Number of pairs in a split."""
        return self._base.size(split)

    def problem(self, split: str, index: int) -> Problem:
        """Return pair `index` of a split; `fields` has `chosen` and `rejected`."""
        problem = self._base.problem(split, index)
        prompt = str(problem.prompt)
        draws = blake2b(prompt.encode(), digest_size=16).digest()
        place = draws[0] % len(problem.answer)
        digit = (int(problem.answer[place]) + 1 + draws[1] % 9) % 10
        wrong = f"{problem.answer[:place]}{digit}{problem.answer[place + 1 :]}"
        padding = "." * self.filler + STEP
        pads_rejected = int.from_bytes(draws[2:6], "little") < self.longer * 2**32
        chosen = problem.answer if pads_rejected else padding + problem.answer
        rejected = padding + wrong if pads_rejected else wrong
        solution = chosen if draws[6] % 2 else rejected
        return Problem(prompt, problem.answer, solution, {"chosen": chosen, "rejected": rejected})

    def score(self, problem: Problem, completion: str) -> dict[str, float]:
        """Return {"correct": 1.0 or 0.0, "padded": whether it begins with filler}."""
        return {**graded(problem, completion), "padded": float(completion.startswith("."))}


class PairEngine(LanguageEngine):
    """Language engine that also reads the task's pairs."""

    def __init__(self, policy: Any, problems: ProblemSet, **settings: Any) -> None:
        super().__init__(policy, **settings)
        self.problems = problems

    def read(self, ids: Tensor, context: Context) -> Trajectories:
        """Return the pairs with these ids [B] as 2 B rows, the chosen answer first, without log-probabilities."""
        numbers = ids.tolist()
        pairs = [self.problems.problem("train", number) for number in numbers]
        return pair_rows(self.policy, pairs, numbers).to(context.device)


def pair_rows(policy: Any, pairs: Sequence[Problem], numbers: Sequence[int]) -> Trajectories:
    """Return B pairs as rows whose decisions are the answers' tokens, end token included: 2 i chosen, 2 i + 1 rejected.

    The row of an empty answer is the end token alone.
    """
    prompts, answers = [], []
    for pair in pairs:
        for side in ("chosen", "rejected"):
            prompt, answer = encoded_answer(policy, pair.prompt, str(pair.fields[side]))
            prompts.append(prompt)
            answers.append(answer)
    pad = policy.tokenizer.pad_token_id
    tokens, sizes = padded(prompts, pad)
    action, length = padded(answers, pad)
    place = torch.arange(action.shape[1])
    last = place == (length - 1).unsqueeze(-1)
    rows = len(prompts)
    return Trajectories(
        {
            "observation": {"tokens": tokens, "length": sizes},
            "action": action,
            "length": length,
            "mask": place < length.unsqueeze(-1),
            "group": torch.arange(rows) // 2,
            "prompt": torch.tensor(numbers).repeat_interleave(2),
            "terminated": last,
            "truncated": torch.zeros_like(last),
            # There is nothing to verify.
            "rewards": {},
        }
    )


class PairTask(LanguageTask):
    """Language task whose problems are pairs; methods that sample use their prompts.

    Args:
        problems: pairs, in the fields `chosen` and `rejected`.
        verifier: as in `LanguageTask`.
        graded: whether an evaluation samples answers and scores them, which needs a verifier.
        **options: as in `LanguageTask`.
    """

    def __init__(self, problems: ProblemSet, verifier: Any = None, *, graded: bool = True, **options: Any) -> None:
        super().__init__(problems, verifier, **options)
        if self.tool is not None:
            raise UserError(f"task {self.name}: pairs go without a tool")
        self.graded = graded

    def new_engine(self, policy: Any, **settings: Any) -> PairEngine:
        """Return a new engine that samples the policy's answers and reads the pairs."""
        return PairEngine(policy, self.problems, **settings)

    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """Evaluate the policy on held-out pairs and, where answers can be scored, on samples (`LanguageTask.evaluate`).

        Returns:
            `accuracy`, the share of held-out pairs whose chosen answer has the higher log-probability per token, a tie within
            rounding counted one half; `margin`, the
            mean difference of these, in nats; and of samples the task's metrics. For padded sorting also
            `length_drift`: the absolute difference between the share of padded answers and one half, the share in the data.
        """
        metrics = dict(super().evaluate(policy, samples=samples, seed=seed)) if self.graded else {}
        if "reward/padded" in metrics:
            metrics["length_drift"] = abs(metrics["reward/padded"] - 0.5)
        count = min(self.evaluated, self.problems.size("test"))
        if count:
            pairs = [self.problems.problem("test", index) for index in range(count)]
            parts = [self._margins(policy, pairs[at : at + ROWS // 2]) for at in range(0, count, ROWS // 2)]
            margin, right = (torch.cat(part) for part in zip(*parts, strict=True))
            metrics["accuracy"] = float(right.double().mean())
            metrics["margin"] = float(margin.double().mean())
        return metrics

    def _margins(self, policy: Any, pairs: Sequence[Problem]) -> tuple[Tensor, Tensor]:
        """Return the mean log-probability per token of the chosen answers, less that of the rejected ones [B], and whether the
        chosen one has the higher [B], 0.5 for a tie."""
        rows = pair_rows(policy, pairs, range(len(pairs))).to(next(policy.parameters()).device)
        with torch.no_grad():
            logp = policy.evaluate(rows, frozenset({"logp"})).logp
        means, rounding = (each(logp, rows.mask, average=True) for each in (row_logp, rounding_of))
        margin = means[::2] - means[1::2]
        return margin, preferred(margin, rounding[::2] + rounding[1::2])


def pair_set(name: str, found: Sequence[Pair], share: float = 0.1) -> ProblemTable:
    """Make a problem set of pairs; `share` of the prompts is held out, with all their pairs."""
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for each in found:
        problem = Problem(each.prompt, each.chosen, each.chosen, {"chosen": each.chosen, "rejected": each.rejected})
        sides[falls_out(prompt_key(problem), share)].append(problem)
    return ProblemTable(name, sides[0], sides[1], verifier_of("exact"))


PAIR_SETS: Mapping[str, Callable[..., ProblemSet]] = {"padded-sorting": PaddedSorting}


def task_from_spec(spec: str, verifier: str = "", options: Mapping[str, Any] | None = None) -> PairTask:
    """Make the task of generated pairs such as `padded-sorting:length=3`."""
    name, settings = parse("task", spec, PAIR_SETS, {})
    return PairTask(build("task", name, PAIR_SETS[name], settings), verifier, **dict(options or {}))


def task_from_pairs(
    data: str, verifier: str = "", reading: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None
) -> PairTask:
    """Make the task of the user's own pairs. Without a verifier, an evaluation samples nothing.

    Args:
        data: file or saved data set, read by `load_pairs`.
        verifier: scores sampled answers, where a method or an evaluation samples; may be empty.
        reading: `fields`, `split`, `limit`, and `held_out` (share of the prompts, 0.1).
        options: of the task.

    Raises:
        UserError: the file cannot be read, or an option of reading does not apply to pairs.
    """
    given = dict(reading or {})
    share = float(given.pop("held_out", 0.1))
    for name in ("answer_after", "test"):
        if name in given:
            raise UserError(f"option {name!r} goes with format=problems, not with pairs")
    problems = pair_set(Path(data).name, load_pairs(data, **given), share)
    return PairTask(problems, verifier or None, graded=bool(verifier), **dict(options or {}))
