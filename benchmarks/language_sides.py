"""The two sides of `language.py`: GRPO by Vantage and by TRL, on the same model, prompts, lengths and number of updates."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Shape:
    """One row of the table.

    Attributes:
        title: for people.
        preset: of `vantage.policies.tiny`.
        vocabulary: rows of the embedding; 0 leaves the preset's.
        prompts: prompts a step.
        group: completions of each.
        prompt: characters, which are tokens, of a prompt: fewest, most.
        new: tokens of a completion: fewest, most.
        micro: rows that are differentiated at once, on both sides.
        dtype: of the parameters.
    """

    title: str
    preset: str
    vocabulary: int
    prompts: int
    group: int
    prompt: tuple[int, int]
    new: tuple[int, int]
    micro: int
    dtype: str = "float32"

    @property
    def rows(self) -> int:
        return self.prompts * self.group


SHAPES = {
    "a": Shape("0.8 M Llama, 64 rows of 32 tokens", "small", 0, 8, 8, (12, 24), (32, 32), 64),
    "b": Shape("0.8 M Llama, 64 rows of 4 to 128 tokens", "small", 0, 8, 8, (12, 24), (4, 128), 64),
    "c": Shape("25 M Llama, 2 prompts of 512, 16 rows of 32 tokens each", "large", 4096, 2, 16, (512, 512), (32, 32), 16),
    "d": Shape("0.5 B Llama, 8 prompts of 512, 16 rows of 128 each", "huge", 0, 8, 16, (512, 512), (128, 128), 32, "bfloat16"),
}  # fmt: skip


def hashed(*key: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")


def texts(shape: Shape) -> list[str]:
    """Prompts enough for every step, the same on both sides."""
    low, high = shape.prompt
    letters = "abcdefghijklmnopqrstuvwxyz 0123456789+-="
    return [
        "".join(letters[hashed(1, index, place) % len(letters)] for place in range(low + hashed(0, index) % (high - low + 1)))
        for index in range(max(64, 4 * shape.prompts))
    ]  # fmt: skip


def limits(shape: Shape, step: int) -> list[int]:
    """Tokens of each row of a step, by a hash of step and row: the same work for both sides, whatever they draw."""
    low, high = shape.new
    return [low + hashed(2, step, row) % (high - low + 1) for row in range(shape.rows)]


def build(shape: Shape, device: str) -> tuple[Any, Any]:
    """Return (model, tokenizer), the same weights in every process."""
    from transformers import AutoModelForCausalLM

    from vantage.policies.pretrained import dtype_of
    from vantage.policies.tiny import PRESETS, new_config, new_tokenizer

    tokenizer = new_tokenizer()
    preset = PRESETS[shape.preset]
    config = new_config(
        dataclasses.replace(preset, vocabulary=shape.vocabulary or preset.vocabulary), "llama", tokenizer
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype_of(shape.dtype))
    return model, tokenizer


def reward(text: str) -> float:
    """Share of letters: cheap, and different from row to row."""
    return sum(map(str.isalpha, text)) / max(len(text), 1)


class Clock:
    """Seconds by the wall and by the processor of each step, and of stages within it."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.ends: list[tuple[float, float]] = []
        self.stages: list[dict[str, float]] = [{}]
        self._inner: list[float] = []

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self) -> None:
        self.ends.append((self.now(), time.process_time()))

    def end_step(self) -> None:
        self.start()
        self.stages.append({})

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Add up what calls of `owner.name` take, without what is watched inside of them."""
        plain = getattr(owner, name)

        @functools.wraps(plain)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begun = self.now()
            try:
                return plain(*args, **kwargs)
            finally:
                took = self.now() - begun
                own = took - self._inner.pop()
                if self._inner:
                    self._inner[-1] += took
                self.stages[-1][stage] = self.stages[-1].get(stage, 0.0) + own

        setattr(owner, name, timed)


class Memory:
    """Growth of the process from here on, at its highest, in bytes; on a GPU, of what is allocated there."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        try:  # the mark of the highest use so far, which imports left, is forgotten
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")
            self.exact = True
        except OSError:
            self.before, self.exact = _highest(), False

    def growth(self) -> int:
        if self.cuda:
            return torch.cuda.max_memory_allocated() - self.before
        return (_status("VmHWM") if self.exact else _highest()) - self.before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(name)


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def result(clock: Clock, memory: Memory, shape: Shape, rewards: list[float]) -> dict[str, Any]:
    """Put together what was measured, the first step left out."""
    pairs = list(zip(clock.ends, clock.ends[1:], strict=False))[1:]
    return {
        "seconds": [after[0] - before[0] for before, after in pairs],
        "processor": [after[1] - before[1] for before, after in pairs],
        "tokens": [sum(limits(shape, step)) for step in range(1, len(pairs) + 1)],
        "stages": clock.stages[1 : len(pairs) + 1],
        "memory": memory.growth(),
        "rewards": rewards,
    }


