"""Seconds a step of GRPO by Vantage and by TRL's GRPOTrainer on the same model, prompts, lengths and number of updates.

    python benchmarks/language.py [--shapes a b c] [--threads 2] [--steps 6] [--repetitions 5] [--json FILE]

Every run is a fresh process with the same number of threads; the two sides take turns, and which one begins changes from
repetition to repetition. The first step of a run is left out, a run counts by the median of the others. Reported are
medians over the runs and the ratio of the two medians with its 95% bootstrap interval over repetitions; seconds by the
processor stand beside those by the wall, since they suffer less from what else a machine does. Memory is the highest
resident size during training less what it was before (on a GPU: of allocated memory).

The floor is the arithmetic of a step (matrix products and attention; each prompt once, no padding) at the rate that a
product of the stage's own shape reaches in the same process, and for the optimiser the memory traffic at the rate of a
copy. README.md says what was chosen for either side, and why.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SYSTEMS = ("vantage", "trl")
STAGES = ("prefill", "decode", "forward", "backward", "optimiser")


# one run, in its own process ---------------------------------------------------------------------------------------------


def worker(system: str, name: str, threads: int, steps: int, device: str, changed: dict[str, Any]) -> dict[str, Any]:
    import torch
    from language_sides import SHAPES, run_trl, run_vantage

    torch.set_num_threads(threads)
    shape = dataclasses.replace(SHAPES[name], **changed)
    found = (run_vantage if system == "vantage" else run_trl)(shape, steps, device)
    if system == "vantage":
        found["floor"] = floor(shape, range(1, steps), device)
    return found


def floor(shape: Any, steps: range, device: str) -> dict[str, float]:
    """Seconds of each stage of a step if its arithmetic were all there is; the mean over these steps."""
    import torch
    from language_sides import build, limits, texts

    model, tokenizer = build(shape, "meta")
    config = model.config
    width, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    heads, kv, layers = config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers
    dim = width // heads
    layer = width * dim * (2 * heads + 2 * kv) + 3 * width * inner
    prompt = statistics.mean(len(tokenizer(text)["input_ids"]) for text in texts(shape))
    lengths = [limit for step in steps for limit in limits(shape, step)]
    tokens = sum(lengths) / len(steps)
    square = sum(length**2 for length in lengths) / 2 / len(steps)

    def passes(count: float, context: float, judged: float) -> float:
        """Operations of `count` tokens that see `context` keys in all and of which `judged` go through the head."""
        return 2 * count * layers * layer + 4 * layers * heads * dim * context + 2 * judged * width * vocabulary

    own = passes(tokens, tokens * prompt + square, tokens)
    shared = passes(shape.prompts * prompt, shape.prompts * prompt**2 / 2, 0)
    small = product_rate(shape.rows, width, 2 * inner, shape.dtype, device)
    large = product_rate(2048, width, 2 * inner, shape.dtype, device)
    parameters = sum(p.numel() for p in model.parameters())
    # Adam reads the weight, the gradient and two moments, and writes all but the gradient.
    traffic = 7 * parameters * torch.empty((), dtype=getattr(torch, shape.dtype)).element_size()
    return {
        "prefill": shared / large,
        "decode": own / small,
        "forward": (shared + own) / large,
        "backward": 2 * (shared + own) / large,
        "optimiser": traffic / copy_rate(device),
        "rate": large,
    }


def product_rate(rows: int, inner: int, out: int, dtype: str, device: str) -> float:
    """Floating-point operations a second of an [rows, inner] x [inner, out] product."""
    import torch

    kind = getattr(torch, dtype)
    left, right = (
        torch.randn(rows, inner, device=device, dtype=kind),
        torch.randn(out, inner, device=device, dtype=kind),
    )
    return 2 * rows * inner * out / _median(lambda: torch.nn.functional.linear(left, right), device)


def copy_rate(device: str) -> float:
    """Bytes a second that a large copy reads and writes."""
    import torch

    source = torch.zeros(16 << 20, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / _median(lambda: target.copy_(source), device)


def _median(call: Callable[[], Any], device: str, seconds: float = 0.5) -> float:
    import torch

    def timed(count: int) -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(count):
            call()
        if device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - begun) / count

    timed(5)
    count = max(1, int(0.02 / max(timed(3), 1e-7)))
    found = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not found:
        found.append(timed(count))
    return statistics.median(found)


# all runs ----------------------------------------------------------------------------------------------------------------


def run_once(system: str, shape: str, given: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", system, "--shapes", shape, "--threads", str(given.threads)]
    command += ["--steps", str(given.steps), "--device", given.device, "--change", json.dumps(given.change)]
    count = str(given.threads)
    variables = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{system} on shape {shape} failed:\n{ran.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return result


def compare(shape: str, given: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    for repetition in range(given.repetitions):
        order = SYSTEMS if repetition % 2 == 0 else SYSTEMS[::-1]
        for system in order:
            runs[system].append(run_once(system, shape, given))
            last = runs[system][-1]
            print(
                f"  {shape} {repetition + 1}/{given.repetitions} {system:8s} {statistics.median(last['seconds']):8.3f} s/step "
                f"(processor {statistics.median(last['processor']):7.3f}), memory {last['memory'] / 2**20:6.0f} MiB",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return summary(shape, runs)


def summary(shape: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    found: dict[str, Any] = {"shape": shape, "systems": {}}
    for system, done in runs.items():
        stages: dict[str, list[float]] = {}
        for run in done:
            for step in run["stages"]:
                for stage, seconds in step.items():
                    stages.setdefault(stage, []).append(seconds)
        found["systems"][system] = {
            "seconds": interval([_each(run, "seconds") for run in done]),
            "processor": interval([_each(run, "processor") for run in done]),
            "tokens_per_second": interval([sum(run["tokens"]) / sum(run["seconds"]) for run in done]),
            "memory": interval([run["memory"] for run in done]),
            "stages": {stage: statistics.median(values) for stage, values in stages.items()},
            "rewards": done[-1]["rewards"],
        }
    ours, theirs = runs["vantage"], runs["trl"]
    found["ratio"] = {
        key: ratio([_each(run, key) for run in theirs], [_each(run, key) for run in ours])
        for key in ("seconds", "processor", "memory")
    }
    floors = [run["floor"] for run in ours]
    found["floor"] = {key: statistics.median(f[key] for f in floors) for key in floors[0]}
    return found


def _each(run: dict[str, Any], key: str) -> float:
    return float(statistics.median(run[key]) if isinstance(run[key], list) else run[key])


def interval(values: list[float], draws: int = 10_000) -> tuple[float, float, float]:
    """Median and its 95% percentile-bootstrap interval."""
    import numpy as np

    sample = np.asarray(values)
    resampled = np.median(np.random.default_rng(0).choice(sample, (draws, len(sample))), axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(np.median(sample)), float(low), float(high)


def ratio(theirs: list[float], ours: list[float], draws: int = 10_000) -> tuple[float, float, float]:
    """Ratio of the medians, and its 95% interval when repetitions (pairs of runs) are drawn again."""
    import numpy as np

    pairs = np.stack([theirs, ours], 1)
    index = np.random.default_rng(0).integers(len(pairs), size=(draws, len(pairs)))
    medians = np.median(pairs[index], axis=1)
    low, high = np.quantile(medians[:, 0] / medians[:, 1], [0.025, 0.975])
    middle = np.median(pairs, axis=0)
    return float(middle[0] / middle[1]), float(low), float(high)


# tables ------------------------------------------------------------------------------------------------------------------


def tables(results: list[dict[str, Any]], titles: dict[str, str]) -> str:
    lines = [
        "| shape | side | s a step | processor s | tokens/s | memory MiB | TRL / Vantage: time | processor | memory |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        for system in SYSTEMS:
            one = result["systems"][system]
            row = [
                f"{result['shape']}: {titles[result['shape']]}" if system == "vantage" else "",
                {"vantage": "Vantage", "trl": "TRL"}[system],
                _range(one["seconds"], 3),
                f"{one['processor'][0]:.3f}",
                f"{one['tokens_per_second'][0]:.0f}",
                f"{one['memory'][0] / 2**20:.0f}",
            ]
            row += [_range(result["ratio"][key], 2) for key in result["ratio"]] if system == "vantage" else [""] * 3
            lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        "| shape | stage | floor ms | Vantage ms | x floor | TRL ms | x floor |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        lines += _stages(result)
    return "\n".join(lines)


def _range(values: tuple[float, float, float], digits: int) -> str:
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} [{low}, {high}]"


def _stages(result: dict[str, Any]) -> list[str]:
    floors, ours, theirs = (result["floor"], *(result["systems"][system]["stages"] for system in SYSTEMS))
    rows = [(stage, floors[stage], ours.get(stage, 0.0), theirs.get(stage)) for stage in STAGES]
    generation = sum(floors[stage] for stage in STAGES[:2])
    rows.insert(
        2, ("prefill and decode", generation, sum(ours.get(s, 0.0) for s in STAGES[:2]), theirs["prefill and decode"])
    )
    known = (*STAGES, "prefill and decode")
    totals = [result["systems"][system]["seconds"][0] for system in SYSTEMS]
    rest = [
        total - sum(seconds for stage, seconds in stages.items() if stage in known)
        for total, stages in zip(totals, (ours, theirs), strict=True)
    ]
    rows += [("everything else", 0.0, *rest), ("the step", sum(floors[stage] for stage in STAGES), *totals)]
    lines = []
    for stage, least, mine, other in rows:
        cells = [result["shape"], stage, f"{1000 * least:.1f}" if least else ""]
        for seconds in (mine, other):
            cells += (
                ["", ""] if seconds is None else [f"{1000 * seconds:.1f}", f"{seconds / least:.1f}" if least else ""]
            )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["a", "b", "c"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="steps of a run, the first left out")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--change", type=json.loads, default={}, help='change the shape: {"prompts": 2}')
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(worker(given.worker, given.shapes[0], given.threads, given.steps, given.device, given.change)))
        return
    from language_sides import SHAPES

    results = [compare(shape, given) for shape in given.shapes]
    print(tables(results, {name: shape.title for name, shape in SHAPES.items()}))
    if given.json:
        given.json.write_text(json.dumps({"about": about(given), "results": results}, indent=1) + "\n")


def about(given: argparse.Namespace) -> dict[str, Any]:
    import importlib.metadata

    names = ("torch", "transformers", "trl")
    return {
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}},
        "threads": given.threads,
        "device": given.device,
        "steps": given.steps,
        "repetitions": given.repetitions,
        "change": given.change,
    }


if __name__ == "__main__":
    main()
