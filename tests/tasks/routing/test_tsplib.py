"""TSPLIB: the reader, the four roundings, and a policy on real files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import vantage
from vantage.cli import main
from vantage.core import UserError
from vantage.policies.routing import RoutingPolicy
from vantage.tasks.routing import references, tsplib
from vantage.tasks.routing.evaluation import solve_instance

REAL = Path(os.environ.get("VANTAGE_TSPLIB", "data/tsplib"))
"""Folder of real files, for a trial; nothing here needs it."""


def write(
    folder: Path, kind: str, rows: list[tuple[float, float]], name: str = "made", dimension: int | None = None
) -> Path:
    path = folder / f"{name}.tsp"
    nodes = "\n".join(f" {i} {x} {y}" for i, (x, y) in enumerate(rows, 1))
    path.write_text(
        f"NAME : {name}\nCOMMENT : made here: not there\nTYPE: TSP\nDIMENSION: {dimension or len(rows)}\n"
        f"EDGE_WEIGHT_TYPE : {kind}\nNODE_COORD_SECTION\n{nodes}\nEOF\n"
    )
    return path


def distance(folder: Path, kind: str, one: tuple[float, float], other: tuple[float, float]) -> int:
    found = tsplib.read(write(folder, kind, [one, other, (0.0, 0.0)])).distances()
    assert torch.equal(found, found.T)
    assert torch.equal(found.diagonal(), torch.zeros(3, dtype=torch.int64))
    return int(found[0, 1])


def test_rounding_of_plane_distances(tmp_path: Path) -> None:
    # 2.5 exactly: the format's nint goes up, not to the even number.
    assert distance(tmp_path, "EUC_2D", (1.0, 1.0), (2.5, 3.0)) == 3
    assert distance(tmp_path, "EUC_2D", (0.0, 1.0), (3.0, 5.0)) == 5
    assert distance(tmp_path, "EUC_2D", (0.0, 1.0), (1.0, 2.0)) == 1
    assert distance(tmp_path, "CEIL_2D", (0.0, 1.0), (1.0, 2.0)) == 2
    assert distance(tmp_path, "CEIL_2D", (0.0, 1.0), (3.0, 5.0)) == 5
    # sqrt(100 / 10) = 3.16 goes to 3, which is less, so 4; sqrt(90 / 10) = 3 stays; sqrt(130 / 10) = 3.61 goes to 4.
    assert distance(tmp_path, "ATT", (0.0, 1.0), (10.0, 1.0)) == 4
    assert distance(tmp_path, "ATT", (0.0, 1.0), (9.0, 4.0)) == 3
    assert distance(tmp_path, "ATT", (0.0, 1.0), (9.0, 8.0)) == 4


def test_geographical_distance_by_the_formats_own_formula(tmp_path: Path) -> None:
    def radians(x: float) -> float:
        degrees = int(x)
        return 3.141592 * (degrees + 5.0 * (x - degrees) / 3.0) / 180.0

    def expected(one: tuple[float, float], other: tuple[float, float]) -> int:
        q1 = np.cos(radians(one[1]) - radians(other[1]))
        q2 = np.cos(radians(one[0]) - radians(other[0]))
        q3 = np.cos(radians(one[0]) + radians(other[0]))
        return int(6378.388 * np.arccos(0.5 * ((1.0 + q1) * q2 - (1.0 - q1) * q3)) + 1.0)

    for one, other in (
        ((16.47, 96.10), (16.47, 94.44)),
        ((-33.55, 151.10), (51.30, -0.10)),
        ((20.5, 1.0), (20.5, 1.0)),
    ):
        assert distance(tmp_path, "GEO", one, other) == expected(one, other)
    # A degree of the equator is 111.3 km; 30 minutes are half of one.
    assert distance(tmp_path, "GEO", (0.0, 10.0), (0.0, 11.0)) == 112
    assert distance(tmp_path, "GEO", (0.0, 10.0), (0.0, 10.30)) == 56


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "EUC_2D",
            "EXPLICIT",
            r"EDGE_WEIGHT_TYPE is EXPLICIT; a policy needs coordinates \(EUC_2D, CEIL_2D, GEO, ATT\)",
        ),
        ("TYPE: TSP", "TYPE: ATSP", "line 3: TYPE is ATSP"),
        ("DIMENSION: 4", "DIMENSION: 5", "DIMENSION is 5, and NODE_COORD_SECTION has 4"),
        (" 2 1.0 0.0", " 2 1.0", "line 8: '2 1.0' is no node"),
        (" 2 1.0 0.0", " 2 nan 0.0", "line 8"),
        (" 2 1.0 0.0", " 1 1.0 0.0", "the same number"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, "EUC_2D", [(0, 0), (1.0, 0.0), (1, 1), (0, 1)])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        tsplib.read(path)


def test_coordinates_are_scaled_with_their_proportions() -> None:
    places = tsplib.scaled(torch.tensor([[10.0, -5.0], [30.0, 5.0], [20.0, 0.0]], dtype=torch.float64))
    assert places.flatten().tolist() == pytest.approx([0, 0, 1, 0.5, 0.5, 0.25])


def test_a_file_is_solved_and_the_gap_to_the_published_optimum_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Around a rectangle of 30 by 10 with nodes every 10: the shortest way is around, 80.
    ring = [(0, 0), (20, 0), (30, 10), (10, 0), (0, 10), (30, 0), (20, 10), (10, 10)]
    path = write(tmp_path, "EUC_2D", [(float(x), float(y)) for x, y in ring], "ring")
    (tmp_path / "solutions").write_text("square : 4\nring : 80 (by hand)\n")
    policy = RoutingPolicy("tsp", width=16, layers=1, heads=2, feedforward=32)
    length = solve_instance(policy, tsplib.read(path))
    assert 80 <= length <= 200
    policy.save(tmp_path / "model")
    assert main(["eval", str(tmp_path / "model"), "--task", f"tsp:file={path}"]) == 0
    told = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(told["length/ring"]) == length
    assert float(told["gap/ring"]) == pytest.approx(100 * (length / 80 - 1), abs=1e-3)
    assert vantage.task(f"tsp:file={path},optimum=40").evaluate(policy, samples=1, seed=0)["gap"] == pytest.approx(
        100 * (length / 40 - 1)
    )
    # A folder: what has no coordinates is left out, and said.
    write(tmp_path, "EXPLICIT", [(0, 0), (1, 0), (1, 1)], "table")
    with pytest.warns(UserWarning, match=r"table\.tsp: EDGE_WEIGHT_TYPE is EXPLICIT"):
        folder = vantage.task(f"tsp:file={tmp_path}")
    assert [instance.name for instance, _ in folder.files] == ["ring"]


def test_training_on_one_file_is_training_on_its_instance(tmp_path: Path) -> None:
    path = write(tmp_path, "EUC_2D", [(0, 0), (1, 0), (2, 1), (1, 2), (0, 1)])
    task = vantage.task(f"tsp:file={path},width=16,layers=1,heads=2,feedforward=32")
    run = vantage.train("pomo", task, steps=2, settings={"prompts": 2}, evaluate_samples=1)
    assert run.outcome.step == 2


@pytest.mark.skipif(
    not REAL.is_dir(), reason="no real files: set VANTAGE_TSPLIB to a folder of TSPLIB files with `solutions`"
)
@pytest.mark.parametrize("name", ["burma14", "ulysses22", "berlin52", "eil51"])
def test_published_optima_are_what_a_solver_finds_with_our_distances(name: str) -> None:
    pytest.importorskip("pyvrp")
    table = tsplib.read(REAL / f"{name}.tsp").distances().numpy()
    assert references.cost(table, references.solve(table)) == tsplib.published(REAL / f"{name}.tsp")
