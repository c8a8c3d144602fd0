"""Problems with verifiable answers for masked diffusion language models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import UserError, nearest
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.masked_diffusion import MaskedDiffusionPolicy
from vantage.rollouts.unmasking import UnmaskingEngine, unmask
from vantage.tasks.language.problem import Problem, ProblemSet
from vantage.tasks.language.problems import alphabet, problem_set

POLICY_OPTIONS = ("prompt_length", "length", "width", "layers", "heads")
TASK_OPTIONS = ("per_step", "evaluated")
PROBED = 256
"""Number of training problems from which the default lengths are computed."""


class MaskedTask:
    """Generated problem set whose answers a masked diffusion model fills in.

    Args:
        problems: the set.
        **options: of the policy (`prompt_length`, `length` of an answer with its end token, `width`, `layers`, `heads`), `per_step`
            (tokens filled in per pass, 1), `evaluated` (held-out problems of an evaluation at most, 200).

    Raises:
        UserError: an option is not known.
    """

    default_steps = 100

    def __init__(self, problems: ProblemSet, **options: Any) -> None:
        known = (*POLICY_OPTIONS, *TASK_OPTIONS)
        self.name = self.spec = f"masked:{problems.name}"
        for option in options:
            if option not in known:
                raise UserError(
                    f"task {self.name}: no option {option!r}{nearest(option, known)} (options: {', '.join(known)})"
                )
        self.set = problems
        self.size = problems.size("train")
        self.evaluated = min(int(options.get("evaluated", 200)), problems.size("test"))
        self.per_step = int(options.get("per_step", 1))
        self.policy_options = {key: options[key] for key in POLICY_OPTIONS if key in options}

    def prompts(self, ids: Tensor) -> Prompts:
        """Return the training prompts with these ids [B]."""
        return Prompts(ids, [_prompt(self.set.problem("train", index)) for index in ids.tolist()])

    def solutions(self, ids: Tensor) -> list[str]:
        """Return the texts to imitate of these training problems [B]."""
        return [_solution(self.set.problem("train", index)) for index in ids.tolist()]

    def score(self, batch: Trajectories, context: Context) -> dict[str, Tensor]:
        """Return the named rewards [N] of answers."""
        policy: Any = context.policy
        scored = self._score("train", batch.prompt.tolist(), policy.decode(batch.action))
        return {
            name: torch.tensor([each[name] for each in scored], dtype=torch.float32, device=batch.device)
            for name in scored[0]
        }

    def _score(self, split: str, numbers: list[int], texts: list[str]) -> list[dict[str, float]]:
        found = {number: self.set.problem(split, number) for number in set(numbers)}
        return [self.set.score(found[number], text) for number, text in zip(numbers, texts, strict=True)]

    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """Return `pass@1` of `samples` sampled answers to each held-out problem, and `greedy`, of the most likely tokens."""
        device = next(policy.parameters()).device
        numbers = list(range(self.evaluated))
        tokens = policy.encode([_prompt(self.set.problem("test", number)) for number in numbers]).to(device)
        generator = torch.Generator(device).manual_seed(seed)
        drawn = unmask(policy, tokens.repeat_interleave(samples, 0), generator, self.per_step)
        scored = {
            "pass@1": self._score("test", [n for n in numbers for _ in range(samples)], policy.decode(drawn)),
            "greedy": self._score("test", numbers, policy.decode(unmask(policy, tokens, None, self.per_step))),
        }
        return {name: sum(each["correct"] for each in rows) / max(len(rows), 1) for name, rows in scored.items()}

    def make_policy(self, model: str | Path = "", seed: int = 0) -> MaskedDiffusionPolicy:
        """Return a policy with random weights, or the saved one in the folder `model`."""
        if model:
            return MaskedDiffusionPolicy.load(model)
        probed = [self.set.problem("train", index) for index in range(min(PROBED, self.size))]
        sizes = {
            "prompt_length": max(len(_prompt(problem)) for problem in probed),
            "length": max(len(_solution(problem)) for problem in probed) + 1,
        }
        return MaskedDiffusionPolicy(alphabet(self.set), seed=seed, **{**sizes, **self.policy_options})

    def make_engine(self, policy: MaskedDiffusionPolicy, seed: int = 0) -> UnmaskingEngine:
        """Return an engine that samples the policy's answers."""
        return UnmaskingEngine(policy, self.per_step)


def _prompt(problem: Problem) -> str:
    if not isinstance(problem.prompt, str):
        raise UserError("a masked diffusion model takes prompts of text, not chat messages")
    return problem.prompt


def _solution(problem: Problem) -> str:
    return problem.solution or problem.answer


def task_from_spec(spec: str, options: Mapping[str, Any] | None = None) -> MaskedTask:
    """Make the task of `masked:addition:digits=3`.

    Raises:
        UserError: the problem set or a setting is not known.
    """
    _, _, inner = spec.partition(":")
    if not inner:
        raise UserError("task masked: name the problem set, as in masked:addition:digits=3")
    return MaskedTask(problem_set(inner), **dict(options or {}))