# Vantage ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """The prompts as a problem set."""

    prompts: Sequence[str]
    name: str = "benchmark"
    description: str = "letters"

    def size(self, split: str) -> int:
        return len(self.prompts) if split == "train" else 1

    def problem(self, split: str, index: int) -> Any:
        from vantage.tasks.language.problem import Problem

        return Problem(self.prompts[index], "")

    def score(self, problem: Any, completion: str) -> dict[str, float]:
        return {"letters": reward(completion)}


def run_vantage(shape: Shape, steps: int, device: str) -> dict[str, Any]:
    """GRPO by Vantage."""
    import vantage
    from vantage.core.trainer import Schedule, Trainer
    from vantage.policies.language import LanguagePolicy
    from vantage.rollouts.tokens.lean import LeanCache
    from vantage.tasks.language.task import LanguageTask

    model, tokenizer = build(shape, device)
    policy = LanguagePolicy(model, tokenizer)
    task = LanguageTask(Texts(texts(shape)), max_new_tokens=shape.new[1])
    engine = task.make_engine(policy)
    # Every row ends at its own limit and none before: the stop token is looked for, and never drawn.
    engine.tokens.eos_token_ids = (model.config.vocab_size,)
    method = vantage.method(
        "grpo", prompts=shape.prompts, group_size=shape.group, lr=LEARNING_RATE, beta=0, micro_batch=shape.micro
    )
    clock = Clock(device)
    clock.watch(LeanCache, "open", "prefill")
    clock.watch(engine.tokens, "generate", "decode")
    clock.watch(policy, "evaluate", "forward")
    clock.watch(type(method.update), "differentiate", "backward")
    clock.watch(task, "score", "reward")
    rewards: list[float] = []

    class Listener:
        def __call__(self, report: Any) -> None:
            if report.step:
                clock.end_step()
                rewards.append(report.metrics.get("reward/letters", 0.0))

    trainer = Trainer(method, task, policy, engine, Schedule(steps), seed=0, listeners=[Listener()])
    generate = engine.tokens.generate
    engine.tokens.generate = lambda *args, **kwargs: generate(
        *args, max_new_tokens=limits(shape, trainer.context.step), **kwargs
    )
    optimizer = trainer.context.method.update._memory["optimizer"]
    clock.watch(optimizer, "step", "optimiser")
    memory = Memory(device)
    clock.start()
    trainer.run()
    return result(clock, memory, shape, rewards)


# TRL -------------------------------------------------------------------------------------------------------------------


class RowLimits:
    """Logits processor: each row ends at its own limit by the stop token, and not before."""

    def __init__(self, limit: Sequence[int], stop: int, device: str) -> None:
        self.limit, self.stop, self.start = torch.tensor(limit, device=device), stop, -1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.start < 0:
            self.start = input_ids.shape[1]
        last = input_ids.shape[1] - self.start + 1 >= self.limit
        scores = scores.clone()
        scores[:, self.stop] = torch.where(last, 1e4, -1e4)
        return scores


def run_trl(shape: Shape, steps: int, device: str, **settings: Any) -> dict[str, Any]:
    """GRPO by TRL's GRPOTrainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = build(shape, device)
    rewards: list[float] = []

    def letters(completions: list[str], **_: Any) -> list[float]:
        found = [reward(text) for text in completions]
        rewards.append(sum(found) / len(found))
        return found

    cpu = device == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=cpu,
            bf16=False,  # the parameters' own type, as on the other side; autocast on a CPU is slower still
            gradient_checkpointing=False,
            per_device_train_batch_size=shape.micro,
            gradient_accumulation_steps=shape.rows // shape.micro,
            num_generations=shape.group,
            max_completion_length=shape.new[1],
            num_iterations=1,
            beta=0.0,
            loss_type="grpo",
            epsilon=0.2,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            max_steps=steps,
            logging_steps=steps + 1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
            **settings,
        )
        clock = Clock(device)

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.end_step()

        trainer = GRPOTrainer(
            model=model,
            reward_funcs=letters,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": texts(shape)}),
            processing_class=tokenizer,
            callbacks=[Callback()],
        )
        plain: Callable[..., Any] = model.generate

        def generate(**kwargs: Any) -> Any:
            row_limits = RowLimits(limits(shape, trainer.state.global_step), tokenizer.eos_token_id, device)
            return plain(**kwargs, logits_processor=[row_limits])

        model.generate = generate
        clock.watch(model, "generate", "prefill and decode")
        clock.watch(trainer, "_generate_and_score_completions", "rollout, rest")
        clock.watch(trainer, "_calculate_rewards", "reward")
        clock.watch(trainer, "compute_loss", "forward")
        clock.watch(trainer.accelerator, "backward", "backward")
        create = trainer.create_optimizer

        def watched(*args: Any, **kwargs: Any) -> Any:
            optimizer = create(*args, **kwargs)
            clock.watch(optimizer, "step", "optimiser")
            return optimizer

        trainer.create_optimizer = watched
        memory = Memory(device)
        clock.start()
        trainer.train()
    return result(clock, memory, shape, rewards)
