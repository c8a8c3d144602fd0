from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.rewards import functions
from vantage.core.errors import UserError
from vantage.rewards import pool, sandbox
from vantage.rewards.pool import score_all
from vantage.rewards.verifiers import Code, Exact, Math, Regex, Rewards

ASKED = SimpleNamespace(prompt="?", answer="7", fields={})


@pytest.fixture(scope="module", autouse=True)
def _workers_end() -> Iterator[None]:
    yield
    for each in pool._pools.values():
        started = [worker.process for worker in each._workers]
        each.close()
        assert all(process.poll() is not None for process in started)


def score(verifiers: Any, completions: list[str], **settings: Any) -> dict[str, list[float]]:
    return score_all(verifiers, [ASKED] * len(completions), completions, workers=2, **settings)


def test_columns_by_name_in_order() -> None:
    texts = [str(i % 9) for i in range(100)]
    found = score({"exact": Exact(), "length": functions.length, "regex": Regex("[0-4]")}, texts)
    assert list(found) == ["exact", "length", "regex", "errors"]
    assert found["exact"] == [float(text == "7") for text in texts]
    assert found["length"] == [1.0] * 100
    assert found["regex"] == [float(text in "01234") for text in texts]
    assert found["errors"] == [0.0] * 100
    assert score(Exact(), ["7", "8"]) == {"score": [1.0, 0.0], "errors": [0.0, 0.0]}
    assert score(Rewards({"e": Exact()}), ["7"])["e"] == [1.0]
    assert score_all(Exact(), [], []) == {"score": [], "errors": []}


def test_a_crash_or_a_hang_costs_its_row_alone() -> None:
    bad = ["hang", "crash", "raise", "exit", "text", "infinite", "spin in C"]
    texts = []
    for each in bad:
        texts += ["fine", each, "fine", "missing"]
    started = time.monotonic()
    with pytest.warns(RuntimeWarning, match="failed on 7 of 28 rows, which score 0; row 1: no result after 1.5 s"):
        found = score({"it": functions.misbehave}, texts, timeout=1.5)
    expected = {"fine": 1.0, "missing": math.nan}
    assert found["it"] == pytest.approx([expected.get(text, 0.0) for text in texts], nan_ok=True)
    assert found["errors"] == [float(text in bad) for text in texts]
    assert time.monotonic() - started < 200


def test_several_scores_and_those_that_miss() -> None:
    with pytest.warns(RuntimeWarning, match="KeyError"):
        found = score({"it": functions.misbehave}, ["named", "raise", "named"])
    assert list(found) == ["it/a", "it/b", "errors"]
    assert found["it/a"] == [1.0, 0.0, 1.0]
    assert math.isnan(found["it/b"][0])
    assert found["errors"] == [0.0, 1.0, 0.0]


def test_workers_persist_and_share_the_work() -> None:
    first = set(score(functions.who, ["x"] * 64)["score"])
    assert os.getpid() not in first
    assert 1 <= len(first) <= 2
    assert set(score(functions.who, ["x"] * 64)["score"]) <= {
        float(worker.process.pid) for worker in pool._pools[(os.getpid(), 2)]._workers
    }


def test_workers_are_light_until_more_is_asked_of_them() -> None:
    fresh = pool.Pool(1)
    try:
        found = fresh.run({"m": pickle.dumps(functions.modules)}, [("m", ASKED, "", 300.0)])
    finally:
        fresh.close()
    assert found == [pool._Scored({"m/before": 0.0, "m/after": 1.0, "m/whole": 1.0})]


def test_a_hanging_verifier_takes_its_children_along(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="no result"):
        score(functions.children, [str(tmp_path / "pid")], timeout=1)
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and os.path.exists(f"/proc/{child}"):
        if " Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.02)
    else:
        assert not os.path.exists(f"/proc/{child}")


def test_what_cannot_be_sent_runs_here() -> None:
    here: list[int] = []

    def local(problem: Any, completion: str) -> float:
        here.append(os.getpid())
        if completion == "bad":
            raise RuntimeError("no")
        return 1.0

    with pytest.warns(RuntimeWarning, match="'f' failed on 1 of 2 rows.*row 1: RuntimeError: no"):
        found = score({"f": local}, ["x", "bad"])
    assert found == {"f": [1.0, 0.0], "errors": [0.0, 1.0]}
    assert set(here) == {os.getpid()}


