"""Probes: a few steps of each side of a claim at a tiny size, stored as numbers beside the claim's record.

Equal numbers mean that the record is valid for the present code; other numbers mean that the code computes something else. A
side is the method or the baseline with the claim's settings and seed 0, on the arena's task. A probe has as many steps as it
takes until all state of its components has been filled and read once. The samples are stored too and repeated
(`vantage.study.draws`), so that a probe made on one kind of processor passes on another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vantage.methods import registry
from vantage.study import claims, records
from vantage.study.arenas import Arena
from vantage.study.contest import Entrant
from vantage.study.draws import Draws
from vantage.study.evaluation import NAMES
from vantage.study.peers import PEERS
from vantage.study.schema import decode, encode, write_atomically
from vantage.study.tiny_runs import LEARNT, STEPS, Side, measure

if TYPE_CHECKING:
    from vantage.study.claims import Stated

FORMAT = 1
RELATIVE, ABSOLUTE = 1e-5, 4e-6
"""Relative and absolute tolerance: two numbers are equal when they differ by no more than the sum of both. A mean of float32
numbers of size 1 that cancel, as a policy loss is at a first step, differs by some 1e-6 between kinds of processors."""
SHAKE, FIRM = 1e-7, 0.3
"""Numbers that change by more than the share `FIRM` of the tolerance when parameters change by `SHAKE` are not stored."""
OTHERWISE = 0.02
"""Largest share of the choices that another processor may make differently."""


@dataclass(frozen=True)
class Probe:
    """Probe file of a page: the sides of its claims, by `name_of`."""

    format: int
    method: str
    sides: Mapping[str, Side] = field(default_factory=dict)

    @staticmethod
    def path(folder: Path, page: registry.Page) -> Path:
        """Return the path of a page's probe."""
        return folder / page.family / f"{page.name}.probe.json"

    @classmethod
    def of(cls, folder: Path, page: registry.Page) -> Probe:
        """Return the stored probe of a page, without sides when it has no file.

        Raises:
            UserError: the file is not a probe.
        """
        path = cls.path(folder, page)
        if not path.is_file():
            return cls(FORMAT, page.name)
        return decode(cls, json.loads(path.read_text(encoding="utf-8")), str(path))

    def store(self, folder: Path, page: registry.Page) -> None:
        """Write the file of the page, one line per side."""
        head = {"format": self.format, "method": self.method}
        sides = [f"{json.dumps(name)}: {json.dumps(encode(_rounded(side)))}" for name, side in self.sides.items()]
        text = f'{json.dumps(head)[:-1]}, "sides": {{\n' + ",\n".join(sides) + "\n}}\n"
        write_atomically(self.path(folder, page), text)


def _rounded(side: Side) -> Side:
    return replace(
        side, figures={name: tuple(float(f"{x:.8g}") for x in values) for name, values in side.figures.items()}
    )


# a page's probe --------------------------------------------------------------------------------------------------------


def sides_of(page: registry.Page) -> dict[str, list[tuple[Stated, Entrant]]]:
    """Return name -> the claims that have this side, with the side; a peer library's are left out."""
    found: dict[str, list[tuple[Stated, Entrant]]] = {}
    for one in claims.of_page(page):
        for side, settings in zip(one.sides, (one.claim.settings, one.claim.against_settings), strict=True):
            if side.arm.method not in PEERS:
                found.setdefault(name_of(side, one.arena, settings), []).append((one, side))
    return found


def name_of(side: Entrant, arena: Arena, settings: Mapping[str, Any]) -> str:
    """Return a side's name: the method, the arena, and the claim's settings."""
    given = ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))
    return f"{side.arm.method} on {arena.name}{': ' if given else ''}{given}"


def differences(folder: Path, page: registry.Page) -> list[str]:
    """Return the differences between the present code's results and the stored probe of a page, one line each."""
    stored, found = Probe.of(folder, page).sides, []
    for name, several in sides_of(page).items():
        if name not in stored:
            found.append(f"{name}: no probe is stored")
            continue
        told = compare(stored[name], *measure(*several[0], stored[name].choices))
        found += [f"{name}: {figure} {words}" for figure, words in told]
    return found


def compare(before: Side, now: Side, draws: Draws | None = None) -> Iterator[tuple[str, str]]:
    """Yield (name, difference) at the first step where each number differs. Names that only one side has are ignored."""
    if draws is not None and draws.otherwise > max(2, OTHERWISE * draws.count):
        yield "choices", f"sampled: {draws.otherwise} of {draws.count} would be made otherwise"
    shared = [name for name in before.figures if name in now.figures]
    if not shared:
        yield "figures", f"are others than {', '.join(before.figures)}"
    for name in shared:
        old, new = before.figures[name], now.figures[name]
        if len(old) != len(new):
            yield name, f"has {len(new)} values where it had {len(old)}"
            continue
        for step, (x, y) in enumerate(zip(old, new, strict=True), 1):
            if not close(x, y):
                yield name, f"at step {step}: {x:.8g} -> {y:.8g}"
                break


def alters(figure: str, before: Side, metric: str) -> bool:
    """Return whether a different number alters a claim's result: of the diagnostics, only the claim's own does."""
    if LEARNT not in before.figures:
        return True  # a field's own function
    learnt = figure.startswith(("choices", "figures", "loss/", "grad_norm", "advantage/", "parameters/"))
    return learnt or NAMES.get(figure, figure) == metric.removeprefix("mean:")


def close(x: float, y: float, share: float = 1.0) -> bool:
    """Return whether two numbers are equal up to a share of the tolerance; NaN is equal to everything."""
    return x == y or not abs(x - y) > share * (ABSOLUTE + RELATIVE * abs(x))


def _firm(one: Stated, side: Entrant) -> Side:
    """Return a side's results, without the numbers that are sensitive to the last bits of the parameters."""
    found, _ = measure(one, side)
    shaken, _ = measure(one, side, found.choices, shake=SHAKE)
    firm = {
        name: tuple(
            x if close(x, y, FIRM) else math.nan for x, y in zip(values, shaken.figures.get(name, values), strict=True)
        )
        for name, values in found.figures.items()
    }
    return replace(found, figures={name: values for name, values in firm.items() if not all(map(math.isnan, values))})


def bless(folder: Path, page: registry.Page, reason: str) -> Iterator[str]:
    """Store the present probe of a page, and mark the results that its change alters; yield what was done.

    A side without a stored probe is stored and marks nothing; nor does a diagnostic that is in no claim.
    """
    stored = Probe.of(folder, page).sides
    sides, altered = {}, []
    for name, several in sides_of(page).items():
        old = stored.get(name)
        told = [] if old is None else list(compare(old, *measure(*several[0], old.choices)))
        if old is not None and not told:
            sides[name] = old
            continue
        sides[name] = _firm(*several[0])
        yield f"{name}: {'; '.join(f'{figure} {words}' for figure, words in told) or 'none was stored'}"
        if old is not None:
            altered += [one.claim.label for one, _ in several if any(alters(f, old, one.claim.metric) for f, _ in told)]
        if sides[name].unread:
            yield f"{name}: {STEPS} steps changed nothing that {', '.join(sides[name].unread)} remembers"
    if sides != stored:
        Probe(FORMAT, page.name, sides).store(folder, page)
    change = records.Change.now(reason)
    for label in records.mark(folder, page, tuple(dict.fromkeys(altered)), change):
        yield f"{page.name}/{label}: measured before this change"
