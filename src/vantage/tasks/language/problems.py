"""Generated problem sets by name, made from a specification as on the command line.

problem_set("addition:digits=3")        problem_set("addition:digits=1..3")      easy to hard in equal parts
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vantage.core.errors import UserError
from vantage.rewards.specs import build, parse
from vantage.tasks.language.arithmetic import Addition, ModularChain, Sorting
from vantage.tasks.language.countdown import Countdown
from vantage.tasks.language.counting import Counting
from vantage.tasks.language.drafted import Drafted
from vantage.tasks.language.hinted import Hinted
from vantage.tasks.language.mixed import Mixed
from vantage.tasks.language.problem import SPLITS, Problem, ProblemSet

__all__ = [
    "PROBLEM_SETS",
    "SPLITS",
    "Addition",
    "Countdown",
    "Counting",
    "Drafted",
    "Hinted",
    "Mixed",
    "ModularChain",
    "Problem",
    "ProblemSet",
    "Sorting",
    "alphabet",
    "problem_set",
]

PROBLEM_SETS: Mapping[str, Callable[..., ProblemSet]] = MappingProxyType(
    {
        "addition": Addition,
        "countdown": Countdown,
        "counting": Counting,
        "drafted": Drafted,
        "hinted": Hinted,
        "modular": ModularChain,
        "sorting": Sorting,
    }
)
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def problem_set(spec: str, sets: Mapping[str, Callable[..., ProblemSet]] = PROBLEM_SETS) -> ProblemSet:
    """Make a problem set from `name:setting=value,...`; `low..high` for a whole number mixes the sets of that range.

    Args:
        spec: the specification.
        sets: name -> constructor of the set.

    Raises:
        UserError: unknown name or setting (with the nearest ones), or a value out of its range (with the range).
    """
    name, settings = parse("task", spec, sets, {})
    ranges = {key: match for key, text in settings.items() if (match := _RANGE.fullmatch(text))}
    spans = []
    for key, match in ranges.items():
        low, high = int(match[1]), int(match[2])
        if not 0 <= high - low < 100:
            raise UserError(f"task {name!r}: {key}={match[0]} is no range: write low..high, at most 100 values")
        spans.append([(key, str(value)) for value in range(low, high + 1)])
    parts: list[ProblemSet] = [
        build("task", name, sets[name], {**settings, **dict(chosen)}) for chosen in itertools.product(*spans)
    ]
    return parts[0] if len(parts) == 1 else Mixed(tuple(parts))


def alphabet(problems: ProblemSet | None = None) -> str:
    """Return, sorted, all characters that occur in prompts and solutions of one generated set, or of all of them.

    Raises:
        UserError: the set is not a generated one, whose characters are known.
    """
    if problems is None:
        made = [maker() for maker in PROBLEM_SETS.values()]
        return "".join(sorted(set("".join(map(alphabet, made)))))
    if isinstance(problems, Mixed):
        return "".join(sorted(set("".join(map(alphabet, problems.parts)))))
    if type(problems) in PROBLEM_SETS.values():
        generated: Any = problems
        return "".join(sorted(generated.alphabet()))
    raise UserError(f"{problems.name}: only a generated task has a known alphabet")
