"""Stored completions: bounded, readable after a crash, in step with a resumed run."""

import itertools
import json
from types import SimpleNamespace

import pytest

from vantage.core.errors import UserError
from vantage.tasks.language.samples import FOLDER, Graded, SampleWriter, browse, read_samples


def graded(count=4, mark=""):
    return Graded(
        problem=list(range(count)),
        prompt=[f"{i}+{i}=" for i in range(count)],
        completion=[f"{2 * i}{mark}\nsecond line" for i in range(count)],
        rewards=[{"correct": float(i % 2), "format": 0.1 * i} for i in range(count)],
        advantage=[i - 1.5 for i in range(count)],
        length=[3] * count,
        finished=[True] * count,
    )


def write(folder, steps, mark="", **settings):
    with SampleWriter(folder, lambda report: graded(mark=mark), **settings) as writer:
        for step in steps:
            writer(SimpleNamespace(step=step))
        return writer


def test_rows_come_back_as_they_were(tmp_path):
    write(tmp_path, range(1, 4))
    rows = read_samples(tmp_path)
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4
    assert rows[1] == {
        "step": 1, "problem": 1, "prompt": "1+1=", "completion": "2\nsecond line",
        "rewards": {"correct": 1.0, "format": 0.1}, "advantage": -0.5, "length": 3, "finished": True,
    }  # fmt: skip


def test_the_folder_is_one_parquet_table(tmp_path):
    from pyarrow import parquet

    write(tmp_path, range(1, 11), part=8)
    assert len(list((tmp_path / FOLDER).iterdir())) == 5
    assert parquet.read_table(tmp_path / FOLDER).num_rows == 40


def test_what_was_flushed_survives_a_crash_and_a_torn_part_is_passed_over(tmp_path):
    writer = SampleWriter(tmp_path, lambda report: graded(), part=8)
    for step in range(1, 6):
        writer(SimpleNamespace(step=step))
    # Killed here: the fifth step was in memory only.
    assert {row["step"] for row in read_samples(tmp_path)} == {1, 2, 3, 4}
    parts = sorted((tmp_path / FOLDER).iterdir())
    parts[-1].write_bytes(parts[-1].read_bytes()[:-20])
    assert {row["step"] for row in read_samples(tmp_path)} == {1, 2}


def test_steps_that_are_run_again_are_not_stored_twice(tmp_path):
    write(tmp_path, range(1, 7), mark="old", part=8)
    write(tmp_path, range(4, 8), mark="new", part=8)
    rows = read_samples(tmp_path)
    assert [row["step"] for row in rows] == [step for step in range(1, 8) for _ in range(4)]
    assert all(("new" in row["completion"]) == (row["step"] >= 4) for row in rows)


def test_the_size_is_bounded_and_the_steps_stay_spread(tmp_path):
    write(tmp_path, range(1, 101), most=80, part=16)
    rows = read_samples(tmp_path)
    steps = sorted({row["step"] for row in rows})
    assert len(rows) <= 80 + 16
    assert steps[-1] >= 96
    assert len({b - a for a, b in itertools.pairwise(steps)}) == 1


def test_browsing(tmp_path):
    write(tmp_path, range(1, 4))
    text = browse(tmp_path)
    assert "step 3, problem 0: correct 0, format 0, advantage -1.500, 3 tokens, finished" in text
    assert "step 2" not in text
    assert "          second line" in text
    assert browse(tmp_path, step=1, limit=1).endswith("1 of 4 rows; --limit shows more")
    best = [json.loads(line) for line in browse(tmp_path, order="best", as_json=True).splitlines()]
    assert [row["problem"] for row in best] == [3, 1, 2, 0]
    worst = [json.loads(line) for line in browse(tmp_path, order="worst", as_json=True).splitlines()]
    assert [row["problem"] for row in worst] == [0, 2, 1, 3]
    found = [json.loads(line) for line in browse(tmp_path, everything=True, contains="2+2", as_json=True).splitlines()]
    assert [row["step"] for row in found] == [1, 2, 3]
    assert "no stored completion" in browse(tmp_path, contains="nowhere")


def test_a_completion_cannot_command_the_terminal(tmp_path):
    bad = "\x1b]0;title\x07 \x9b31m \x08\x00 \u202e\u2028 \r fine\tä"
    write(tmp_path, range(1, 2), mark=bad)
    text = browse(tmp_path)
    assert not set(text) & set("\x1b\x07\x9b\x08\x00\u202e\u2028\r")
    assert r"\x1b]0;title\x07 \x9b31m \x08\x00 \u202e\u2028 \r fine" in text
    assert "\tä" in text


def test_bad_requests_are_answered(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        browse(tmp_path / "none")
    with pytest.raises(UserError, match=r"no samples\.parquet"):
        browse(tmp_path)
    write(tmp_path, [1, 2, 9])
    with pytest.raises(UserError, match=r"step 7 has no samples; near it: 1, 2, 9"):
        browse(tmp_path, step=7)
    with pytest.raises(UserError, match="limit=0"):
        browse(tmp_path, limit=0)
    with pytest.raises(UserError, match="order='odd'"):
        browse(tmp_path, order="odd")
