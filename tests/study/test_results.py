"""The schema: round trips, and mistakes that are named with their place."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vantage.core.errors import UserError
from vantage.study.results import Arm, Budget, Point, Run, Sample, Study
from vantage.study.schema import write_atomically

from .synthetic import build


def small(**changes) -> Study:
    run = Run("a", 0, "ok", (Point(0, 0.1), Point(10, 0.5, 2.0)), {"score": 0.5}, {"kl": ((10, 0.1),)}, 3.0)
    study = Study(
        name="s", arena="toy", metric="accuracy", direction="higher", budget=Budget("samples", 10),
        seeds=(0, 1), arms=(Arm("a", "grpo"), Arm("b", "rloo")), runs=(run,), samples=(Sample("a", 0, "?", "!", 1.0),),
    )  # fmt: skip
    return replace(study, **changes)


def test_round_trip() -> None:
    study = build(arms=("grpo", "dapo"), crashed=[("dapo", 2)], running=[("dapo", 3)], waiting=[("dapo", 4)])
    again = Study.from_json(study.to_json())
    assert again == study
    assert Study.from_json(again.to_json(indent=1)).to_json() == again.to_json()
    assert json.loads(study.to_json())["schema"] == 1


def test_a_run_alone_round_trips(tmp_path: Path) -> None:
    run = build(arms=("grpo",)).runs[0]
    run.save(tmp_path / "runs" / "grpo-0.json")
    assert Run.load(tmp_path / "runs" / "grpo-0.json") == run


def test_a_diverged_diagnostic_is_null_in_json_and_nan_in_python() -> None:
    run = Run("a", 1, "crashed", diagnostics={"kl": ((1, 0.5), (2, math.nan), (3, math.inf))})
    text = small(runs=(run,)).to_json()
    assert "NaN" not in text
    assert "Infinity" not in text
    points = Study.from_json(text).runs[0].diagnostics["kl"]
    assert points[0] == (1, 0.5)
    assert math.isnan(points[1][1])
    assert math.isnan(points[2][1])


def test_settings_become_json_values() -> None:
    arm = Arm("a", "grpo", {"clip": (0.2, math.inf), "lr": np.float32(0.5), "n": np.int64(3), "deep": {"on": True}})
    assert arm.settings == {"clip": [0.2, "inf"], "lr": 0.5, "n": 3, "deep": {"on": True}}
    with pytest.raises(UserError, match=r"settings.net is of type object, which JSON cannot hold; give its text"):
        Arm("a", "grpo", {"net": object()})


def test_scores_come_in_the_order_of_the_seeds_and_tasks() -> None:
    runs = (Run("a", 1, final={"hard": 0.2, "easy": 0.9}), Run("a", 0, final={"easy": 0.8, "hard": 0.1}))
    study = small(tasks=("easy", "hard"), runs=runs)
    assert study.scores("a") == [[0.8, 0.1], [0.9, 0.2]]
    assert runs[0].score == pytest.approx(0.55)
    assert study.scores("b") == []
    assert [run.seed for run in study.runs_of("a")] == [0, 1]
    assert study.reference == "a"
    assert replace(study, baseline="b").reference == "b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": "up"}, "unknown direction 'up' in study 's'"),
        ({"arms": ()}, "has no arms"),
        ({"seeds": (0, 0)}, "seeds: 0 is there twice"),
        ({"arms": (Arm("a", "x"), Arm("a", "y"))}, "arms: 'a' is there twice; each arm needs a name of its own"),
        ({"baseline": "aa"}, r"unknown arm 'aa' in study.baseline; did you mean a\?"),
        ({"runs": (Run("c", 0, final={"score": 1.0}),)}, r"unknown arm 'c' in runs\[0\].arm"),
        (
            {"runs": (Run("a", 7, final={"score": 1.0}),)},
            r"runs\[0\].seed is 7, which is not one of the seeds \[0, 1\]",
        ),
        ({"runs": (Run("a", 0, final={"other": 1.0}),)}, r"has final scores for \['other'\]; the study's tasks are"),
        ({"runs": (Run("a", 0, "running"), Run("a", 0, "running"))}, "an arm has one run a seed"),
        ({"samples": (Sample("z", 0, "", ""),)}, r"unknown arm 'z' in samples\[0\].arm"),
        ({"schema": 2}, "has schema 2; this version of vantage reads 1"),
    ],
)
def test_a_study_that_is_not_whole_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget("samples", 0), "budget: size=0 is out of range"),
        (lambda: Arm("", "grpo"), "name is empty"),
        (lambda: Run("a", 0, "done"), "unknown status 'done' in run of 'a', seed 0"),
        (lambda: Run("a", 0, "ok"), "is 'ok' but has no final score"),
        (lambda: Run("a", 0, "ok", final={"score": math.nan}), "is 'crashed', not 'ok'"),
        (lambda: Run("a", 0, "running", (Point(0, math.nan),)), r"curve\[0\] holds a number that is not finite"),
        (lambda: Run("a", 0, "running", (Point(5, 0), Point(5, 1))), r"curve\[1\].samples is 5, not above"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def edited(path: tuple, value: object) -> str:
    data = json.loads(small().to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "study: expected an object, got"),
        (
            edited(("runs", 0, "curve", 1, "score"), "high"),
            r"study.runs\[0\].curve\[1\].score: expected a number, got 'h",
        ),
        (edited(("runs", 0, "seed"), True), r"runs\[0\].seed: expected a whole number, got True"),
        (edited(("runs", 0, "diagnostics", "kl", 0), [1]), r"diagnostics\['kl'\]\[0\]: expected a list of 2"),
        (edited(("runs", 0, "staus"), "ok"), r"unknown field 'staus'; did you mean status"),
        (edited(("runs", 0, "status"), "fine"), r"status: expected one of 'ok', 'crashed', 'running', got 'fine'"),
        (edited(("paired",), 1), "study.paired: expected true or false"),
        (edited(("arms",), {}), "study.arms: expected a list"),
        (edited(("versions",), []), "study.versions: expected an object"),
        (edited(("schema",), 9), "has schema 9; this version of vantage reads 1"),
        (edited(("optimum",), math.nan), "NaN is not a number of JSON"),
        ('{"name": "x"}', "the field 'arena' is missing"),
    ],
)
def test_json_that_is_not_a_study_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Study.from_json(text)


def test_files_that_are_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none.json: No such file"):
        Study.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not JSON"):
        Study.load(tmp_path / "bad.json")


def test_writing_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    texts = [str(number) * 200_000 for number in range(4)]
    write_atomically(path, texts[0])
    writers = [threading.Thread(target=write_atomically, args=(path, text)) for text in texts for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in texts
    assert [file.name for file in tmp_path.iterdir()] == ["study.json"]
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(path / "below" / "a-file.json", "x")
