"""Environment steps a second of PPO training on CartPole beside two peers, on one thread.

    python benchmarks/control.py [--envs 4 64] [--repetitions 7] [--seconds 4] [--json FILE]

Peers: Stable-Baselines3's PPO, and a loop written out in one file in CleanRL's manner (in `peers_control.py`). All three run
CleanRL's CartPole settings: N environments x 128 steps, 4 epochs of 4 minibatches, Adam at 2.5e-4 annealed to 0, clip 0.2
for ratio and value, entropy 0.01, value 0.5, gradient norm 0.5, gamma 0.99, lambda 0.95, separate tanh 64-64 networks.

Every measurement is a fresh process with one thread. Within a repetition the three run one after another, in an order that
turns from one repetition to the next; a ratio is taken within its repetition, so that what slows the machine for a while
slows both. Reported are medians, and for the ratios a 95% bootstrap interval of the median. Imports, construction and the
first two iterations are not timed. Steps in which an environment only resets do not count. Two clocks run: the wall's, and the
process's own processor time, which waits for no one: on a machine that does other work too, the second is the one to read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS, WARM_UP = 128, 2
SYSTEMS = ("vantage", "stable-baselines3", "cleanrl-style")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Watch:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def busy(self) -> float:
        return time.process_time() - self._processor

    def read(self) -> dict[str, float]:
        return {"wall": time.perf_counter() - self._wall, "processor": self.busy()}


CLOCKS = ("processor", "wall")


def measure_vantage(envs: int, seconds: float) -> dict[str, Any]:
    import vantage
    from vantage.core.trainer import Schedule, Trainer
    from vantage.tasks.control.task import ControlTask

    task = ControlTask("cartpole")
    policy = task.make_policy(seed=0)
    engine = task.make_engine(policy, seed=0)
    method = vantage.method(
        "ppo", rows=envs, length=STEPS, epochs=4, minibatches=4, lr=2.5e-4, eps=0.2, entropy_coefficient=0.01
    )
    trainer = Trainer(method, task, policy, engine, Schedule(10_000), seed=0)
    counted = _count_decisions(trainer)
    stages: dict[str, float] = {}
    for _ in range(WARM_UP):
        trainer.step()
    counted.clear()
    watch = Watch()
    iterations = 0
    while watch.busy() < seconds:
        _, laps = trainer.step()
        iterations += 1
        for name, lap in laps.items():
            stages[name] = stages.get(name, 0.0) + lap
    times = watch.read()
    steps = int(sum(int(mask.sum()) for mask in counted))
    return {"steps": steps, **times, "stages": {k: v / iterations for k, v in stages.items()}}


def _count_decisions(trainer: Any) -> list[Any]:
    """Keep the masks of the rollouts; they are summed after the clock has stopped."""
    masks: list[Any] = []
    advance = trainer.context.engine.advance

    def keep(*given: Any) -> Any:
        batch = advance(*given)
        masks.append(batch.mask)
        return batch

    trainer.context.engine.advance = keep
    return masks


def measure_floor(envs: int, repeats: int = 15) -> dict[str, float]:
    """Milliseconds of an iteration that no bookkeeping can save: stepping the environments, the actor's passes, and the two
    networks' forward and backward passes over the minibatches. The least of some repeats, each alone."""
    import numpy as np
    import torch

    from vantage.policies.networks import both
    from vantage.tasks.control.task import ControlTask

    task = ControlTask("cartpole")
    policy = task.make_policy(seed=0)
    streams = task.make_engine(policy, seed=0)._make_backend(envs, policy)
    seen, reward = np.empty((envs, 4), np.float32), np.empty(envs)
    over, cut = np.zeros(envs, dtype=bool), np.zeros(envs, dtype=bool)
    actions = np.random.default_rng(0).integers(2, size=(STEPS, envs))
    outputs, actor = np.empty((envs, 2), np.float32), policy.actor_for(envs)
    x = torch.randn(envs * STEPS // 4, 1, 4)
    streams.reset(list(range(envs)), seen)

    def environments() -> None:
        for t in range(STEPS):
            ended = streams.step(actions[t], seen, reward, over, cut)
            if ended:
                streams.reset_some(ended, np.empty((len(ended), 4), np.float32))

    def acting() -> None:
        for _ in range(STEPS):
            actor(seen, outputs)

    def passes() -> None:
        for _ in range(16):
            logits, value = both(x, policy.actor, policy.critic)
            torch.autograd.backward([logits, value], [torch.ones_like(logits), torch.ones_like(value)])

    found = {}
    for part in (environments, acting, passes):
        times = []
        for _ in range(repeats):
            watch = Watch()
            part()
            times.append(watch.busy())
        found[part.__name__] = 1000 * min(times)
    return found


def measure_stable_baselines3(envs: int, seconds: float) -> dict[str, Any]:
    from peers_control import stable_baselines3_ppo

    return stable_baselines3_ppo(envs, STEPS, WARM_UP, seconds, Watch)


def measure_cleanrl_style(envs: int, seconds: float) -> dict[str, Any]:
    from peers_control import one_file_ppo

    return one_file_ppo(envs, STEPS, WARM_UP, seconds, Watch)


def worker(system: str, envs: int, seconds: float) -> None:
    import torch

    torch.set_num_threads(1)
    measure = {
        "vantage": measure_vantage,
        "stable-baselines3": measure_stable_baselines3,
        "cleanrl-style": measure_cleanrl_style,
        "floor": lambda envs, seconds: measure_floor(envs),
    }[system]
    print(json.dumps(measure(envs, seconds)))


def run_once(system: str, envs: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", system, "--envs", str(envs), "--seconds", str(seconds)]
    ran = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{system} with {envs} environments failed:\n{ran.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    if system == "floor":
        return result
    result["rate"] = {clock: result["steps"] / result[clock] for clock in CLOCKS}
    return result


def interval(values: list[float], draws: int = 10_000) -> tuple[float, float, float]:
    """Median and its 95% percentile-bootstrap interval."""
    import numpy as np

    sample = np.asarray(values)
    resampled = np.random.default_rng(0).choice(sample, (draws, len(sample)))
    low, high = np.quantile(np.median(resampled, axis=1), [0.025, 0.975])
    return float(np.median(sample)), float(low), float(high)


def compare(envs: int, repetitions: int, seconds: float) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    for repetition in range(repetitions):
        turn = repetition % len(SYSTEMS)
        for system in SYSTEMS[turn:] + SYSTEMS[:turn]:
            run = run_once(system, envs, seconds)
            runs[system].append(run)
            shown = ", ".join(f"{clock} {run['rate'][clock]:9.0f} steps/s" for clock in CLOCKS)
            print(f"  {envs:3d} envs, repetition {repetition + 1}: {system:18s} {shown}", flush=True)
    result: dict[str, Any] = {"envs": envs, "steps_per_second": {}, "ratio": {}}
    for clock in CLOCKS:
        rates = {system: [run["rate"][clock] for run in done] for system, done in runs.items()}
        result["steps_per_second"][clock] = {system: interval(values) for system, values in rates.items()}
        result["ratio"][clock] = {
            system: interval([ours / theirs for ours, theirs in zip(rates["vantage"], rates[system], strict=True)])
            for system in SYSTEMS[1:]
        }
    best = max(runs["vantage"], key=lambda run: run["rate"]["wall"])
    result["stages_ms"] = {name: 1000 * value for name, value in best["stages"].items()}
    result["floor_ms"] = run_once("floor", envs, seconds)
    return result


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['envs']} environments x {STEPS} steps")
    for clock in CLOCKS:
        print(f"  by {clock} time")
        for system, (median, low, high) in result["steps_per_second"][clock].items():
            print(f"    {system:27s} {median:9.0f} steps/s  [{low:.0f}, {high:.0f}]")
        for system, (median, low, high) in result["ratio"][clock].items():
            print(f"    vantage / {system:17s} {median:9.2f}          [{low:.2f}, {high:.2f}]")
    total = sum(result["stages_ms"].values())
    shares = ", ".join(f"{name} {ms:.1f} ms ({100 * ms / total:.0f}%)" for name, ms in result["stages_ms"].items())
    print(f"  where vantage's fastest run spent an iteration (wall): {shares}")
    floor = ", ".join(f"{name} {ms:.1f} ms" for name, ms in result["floor_ms"].items())
    least = sum(result["floor_ms"].values())
    print(f"  what no bookkeeping can save of it (processor): {floor}; together {least:.1f} ms, which alone would be")
    print(f"    {1000 * result['envs'] * STEPS / least:.0f} steps/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, nargs="+", default=[4, 64])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of processor time a measurement takes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=(*SYSTEMS, "floor"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.envs[0], given.seconds)
        return
    results = [compare(envs, given.repetitions, given.seconds) for envs in given.envs]
    for result in results:
        show(result)
    if given.json:
        import torch

        about = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
        given.json.write_text(json.dumps({"about": about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
