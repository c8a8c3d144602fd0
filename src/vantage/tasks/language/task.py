"""Language task: a problem set with a verifier, a policy and an engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.core import at_least
from vantage.core.component import check_value
from vantage.core.context import Context
from vantage.core.errors import UserError, nearest
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories, own
from vantage.policies.language import LanguagePolicy
from vantage.policies.lora import LoraSettings
from vantage.rewards.pool import score_all
from vantage.rewards.verifiers import Rewards, rewards
from vantage.rollouts.continuation import last_turn, turn_numbers
from vantage.rollouts.language import LanguageEngine
from vantage.rollouts.tokens.sampling import Sampling
from vantage.rollouts.tools import Tool, ToolEngine
from vantage.tasks.language.evaluation import majority, pass_at_k
from vantage.tasks.language.problem import Problem, ProblemSet
from vantage.tasks.language.samples import Graded, SampleWriter
from vantage.tasks.language.turns import READS, marked_texts, read, verified_texts
from vantage.tasks.offers import CONVERSATIONS

SAMPLING_OPTIONS = ("max_new_tokens", "top_p", "top_k", "min_p", "stop_strings")
POLICY_OPTIONS = (
    "dtype",
    "autocast",
    "checkpointing",
    "fused",
    "prefix_sharing",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
)
ENGINE_OPTIONS = ("max_batch_tokens", "backend")
TASK_OPTIONS = (
    "training",
    "evaluated",
    "preset",
    "architecture",
    "micro_batch",
    "workers",
    "stored",
    "reads",
    "failing",
)
TOOL_OPTIONS = ("turns", "max_answer_tokens")


class LanguageTask:
    """Task of problems with verifiable answers.

    Args:
        problems: the problem set; its split "train" is trained on, "test" is held out.
        verifier: scores the answers instead of the problem set: a verifier, several as `Rewards` (each is then recorded
            times its weight), or their text (`numeric:after=####`, `correct=math format*0.2=regex:...` apart by ` && `).
        tool: a function that answers the policy's turns, in training and evaluation: from the text of a turn to the text that is
            inserted after it, or None where the turn calls no tool (`vantage.rollouts.tools.ToolEngine`).
        **options: `training` (largest number of training problems, the first ones in the set's own order; all), `evaluated`
            (largest number of problems of an evaluation, 200), `preset` and `architecture` (of the model that is made
            when none is given), `micro_batch` (rows of a backward pass), `workers` (processes for verifiers), `failing` (largest
            share of rows on which a verifier may fail before the run ends, 0.5), `stored`
            (completions stored per step, 16), `reads` (text of a conversation that is scored: "own", the policy's turns, one per
            line; "last", its last turn, the default with a tool; "all", the environment's text too); of sampling:
            `max_new_tokens` (with a tool: of a turn), `top_p`, `top_k`, `min_p`, `stop_strings`; of the policy: `dtype`,
            `autocast`, `checkpointing`, `fused`, `prefix_sharing`, `lora_rank`, `lora_alpha`, `lora_targets`; of the engine:
            `max_batch_tokens`, `backend`; with a tool: `turns` (largest number of the policy's turns, 4), `max_answer_tokens`
            (largest number of inserted tokens of an answer, 256).

    Raises:
        UserError: an option is not known (the nearest are named) or out of range, or there is no training problem.
    """

    default_steps = 100

    def __init__(self, problems: ProblemSet, verifier: Any = None, *, tool: Tool | None = None, **options: Any) -> None:
        if tool is not None and not callable(tool):
            raise UserError(f"task {problems.name}: tool={tool!r} is no function from the text of a turn to an answer")
        known = [*TASK_OPTIONS, *SAMPLING_OPTIONS, *POLICY_OPTIONS, *ENGINE_OPTIONS, *(TOOL_OPTIONS if tool else ())]
        for name in options:
            if name not in known:
                raise UserError(
                    f"task {problems.name}: no option {name!r}{nearest(name, known)} (options: {', '.join(known)})"
                )
        self.problems = problems
        self.name = problems.name
        self.verifier = _verifier(verifier)
        self.tool = tool
        self.size = problems.size("train")
        if not self.size:
            raise UserError(f"task {problems.name}: there is no training problem")
        training = options.get("training", self.size)
        if not isinstance(training, int) or training < 1:
            raise UserError(f"task {problems.name}: training={training!r} is out of range: an integer of at least 1")
        self.size = min(training, self.size)
        self.evaluated = min(int(options.get("evaluated", 200)), problems.size("test"))
        self.micro_batch: int | None = options.get("micro_batch")
        self.stored = int(options.get("stored", 16))
        self.reads = str(options.get("reads", "own" if tool is None else "last"))
        if self.reads not in READS:
            raise UserError(f"task {problems.name}: reads={self.reads!r} is not known: {', '.join(READS)}")
        self.failing = options.get("failing", 0.5)
        if not isinstance(self.failing, int | float) or not 0 <= self.failing <= 1:
            raise UserError(f"task {problems.name}: failing={self.failing!r} is out of range: a share from 0 to 1")
        for name in set(TOOL_OPTIONS) & set(options):
            check_value(f"task {problems.name}: {name}", options[name], Annotated[int, at_least(1)])
        self.options = options
        self._engine: LanguageEngine | None = None

    @property
    def offers(self) -> frozenset[str] | None:
        """Offers of a task with a tool to methods, in the words of `vantage.tasks.offers`; None where the registry has them."""
        return CONVERSATIONS if self.tool is not None else None

    # training ------------------------------------------------------------------------------------------------------

    def prompts(self, ids: Tensor) -> Prompts:
        """Return the training prompts with these ids [B]."""
        return Prompts(ids, [self.problems.problem("train", index).prompt for index in ids.tolist()])

    def fields(self, ids: Tensor) -> list[Mapping[str, Any]]:
        """Return the further fields of these training problems."""
        return [self.problems.problem("train", index).fields for index in ids.tolist()]

    def score(self, batch: Trajectories, context: Context) -> dict[str, Tensor]:
        """Return the named rewards [N] of completions, NaN where a verifier has none; special tokens are left out.

        Of a conversation the policy's own tokens are scored, as the option `reads` says.
        A row on which a verifier crashes or hangs scores 0; the share of such rows is recorded as `verifier/errors`, and the
        run ends where it exceeds the option `failing`.
        """
        numbers = batch.prompt.tolist()
        found = {number: self.problems.problem("train", number) for number in set(numbers)}
        texts = verified_texts(batch.action, batch.length, own(batch), self.reads, _decoder(context.policy))
        named, notes = self._score([found[number] for number in numbers], texts)
        for name, values in notes.items():
            context.record(f"verifier/{name}", sum(values) / max(len(values), 1))
        return {name: torch.tensor(values, dtype=torch.float32, device=batch.device) for name, values in named.items()}

    def observe(self, batch: Trajectories, context: Context) -> None:
        """Record the mean length of completions, the share that ended by itself, and with a tool `rollout/calls`, the mean number
        of its answers."""
        context.record("length", batch.length.float().mean())
        if "terminated" in batch:
            context.record("finished", batch.terminated.any(-1).float().mean())
        if self.tool is not None and "turn" in batch:
            context.record("rollout/calls", last_turn(batch).float().mean())

    def _score(
        self, problems: Sequence[Problem], texts: Sequence[str]
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Return the named scores of completions, and the columns to record: `errors`, and the verifiers' notes."""
        if self.verifier is None:
            each = [self.problems.score(problem, text) for problem, text in zip(problems, texts, strict=True)]
            names = dict.fromkeys(name for scores in each for name in scores)
            return {name: [scores.get(name, float("nan")) for scores in each] for name in names}, {}
        named = score_all(self.verifier, problems, texts, self.options.get("workers"), failing=self.failing)
        notes = {name: named.pop(name) for name in [*named] if name == "errors" or name.startswith("notes/")}
        weigh = self.verifier.weight
        scores = {name: [weigh(name) * value for value in values] for name, values in named.items()}
        return scores, {name.removeprefix("notes/"): values for name, values in notes.items()}

    # evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """Score `samples` completions of each held-out problem (the first `evaluated` in the set's own order).

        They come from the engine of `new_engine`, as those of training do: with a tool they are conversations.

        Returns:
            `pass@1`, and with several samples `pass@n` (unbiased: arXiv 2107.03374) and `maj@n`, of the reward `correct`, or
            the first one where none is called so, right above 0.5; the mean of every further reward; the mean `length`
            in tokens; `truncated`, the share of truncated completions; with a tool `calls`, the mean number of its
            answers. With the option `training` also `training`, pass@1 of these problems (the first `evaluated` at most).
        """
        if not self.evaluated:
            return {}
        metrics = self._metrics("test", self.evaluated, policy, samples, seed)
        if "training" in self.options:
            few = self._metrics("train", min(self.size, self.evaluated), policy, samples, seed)
            metrics["training"] = few["pass@1"]
        return metrics

    def _metrics(self, split: str, count: int, policy: Any, samples: int, seed: int) -> dict[str, float]:
        """Return the metrics of the first `count` problems of a split."""
        problems = [self.problems.problem(split, index) for index in range(count)]
        engine = self._engine_of(policy)
        found = engine.complete([problem.prompt for problem in problems], samples, seed=seed)
        texts = read(found, self.reads, engine.decode)
        return self._figures(problems, found, texts, samples)

    def _figures(self, problems: Sequence[Problem], found: Any, texts: Sequence[str], samples: int) -> dict[str, float]:
        """Return the metrics of `samples` completions of each problem."""
        named, _ = self._score([problem for problem in problems for _ in range(samples)], texts)
        main = "correct" if "correct" in named else next(iter(named))
        right = (torch.tensor(named[main]) > 0.5).view(-1, samples)
        metrics = {"pass@1": float(right.double().mean())}
        if samples > 1:
            metrics[f"pass@{samples}"] = float(pass_at_k(right.sum(-1), samples, samples).mean())
            shares = [
                majority(texts[i * samples : (i + 1) * samples], right[i].float().tolist())
                for i in range(len(problems))
            ]
            metrics[f"maj@{samples}"] = sum(shares) / len(shares)
        for name, values in named.items():
            if name != main:
                metrics[f"reward/{name}"] = float(torch.tensor(values).nanmean())
        metrics["length"] = float(found.length.double().mean())
        metrics["truncated"] = float((~found.finished).double().mean())
        if self.tool is not None:
            metrics["calls"] = (
                float((turn_numbers(found.forced).amax(-1)).double().mean()) if found.forced.numel() else 0.0
            )
        return metrics

    def _engine_of(self, policy: Any) -> LanguageEngine:
        if self._engine is None or self._engine.policy is not policy:
            return self.make_engine(policy)
        return self._engine

    # policy and engine ---------------------------------------------------------------------------------------------

    def make_policy(self, model: str | Path = "", seed: int = 0) -> LanguagePolicy:
        """Load the model in a folder, or make a small one with random weights.

        Raises:
            UserError: the folder holds no causal language model with a tokenizer.
        """
        given = self._given(POLICY_OPTIONS)
        rank = int(given.pop("lora_rank", 0))
        targets = given.pop("lora_targets", LoraSettings.targets)
        alpha = float(given.pop("lora_alpha", 2 * rank))
        lora = LoraSettings(rank, alpha, _names(targets)) if rank else None
        if model:
            return LanguagePolicy.load(model, lora=lora, **given)
        preset, architecture = self.options.get("preset", "tiny"), self.options.get("architecture", "llama")
        return LanguagePolicy.new(preset, architecture, seed=seed, lora=lora, **given)

    def new_engine(self, policy: Any, **settings: Any) -> LanguageEngine:
        """Return a new engine that samples the policy's completions, or with a tool its conversations.

        Training and evaluation both use it; a task with an engine of its own overrides it.

        Args:
            policy: policy to sample from.
            **settings: arguments of `LanguageEngine` from the task's options: `sampling`, `max_batch_tokens`, `backend`.
        """
        if self.tool is None:
            return LanguageEngine(policy, **settings)
        return ToolEngine(policy, self.tool, **self._given(TOOL_OPTIONS), **settings)

    def make_engine(self, policy: Any, seed: int = 0) -> LanguageEngine:
        """Return the engine of a run; evaluations of the same policy use it too."""
        self._engine = self.new_engine(policy, sampling=self._sampling(), **self._given(ENGINE_OPTIONS))
        return self._engine

    def _given(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: self.options[name] for name in names if name in self.options}

    def _sampling(self) -> Sampling:
        given = self._given(SAMPLING_OPTIONS)
        if "stop_strings" in given:
            given["stop_strings"] = _names(given["stop_strings"])
        return Sampling(**given)

    def writer(self, folder: Path) -> SampleWriter:
        """Return the listener that stores some completions of every step in the run's folder."""
        return SampleWriter(folder, self._graded)

    def _graded(self, report: Any) -> Graded | None:
        """Return some of the step's rows, evenly spaced."""
        batch: Trajectories | None = report.batch
        if batch is None or not len(batch) or not self.stored or self._engine is None:
            return None
        count = min(self.stored, len(batch))
        chosen = batch.select(torch.linspace(0, len(batch) - 1, count).round().long().to(batch.device))
        numbers = chosen.prompt.tolist()
        rewards: list[dict[str, float]] = [{} for _ in numbers]
        if "rewards" in chosen:
            for name in chosen.rewards:
                for row, value in zip(rewards, chosen.rewards[name].tolist(), strict=True):
                    row[str(name)] = value
        return Graded(
            problem=numbers,
            prompt=[_text(self.problems.problem("train", number).prompt) for number in numbers],
            completion=marked_texts(chosen.action, chosen.length, own(chosen), _decoder(self._engine.policy)),
            rewards=rewards,
            advantage=_advantages(chosen),
            length=chosen.length.tolist(),
            finished=chosen.terminated.any(-1).tolist() if "terminated" in chosen else [True] * count,
        )


def _decoder(policy: Any) -> Callable[[list[list[int]]], Sequence[str]]:
    return functools.partial(policy.tokenizer.batch_decode, skip_special_tokens=True)


def _advantages(batch: Trajectories) -> list[float | None]:
    """Return the mean advantage of each row's decisions; None where there is none."""
    if "advantage" not in batch:
        return [None] * len(batch)
    total = torch.where(batch.mask, batch.advantage, 0.0).sum(-1)
    found: list[float | None] = (total / batch.mask.sum(-1).clamp(min=1)).tolist()
    return found


def _text(prompt: str | list[dict[str, str]]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"[{message.get('role', '')}] {message.get('content', '')}" for message in prompt)


def _names(given: Any) -> tuple[str, ...]:
    """Return names given as a sequence or as text separated by commas."""
    if isinstance(given, str):
        return tuple(part.strip() for part in given.split(",") if part.strip())
    return tuple(given)


def _verifier(given: Any) -> Rewards | None:
    if given is None or given == "":
        return None
    if isinstance(given, Rewards):
        return given
    if isinstance(given, str):
        specs = [part.strip() for part in given.split("&&")]
        if len(specs) == 1 and "=" not in specs[0].partition(":")[0]:
            specs = [f"correct={specs[0]}"]
        return rewards(specs)
    if isinstance(given, Mapping):
        return Rewards(given)
    return Rewards({"correct": given})
