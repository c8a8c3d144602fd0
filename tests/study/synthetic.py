"""A study that looks like a real one: 6 methods x 5 seeds on two-digit sums, all numbers made up here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from vantage.study.results import Arm, Budget, Point, Run, Sample, Study

SIZE = 51_200
EVALUATIONS = 26


@dataclass(frozen=True)
class Shape:
    """How a method learns: where it ends, how fast, how much seeds differ."""

    end: float
    speed: float
    spread: float
    seconds: float = 44.0


SHAPES = {
    "grpo": Shape(0.715, 5.0, 0.014),
    "dapo": Shape(0.792, 6.5, 0.012, 61.0),
    "rloo": Shape(0.708, 5.2, 0.016, 43.0),
    "dr-grpo": Shape(0.724, 5.1, 0.017, 43.5),
    "gspo": Shape(0.731, 4.2, 0.015, 45.0),
    "reinforce": Shape(0.563, 2.6, 0.034, 40.0),
}

PARTS = {
    "prompts": "Shuffled(batch=32)",
    "rollout": "Groups(size=8, temperature=1.0)",
    "rewards": "ExactMatch()",
    "values": "none",
    "advantage": "GroupStandardised(eps=1e-6)",
    "selection": "everything",
    "objective": "Clip(low=0.2, high=0.2)",
    "averaging": "seq-mean-token-mean",
    "regularizers": "none",
    "controllers": "none",
    "update": "AdamW(lr=3e-4, betas=(0.9, 0.99))",
}
CHANGES = {
    "grpo": {},
    "dapo": {
        "rollout": "Groups(size=8, temperature=1.0, refill=3)",
        "rewards": "ExactMatch() + OverlongPenalty(buffer=4)",
        "selection": "DropGroups(no_variance=True)",
        "objective": "Clip(low=0.2, high=0.28)",
        "averaging": "token-mean",
    },
    "rloo": {"advantage": "LeaveOneOut()", "objective": "PolicyGradient()"},
    "dr-grpo": {"advantage": "GroupCentred()", "averaging": "constant(12)"},
    "gspo": {"objective": "SequenceClip(low=3e-4, high=4e-4)"},
    "reinforce": {"advantage": "RunningMean(decay=0.95)", "objective": "PolicyGradient()"},
}


def curve_of(shape: Shape, rng: np.random.Generator, count: int = EVALUATIONS) -> tuple[Point, ...]:
    samples = np.linspace(0, SIZE, count)
    own = shape.spread * rng.normal()
    rise = 1 - np.exp(-shape.speed * (samples / SIZE) ** 1.3)
    drift = np.cumsum(rng.normal(size=count)) * 0.004
    scores = 0.27 + (shape.end - 0.27 + own) * rise / rise[-1] + np.where(samples > 0, drift - drift[-1], 0.0) * rise
    scores = np.clip(np.round(scores * 512) / 512, 0.0, 1.0)
    seconds = shape.seconds * (1 + 0.03 * rng.normal()) * samples / SIZE
    return tuple(Point(float(a), float(b), float(c)) for a, b, c in zip(samples, scores, seconds, strict=True))


def diagnostics_of(
    name: str, rng: np.random.Generator, end: float = SIZE
) -> dict[str, tuple[tuple[float, float], ...]]:
    x = np.linspace(512, end, 60)
    t, noise = x / SIZE, lambda size: size * rng.normal(size=60)
    fast = {"dapo": 0.5, "reinforce": 2.2}.get(name, 1.2)
    values = {
        "entropy": 0.35 + 0.75 * np.exp(-fast * 2 * t) + noise(0.02),
        "kl": 0.06 * t * (2.4 if name == "reinforce" else 1.0) + np.abs(noise(0.002)),
        "clip_fraction": 0.015 + 0.03 * np.exp(-3 * t) * (name not in ("rloo", "reinforce")) + np.abs(noise(0.003)),
        "length": 5.2 + 0.5 * t + noise(0.05),
        "zero_advantage_groups": np.clip((0.02 if name == "dapo" else 0.2 + 0.25 * t) + noise(0.015), 0, 1),
        "gradient_norm": 0.9 + 0.6 * np.exp(-4 * t) + np.abs(noise(0.1)),
        "pass@8": np.clip(0.72 + 0.2 * (1 - np.exp(-3 * t)) + noise(0.008), 0, 1),
    }
    if name == "rloo":
        values["clip_fraction"][:] = np.nan  # a method that clips nothing has nothing to report
    return {key: tuple(zip(x.tolist(), value.tolist(), strict=True)) for key, value in values.items()}


def samples_of(arms: Iterable[str], rng: np.random.Generator, prompts: int = 12) -> tuple[Sample, ...]:
    found = []
    for _ in range(prompts):
        a, b = (int(v) for v in rng.integers(10, 99, 2))
        for arm in arms:
            for seed in (0, 1):
                right = rng.random() < SHAPES[arm].end
                answer = a + b if right else a + b + int(rng.choice([-10, -1, 1, 10, 100]))
                carry = (a % 10 + b % 10) // 10
                text = f"{a % 10}+{b % 10}={a % 10 + b % 10}, carry {carry}; {a // 10}+{b // 10}+{carry}\n= {answer}"
                found.append(Sample(arm, seed, f"What is {a} + {b}?", text, float(right)))
    return tuple(found)


def build(
    arms: Iterable[str] = tuple(SHAPES),
    seeds: int = 5,
    *,
    crashed: Iterable[tuple[str, int]] = (),
    running: Iterable[tuple[str, int]] = (),
    waiting: Iterable[tuple[str, int]] = (),
    samples: bool = True,
    seed: int = 7,
) -> Study:
    """A synthetic study; `crashed`, `running`, `waiting` name the (arm, seed) that did not finish."""
    arms, crashed, running, waiting = tuple(arms), set(crashed), set(running), set(waiting)
    runs = []
    for position, arm in enumerate(arms):
        for number in range(seeds):
            rng = np.random.default_rng((seed, list(SHAPES).index(arm), number))
            curve, diagnostics = curve_of(SHAPES[arm], rng), diagnostics_of(arm, rng)
            run = Run(
                arm, number, "ok", curve, {"score": curve[-1].score}, diagnostics, curve[-1].seconds + 6.0 + position
            )
            if (arm, number) in crashed | running:
                cut = 9 + 2 * number
                run = replace(
                    run,
                    status="crashed" if (arm, number) in crashed else "running",
                    curve=curve[:cut],
                    final={},
                    diagnostics={key: points[: 2 * cut] for key, points in diagnostics.items()},
                    duration=curve[cut].seconds,
                    error="TrainingError: the loss is not finite at update 118 (entropy 0.00, gradient norm nan)"
                    if (arm, number) in crashed
                    else "",
                )
            if (arm, number) not in waiting:
                runs.append(run)
    return Study(
        name="Six ways to add",
        arena="arithmetic",
        metric="accuracy",
        direction="higher",
        budget=Budget("samples", SIZE),
        seeds=tuple(range(seeds)),
        arms=tuple(
            Arm(
                arm,
                arm,
                {"group_size": 8, "lr": 3e-4, "temperature": 1.0, "clip": [0.2, 0.28] if arm == "dapo" else [0.2, 0.2]},
                PARTS | CHANGES[arm],
                None if arm in ("grpo", "reinforce") else "grpo",
            )
            for arm in arms
        ),
        runs=tuple(runs),
        samples=samples_of(arms, np.random.default_rng(seed)) if samples else (),
        description="Two-digit sums by characters, warm-started to 27 % sampled accuracy. Scored on 512 held-out sums.",
        command=f"vantage compare {' '.join(arms)} --arena arithmetic --seeds {seeds}",
        created="2031-05-04T09:30:00+00:00",
        commit="0123456789abcdef0123456789abcdef01234567",
        versions={"vantage": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"},
        settings={
            "model": {"layers": 2, "width": 96, "parameters": 302_400},
            "evaluation": {"sums": 512, "greedy": True},
        },
        optimum=1.0,
    )