def test_what_cannot_be_loaded_is_an_error() -> None:
    with pytest.raises(UserError, match="cannot be loaded in a worker process: ValueError"):
        score(functions.Unloadable(), ["x"])
    assert score(functions.length, ["four"])["score"] == [4.0]


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match="2 problems for 1 completions"):
        score_all(Exact(), [ASKED] * 2, ["x"])
    with pytest.raises(UserError, match="'errors'"):
        score({"errors": Exact()}, ["x"])
    with pytest.raises(UserError, match="timeout=0"):
        score(functions.length, ["x"], timeout=0)
    with pytest.raises(UserError, match="workers=0"):
        score_all(functions.length, [ASKED], ["x"], workers=0)


def test_math_and_code_in_workers() -> None:
    pytest.importorskip("math_verify")
    if sandbox._missing("namespaces") and sandbox._missing("landlock"):
        pytest.skip("no isolation works here")
    problem = SimpleNamespace(prompt="?", answer="7", fields={"tests": ["assert f() == 7"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score_all(
            {"math": Math(), "code": Code()}, [problem] * 2, ["def f(): return 7", r"\boxed{14/2}"], workers=2
        )
    assert found == {"math": [1.0, 1.0], "code": [1.0, 0.0], "errors": [0.0, 0.0]}


def test_workers_leave_with_their_parent() -> None:
    script = (
        "import os, signal; from vantage.rewards.deferred import defer; defer('vantage.core')\n"
        "from tests.rewards import functions; from vantage.rewards.pool import score_all\n"
        "print(*map(int, score_all(functions.who, [None] * 8, ['x'] * 8, workers=2)['score']), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    workers = {int(pid) for pid in done.stdout.split()}
    assert workers, done.stderr
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(os.path.exists(f"/proc/{pid}") for pid in workers):
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


class Patient:
    """Says how long it needs."""

    isolated = True

    def row_seconds(self, problem: Any) -> float:
        return 3.0

    def __call__(self, problem: Any, completion: str) -> float:
        time.sleep(float(completion))
        return 1.0


def test_the_time_of_a_row_follows_from_its_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ROW_SECONDS", 0.2)
    assert score(Patient(), ["0.4", "0"])["score"] == [1.0, 1.0]
    with pytest.warns(RuntimeWarning, match="no result after 3 s"):
        assert score(Patient(), ["30", "0"])["score"] == [0.0, 1.0]


def test_code_and_math_ask_for_what_their_limits_need() -> None:
    asked = SimpleNamespace(prompt="?", answer="7", fields={"tests": [{"input": "", "output": ""}] * 20})
    assert Code(seconds=30).row_seconds(asked) >= 20 * 60
    assert Math(seconds=3600).row_seconds(asked) == 7200


def test_a_stop_of_this_process_fails_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps far beyond the limit while the workers were at work, as after SIGSTOP and SIGCONT."""
    jumped = []

    class Late(pool.selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> Any:
            if not jumped and timeout and timeout < 5:  # a row has begun
                jumped.append(100.0)
                return []
            return super().select(timeout)

    real = time.monotonic
    monkeypatch.setattr(pool.selectors, "DefaultSelector", Late)
    monkeypatch.setattr(pool.time, "monotonic", lambda: real() + sum(jumped))
    assert score(Patient(), ["0.3"] * 4)["errors"] == [0.0] * 4
    assert jumped


def test_a_worker_has_a_share_of_the_memory() -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert pool._memory(3) == max(whole // 4, 2 << 30)
    with pytest.warns(RuntimeWarning, match="MemoryError"):
        assert score(functions.hoard, [str(whole), "1"])["score"] == [0.0, 1.0]


def test_what_a_verifier_notes_is_a_column_of_its_own() -> None:
    found = score({"it": functions.noted}, ["a", "bb"])
    assert found == {"it": [1.0, 1.0], "notes/letters": [1.0, 2.0], "errors": [0.0, 0.0]}
