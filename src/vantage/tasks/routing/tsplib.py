"""Reader of TSPLIB files: symmetric travelling salesman problems with coordinates, distances rounded as the format defines.

Gerhard Reinelt, "TSPLIB: A Traveling Salesman Problem Library" (ORSA Journal on Computing 1991), and the format's
description of 1995, sections 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vantage.core.errors import UserError

PI = 3.141592
RADIUS = 6378.388


@dataclass(frozen=True)
class Instance:
    """Travelling salesman problem of a file.

    Attributes:
        name: the file's name without its extension.
        weight_type: EUC_2D, CEIL_2D, GEO or ATT.
        places: coordinates [n, 2] float64, in the order of the file.
    """

    name: str
    weight_type: str
    places: Tensor

    def distances(self) -> Tensor:
        """Return whole-numbered distances [n, n] int64, 0 on the diagonal."""
        found = DISTANCES[self.weight_type](self.places).long()
        return found.fill_diagonal_(0)


def _euclidean(places: Tensor) -> Tensor:
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def _nearest(x: Tensor) -> Tensor:
    # The format's nint: halves are rounded up, unlike in torch.round.
    return (x + 0.5).floor()


def _pseudo(places: Tensor) -> Tensor:
    difference = places.unsqueeze(1) - places
    exact = (difference.square().sum(-1) / 10.0).sqrt()
    rounded = _nearest(exact)
    return torch.where(rounded < exact, rounded + 1, rounded)


def _geographical(places: Tensor) -> Tensor:
    degrees = places.trunc()
    radians = PI * (degrees + 5.0 * (places - degrees) / 3.0) / 180.0
    latitude, longitude = radians.unbind(-1)
    q1 = (longitude.unsqueeze(1) - longitude).cos()
    q2 = (latitude.unsqueeze(1) - latitude).cos()
    q3 = (latitude.unsqueeze(1) + latitude).cos()
    angle = (0.5 * ((1.0 + q1) * q2 - (1.0 - q1) * q3)).clamp(-1.0, 1.0).arccos()
    return (RADIUS * angle + 1.0).floor()


DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "EUC_2D": lambda places: _nearest(_euclidean(places)),
    "CEIL_2D": lambda places: _euclidean(places).ceil(),
    "GEO": _geographical,
    "ATT": _pseudo,
}
"""EDGE_WEIGHT_TYPE -> function from coordinates [n, 2] float64 to whole-numbered distances [n, n]."""


def read(path: str | Path) -> Instance:
    """Read a .tsp file.

    Raises:
        UserError: the file cannot be read, is no TSP, or has distances that are not computed from coordinates; the message
            names the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    header: dict[str, str] = {}
    places: list[tuple[float, float]] = []
    labels: list[str] = []
    section = ""
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        if text == "EOF":
            break
        if text[0].isalpha():
            key, colon, value = text.partition(":")
            section = "" if colon else text.split()[0]
            if colon:
                header[key.strip()] = value.strip()
                if key.strip() == "TYPE" and value.split()[:1] != ["TSP"]:
                    raise UserError(f"{path}, line {number}: TYPE is {value.strip()}; only TSP is read")
        elif section == "NODE_COORD_SECTION":
            fields = text.split()
            try:
                label, x, y = fields[0], float(fields[1]), float(fields[2])
                if len(fields) != 3 or not (math.isfinite(x) and math.isfinite(y)):
                    raise ValueError
            except (ValueError, IndexError):
                raise UserError(f"{path}, line {number}: {text!r} is no node with two coordinates") from None
            labels.append(label)
            places.append((x, y))
    return _checked(path, header, labels, places)


def _checked(path: Path, header: dict[str, str], labels: list[str], places: list[tuple[float, float]]) -> Instance:
    kind = header.get("EDGE_WEIGHT_TYPE", "")
    if kind not in DISTANCES:
        told = f"EDGE_WEIGHT_TYPE is {kind}" if kind else "EDGE_WEIGHT_TYPE is missing"
        raise UserError(f"{path}: {told}; a policy needs coordinates ({', '.join(DISTANCES)})")
    dimension = header.get("DIMENSION", "")
    if not dimension.isdigit() or int(dimension) != len(places):
        raise UserError(
            f"{path}: DIMENSION is {dimension or 'missing'}, and NODE_COORD_SECTION has {len(places)} nodes"
        )
    if len(set(labels)) != len(labels):
        raise UserError(f"{path}: two nodes of NODE_COORD_SECTION have the same number")
    if len(places) < 3:
        raise UserError(f"{path}: a tour needs at least 3 nodes, not {len(places)}")
    return Instance(path.stem, kind, torch.tensor(places, dtype=torch.float64))


def scaled(places: Tensor) -> Tensor:
    """Translate and scale coordinates [n, 2] into the unit square, keeping proportions; float32."""
    low, high = places.amin(0), places.amax(0)
    width = (high - low).max().clamp(min=torch.finfo(torch.float32).tiny)
    return ((places - low) / width).float()


def published(path: str | Path) -> int | None:
    """Return the optimum of a .tsp file from the file `solutions` beside it (lines `name : length`), or None."""
    path = Path(path)
    beside = path.parent / "solutions"
    if not beside.is_file():
        return None
    for line in beside.read_text(encoding="utf-8", errors="replace").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == path.stem:
            word = (value.split() or [""])[0]
            return int(word) if word.isdigit() else None
    return None
