"""GRPO on a 3 M-parameter model by Vantage and by TRL: held-out reward at equal samples, and the time that it took.

    python benchmarks/grpo_race.py [--steps 60] [--seeds 3] [--threads 2] [--json FILE]

A Llama of 3 million parameters learns two-digit addition by supervised fine-tuning until it solves a part of the problems.
From there both libraries run GRPO with the same settings: 32 prompts of 8 answers a step, one update each, no KL term, AdamW at
the same constant rate, the same clip and gradient norm, the same training problems, answers of at most 6 tokens. Every run is
a process of its own; the two take turns. Both models are judged by the same code on the same held-out problems; judging does
not count as time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SYSTEMS = ("vantage", "trl")
TASK, NEW_TOKENS, JUDGED, SAMPLES = "addition:digits=2", 6, 256, 8
PROMPTS, GROUP, RATE = 32, 8, 1e-4


def task_of() -> Any:
    from vantage.tasks.registry import make_task

    return make_task(TASK, options={"max_new_tokens": NEW_TOKENS, "evaluated": JUDGED})


def warm_start(folder: Path, steps: int) -> None:
    """Make the model that every run starts from."""
    import vantage
    from vantage.policies.tiny import new_model

    new_model(folder / "new", "medium", "llama", seed=0)
    method = vantage.method("sft", batch=64, lr=1e-3, warmup=0.2)
    vantage.train(method, task_of(), model=folder / "new", steps=steps, seed=0, out=folder / "run")
    (folder / "run" / "model").rename(folder / "model")


class Judge:
    """Held-out accuracy at chosen steps, and the seconds between them."""

    def __init__(self, policy: Any, steps: int, points: int) -> None:
        self.policy, self.task = policy, task_of()
        self.due = {round(steps * index / points) for index in range(points + 1)}
        self.curve: list[tuple[int, float, float]] = []
        self.seconds, self.begun = 0.0, time.perf_counter()

    def __call__(self, step: int) -> None:
        """Judge the policy after `step`, if it is one of the chosen steps."""
        self.seconds += time.perf_counter() - self.begun
        if step in self.due and (not self.curve or self.curve[-1][0] < step):
            score = self.task.evaluate(self.policy, samples=SAMPLES, seed=1)["pass@1"]
            self.curve.append((step, float(score), self.seconds))
        self.begun = time.perf_counter()


def policy_of(model: Path) -> Any:
    policy = task_of().make_policy(model=str(model), seed=0)
    policy.train()
    return policy


def run_vantage(model: Path, steps: int, points: int, seed: int) -> list[tuple[int, float, float]]:
    import vantage
    from vantage.core.trainer import Schedule, Trainer

    policy, task = policy_of(model), task_of()
    judge = Judge(policy, steps, points)
    method = vantage.method("grpo", prompts=PROMPTS, group_size=GROUP, lr=RATE, beta=0.0)
    engine = task.make_engine(policy, seed=seed)
    trainer = Trainer(
        method, task, policy, engine, Schedule(steps), seed=seed, listeners=[lambda told: judge(told.step)]
    )
    trainer.run()
    return judge.curve


def run_trl(model: Path, steps: int, points: int, seed: int) -> list[tuple[int, float, float]]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    policy, task = policy_of(model), task_of()
    judge = Judge(policy, steps, points)
    problems = [task.problems.problem("train", index) for index in range(task.problems.size("train"))]

    def correct(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]

    class Listener(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            judge.begun = time.perf_counter()
            judge(0)

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            judge(state.global_step)

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            num_iterations=1,
            beta=0.0,
            loss_type="grpo",
            epsilon=0.2,
            learning_rate=RATE,
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
            seed=seed,
        )
        rows = [{"prompt": problem.prompt, "answer": problem.answer} for problem in problems]
        GRPOTrainer(
            model=policy.model,
            reward_funcs=correct,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=policy.tokenizer,
            callbacks=[Listener()],
        ).train()
    return judge.curve


def run_once(system: str, model: Path, given: argparse.Namespace, seed: int) -> list[tuple[int, float, float]]:
    count = str(given.threads)
    variables = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--worker", system, "--model", str(model), "--seeds", str(seed)]
    command += ["--steps", str(given.steps), "--points", str(given.points), "--threads", count]
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{system} failed:\n{ran.stderr[-3000:]}")
    curve: list[tuple[int, float, float]] = json.loads(ran.stdout.strip().splitlines()[-1])
    return curve


def table(curves: dict[str, list[list[tuple[int, float, float]]]]) -> str:
    lines = ["| samples | side | held-out accuracy, each seed | mean | seconds |", "|---:|---|---|---:|---:|"]
    for place, (step, _, _) in enumerate(curves["vantage"][0]):
        for system in SYSTEMS:
            points = [curve[place] for curve in curves[system]]
            scores = ", ".join(f"{score:.3f}" for _, score, _ in points)
            mean, seconds = (statistics.mean(point[index] for point in points) for index in (1, 2))
            name = {"vantage": "Vantage", "trl": "TRL"}[system]
            lines.append(f"| {step * PROMPTS * GROUP} | {name} | {scores} | {mean:.3f} | {seconds:.1f} |")
    ends = {system: [curve[-1][2] for curve in curves[system]] for system in SYSTEMS}
    ratios = [theirs / ours for ours, theirs in zip(ends["vantage"], ends["trl"], strict=True)]
    gaps = [ours[-1][1] - theirs[-1][1] for ours, theirs in zip(curves["vantage"], curves["trl"], strict=True)]
    lines += [
        "",
        f"TRL / Vantage, time: {statistics.median(ratios):.2f} (median of {', '.join(f'{r:.2f}' for r in ratios)});"
        f" accuracy, Vantage - TRL: {statistics.mean(gaps):+.3f} (each seed {', '.join(f'{g:+.3f}' for g in gaps)})",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--points", type=int, default=3, help="times that both are judged on the way")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm", type=int, default=150, help="steps of supervised fine-tuning")
    parser.add_argument("--json", type=Path, help="write the curves here")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    if given.worker:
        run = run_vantage if given.worker == "vantage" else run_trl
        print(json.dumps(run(given.model, given.steps, given.points, given.seeds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        warm_start(Path(folder), given.warm)
        curves: dict[str, list[list[tuple[int, float, float]]]] = {system: [] for system in SYSTEMS}
        for seed in range(given.seeds):
            for system in SYSTEMS if seed % 2 == 0 else SYSTEMS[::-1]:
                curves[system].append(run_once(system, Path(folder) / "model", given, seed))
                step, score, seconds = curves[system][-1][-1]
                print(f"  seed {seed} {system:8s} {score:.3f} after {step} steps, {seconds:.1f} s", file=sys.stderr)
    print(table(curves))
    if given.json:
        given.json.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
