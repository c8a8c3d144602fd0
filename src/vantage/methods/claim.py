"""Claims of a page as data: arena, baseline, metric and direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from vantage.core.errors import UserError, unknown

Direction = Literal["higher", "lower", "no worse"]


@dataclass(frozen=True)
class Claim:
    """A statement that a study can test: in this arena, at equal budget, this method's metric is higher than the other's.

    A page holds it as `claim = Claim(...)`, or several as a tuple; each then needs its own `name`.

    Attributes:
        arena: name of an arena, or the path of a TOML file that defines one.
        against: the baseline: a method, or a peer library's (`sb3-ppo`).
        metric: what is compared: "" for the arena's own score; "area", the mean height of the learning curve; "reach:S", the
            budget spent until the score is S; or the name of a diagnostic, its last value (`mean:NAME`: its mean
            over the run).
        direction: "higher" or "lower" than the baseline, or "no worse" than it.
        margin: the least difference that the claim promises, in the metric's unit; for "no worse" the largest loss that
            still counts as none, which must be given.
        settings: of the method; others are the arena's, then the paper's.
        against_settings: of the baseline.
        function: "module:function" that runs one (method, seed) instead of the arena's runner, for fields without a
            rollout loop; the arena still names budget and metric.
        seeds: runs of each side.
        name: identifies a claim among several of a page; the arena's name where it is empty.
        note: a sentence for the reader: what the authors say, and how this differs from it.

    Raises:
        UserError: a direction that is not known, a margin out of range or missing, or fewer than 2 seeds.
    """

    arena: str
    against: str
    metric: str = ""
    direction: Direction = "higher"
    margin: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    against_settings: Mapping[str, Any] = field(default_factory=dict)
    function: str = ""
    seeds: int = 5
    name: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise unknown("direction", self.direction, get_args(Direction), f"claim on {self.arena!r}")
        if self.margin is not None and not self.margin >= 0:
            raise UserError(f"claim on {self.arena!r}: margin={self.margin} is out of range: at least 0")
        if self.direction == "no worse" and not self.margin:
            raise UserError(
                f"claim on {self.arena!r}: 'no worse' needs a margin above 0, the largest loss that counts as none;"
                " without one no number of seeds could show it"
            )
        if self.seeds < 2:
            raise UserError(f"claim on {self.arena!r}: seeds={self.seeds} is out of range: at least 2")

    @property
    def label(self) -> str:
        """Name of the claim, unique on its page."""
        return self.name or self.arena.rpartition("/")[2].removesuffix(".toml")


def claims_of(module: Any) -> tuple[Claim, ...]:
    """Return the claims of a page's module, () when it makes none.

    Raises:
        UserError: `claim` holds something else, or two claims have one name.
    """
    held = getattr(module, "claim", ())
    found = (held,) if isinstance(held, Claim) else tuple(held)
    where = getattr(module, "__name__", "the page")
    for each in found:
        if not isinstance(each, Claim):
            raise UserError(f"{where}: claim holds {each!r}; give a Claim or a tuple of them")
    labels = [each.label for each in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(f"{where}: two claims are called {twice[0]!r}; give each its own name=...")
    return found
