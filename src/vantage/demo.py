"""Demonstration of training from end to end (`make demo`): a small language model is made, warm-started, and trained with GRPO.

Every stage is one of the library's commands, which the demo prints. The base model is fine-tuned on worked solutions until it
solves some of the held-out problems, then GRPO trains it with the verifier alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

TASK = "addition:digits=2"
SEED = 0


def main(argv: list[str] | None = None) -> int:
    """Run the demo; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vantage.demo", description="Train a small language model from random weights."
    )
    parser.add_argument("--out", default="demo", help="folder for the models and runs (default: demo)")
    parser.add_argument("--warm-steps", type=int, default=220, help="supervised steps (default: 220)")
    parser.add_argument("--steps", type=int, default=300, help="GRPO steps (default: 300)")
    parser.add_argument("--task", default=TASK, help=f"task (default: {TASK})")
    arguments = parser.parse_args(argv)
    out = Path(arguments.out)
    if out.exists():
        # The demo's own folder is made again each time, and no other folder is changed.
        if not (out / ".demo").exists():
            print(f"error: {out} exists and was not made by the demo; give another --out", file=sys.stderr)
            return 2
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / ".demo").touch()
    return run(out, arguments.task, arguments.warm_steps, arguments.steps)


def run(out: Path, task: str, warm_steps: int, steps: int) -> int:
    """Make a model, warm-start it, train it and evaluate it."""
    from vantage.cli import main as vantage

    started = time.monotonic()
    # A model of this size is faster on one thread than on two.

    def stage(title: str, *command: str) -> None:
        print(f"\n{title}\n$ vantage {' '.join(command)}", flush=True)
        code = vantage(list(command))
        if code:
            raise SystemExit(code)

    stage(
        "1. A small Llama in Hugging Face format, with random weights", "new-model", f"{out}/base", "--preset", "tiny"
    )
    stage(
        "2. Warm start: supervised on worked solutions, until it solves some problems",
        "train", "sft", "--task", task, "--model", f"{out}/base", "--steps", str(warm_steps), "--out", f"{out}/sft",
        "--set", "batch=128", "lr=3e-3", "--eval-samples", "8", "--threads", "1",
    )  # fmt: skip
    stage(
        "3. GRPO: with rewards from the verifier alone",
        "train", "grpo", "--task", task, "--model", f"{out}/sft/model", "--steps", str(steps), "--out", f"{out}/grpo",
        "--set", "prompts=32", "group_size=8", "lr=3e-4", "beta=0", "--eval-every", str(max(1, steps // 6)),
        "--eval-samples", "8", "--threads", "1",
    )  # fmt: skip
    before, after = _ends(out / "grpo")
    print(f"\nOn held-out problems of {task}, sampled at temperature 1 (seconds: {time.monotonic() - started:.0f})")
    print(f"{'':10}{'before':>10}{'after':>10}")
    for name in ("pass@1", "pass@8"):
        key = f"eval/{name}"
        if key in before and key in after:
            print(f"{name:10}{before[key]:>10.1%}{after[key]:>10.1%}")
    print(f"\ncurves      {out}/grpo/curves.png")
    print(f"samples     vantage samples {out}/grpo")
    print("your data   vantage train grpo --model DIR --data train.jsonl --verifier math")
    return 0


def _ends(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from vantage.core.runlog import read_metrics

    evaluations = [line for line in read_metrics(folder) if any(key.startswith("eval/") for key in line)]
    return evaluations[0], evaluations[-1]


if __name__ == "__main__":
    sys.exit(main())
