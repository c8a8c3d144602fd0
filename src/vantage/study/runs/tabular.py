"""Arenas of tabular MDPs: an algorithm learns in parallel replicas, and is evaluated without sampling error.

Options of an arena (TOML):

    options = { problem = "layered", arguments = { gap = 0.3 }, replicas = 16, known = true, noisy = true }

`problem` is layered, riverswim, stopping or random, `arguments` are its arguments, and `known` gives the learner the transition
probabilities. With `adversary = { growth = 1.6, shift = 0.6 }` the level of all rewards of `layered` changes by +-shift / 2 in
lengthening phases; the gaps are unchanged. The budget is in environment steps per replica. Metrics:

    mean_regret     regret so far by episodes so far, lower is better; at 0 the gap of the first policy
    gap             optimal value less the value of the learner's present policy

and, where regret is measured, `half_ratio`: regret of the second half of the episodes over that of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from vantage.core.errors import UserError, unknown
from vantage.fields.tabular.episodes import Known, World, play
from vantage.fields.tabular.mdp import MDP
from vantage.fields.tabular.problems import growing_phases, layered, random_mdp, riverswim, stopping
from vantage.fields.tabular.regret import Regret, gap
from vantage.methods import registry

if TYPE_CHECKING:
    from vantage.study.jobs import Job, Reporter

OPTIONS = ("problem", "arguments", "replicas", "known", "noisy", "adversary")


def _random(seed: int = 0, **sizes: int) -> MDP:
    return random_mdp(**sizes, generator=torch.Generator().manual_seed(seed))


PROBLEMS: Mapping[str, Callable[..., MDP]] = {
    "layered": layered,
    "riverswim": riverswim,
    "stopping": stopping,
    "random": _random,
}


def make_world(options: Mapping[str, Any], episodes: int) -> World:
    """Return the world of an arena's options, long enough for `episodes`.

    Raises:
        UserError: an option is not known, or the adversary is given for another problem than layered.
    """
    for name in options:
        if name not in OPTIONS:
            raise unknown("option", name, OPTIONS, "a tabular arena")
    name = options.get("problem", "layered")
    if name not in PROBLEMS:
        raise unknown("problem", name, PROBLEMS, "a tabular arena")
    arguments = dict(options.get("arguments", {}))
    noisy = bool(options.get("noisy", True))
    adversary = options.get("adversary")
    mdp = PROBLEMS[name](**arguments)
    if adversary is None:
        return World(mdp, mdp.reward.unsqueeze(0), noisy=noisy)
    if name != "layered":
        raise UserError(f"adversary goes with problem = 'layered', not {name!r}")
    level, shift = arguments.get("level", 0.5), adversary["shift"]
    tables = torch.stack([layered(**{**arguments, "level": level + side * shift / 2}).reward for side in (-1, 1)])
    return World(mdp, tables, growing_phases(episodes, adversary["growth"]), noisy)


def run(job: Job, report: Reporter) -> float:
    """Train the method until the budget is spent; return the metric, the mean over replicas.

    Raises:
        UserError: the method, an option or the metric is not known, or the method is not one of this field.
    """
    torch.set_num_threads(1)
    arena = job.arena
    size, metric = int(arena.budget.size), arena.scoring.metric
    if metric not in ("mean_regret", "gap"):
        raise unknown("metric", metric, ("mean_regret", "gap"), f"arena {arena.name!r}")
    algorithm = registry.page(job.method).make(job.settings)
    mdp = make_world(arena.options, 1).mdp
    world = make_world(arena.options, size // mdp.shape[0] + 1)
    model = (mdp.transition, mdp.start) if arena.options.get("known", False) else (None, None)
    known = Known(mdp.shape, int(arena.options.get("replicas", 16)), size, *model)
    regret, by_regret = Regret(world), metric == "mean_regret"
    half: float | None = None
    score = total = 0.0
    due = [size * point / arena.scoring.points for point in range(arena.scoring.points + 1)]
    for round_ in play(algorithm, world, known, torch.Generator().manual_seed(job.seed)):
        report.progress(round_.spent)
        if round_.spent >= due[0] or not round_.played:
            score = shortfall = float(gap(world, round_.plan.policy).mean())
            if by_regret and regret.episodes:
                total = float(regret().mean())
                score = total / regret.episodes
            report.point(round_.spent, score)
            report.record(round_.spent, gap=shortfall)
            due = [point for point in due if point > round_.spent] or [float("inf")]
        if by_regret and round_.played:
            if half is None and 2 * round_.spent >= size:
                half = float(regret().mean())
            regret.add(round_)
    if half:
        report.record(size, half_ratio=(total - half) / half)
    return score
