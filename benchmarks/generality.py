"""Time of a training step at an earlier commit and now: PPO on CartPole and GRPO on a small Llama.

    python benchmarks/generality.py COMMIT [--repetitions 5] [--seconds 4]

COMMIT is checked out beside the working tree (`git worktree`). The two trees take turns, each measurement a fresh process with one
thread; a ratio is taken within its repetition, and the median of the ratios is reported with its range. Processor seconds a
step of the training loop are compared, after three steps that warm up: the lower quartile of the steps, since a neighbour on the
same core or cache makes some of them slower and none faster. Above 1: the earlier one took longer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKLOADS = (
    "ppo on cartpole, 4 environments",
    "ppo on cartpole, 64 environments",
    "grpo on a 0.3 M Llama, 32 x 8 answers",
)
WARM_UP = 3


def seconds_a_step(workload: str, seconds: float) -> float:
    """Processor seconds of a step of the training loop, the lower quartile of the steps of at least `seconds`."""
    import torch

    import vantage
    from vantage.core.trainer import Schedule, Trainer
    from vantage.tasks.registry import make_task

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if workload.startswith("ppo"):
        envs = int(workload.split()[3])
        task = make_task("cartpole")
        method = vantage.method("ppo", rows=envs, length=128, epochs=4, minibatches=4, lr=2.5e-4)
        policy = task.make_policy(seed=0)
    else:
        from vantage.policies.tiny import new_model

        task = make_task("addition:digits=2", options={"max_new_tokens": 6})
        method = vantage.method("grpo", prompts=32, group_size=8, lr=1e-5, beta=0.0)
        with tempfile.TemporaryDirectory() as folder:
            policy = task.make_policy(
                model=str(new_model(Path(folder) / "m", "tiny", "llama", seed=0) or Path(folder) / "m")
            )
        policy.train()
    trainer = Trainer(method, task, policy, task.make_engine(policy, seed=0), Schedule(10_000), seed=0)
    for _ in range(WARM_UP):
        trainer.step()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 4:
        begun = time.process_time()
        trainer.step()
        taken.append(time.process_time() - begun)
    return statistics.quantiles(taken, n=4)[0]


def run_once(tree: Path, workload: str, seconds: float) -> float:
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    variables = {**os.environ, **one, "PYTHONPATH": str(tree / "src"), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__)), "-", "--worker", workload, "--seconds", str(seconds)]
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{workload} failed in {tree}:\n{ran.stderr[-3000:]}")
    return float(ran.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(seconds_a_step(given.worker, given.seconds))
        return
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", str(before), given.commit], cwd=ROOT, check=True
        )
        try:
            print("| workload | before, ms a step | now | before / now |\n|---|---:|---:|---:|")
            for workload in WORKLOADS:
                pairs = []
                for repetition in range(given.repetitions):
                    order = (before, ROOT) if repetition % 2 == 0 else (ROOT, before)
                    found = {tree: run_once(tree, workload, given.seconds) for tree in order}
                    pairs.append((found[before], found[ROOT]))
                ratios = sorted(old / new for old, new in pairs)
                old, new = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
                middle = f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
                print(f"| {workload} | {old:.1f} | {new:.1f} | {middle} |", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(before)], cwd=ROOT, check=False)


if __name__ == "__main__":
    main()
