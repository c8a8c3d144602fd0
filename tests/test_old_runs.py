"""Two runs that commit c42b6ec left after 3 steps: they resume and load with the code that is here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import vantage
from vantage.config import read_config
from vantage.upgrade import upgraded

OLD = Path(__file__).parent / "data" / "old_runs"
STEPS = {"control-ppo": 8, "language-dcpo": 6}


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")  # the language run names the model that it began with by a relative path
    return Path(request.param)


@pytest.mark.parametrize("run", STEPS, indirect=True)
def test_an_old_run_resumes_to_its_end_and_loads(run: Path) -> None:
    before = (run / "metrics.jsonl").read_text().splitlines()
    said: list[str] = []
    ended = vantage.resume(run, report=said.append)
    after = (run / "metrics.jsonl").read_text().splitlines()
    assert said[-1] == f"resumed from step 3 of {STEPS[run.name]}"
    assert (ended.outcome.status, ended.outcome.step) == ("finished", STEPS[run.name])
    assert after[: len(before)] == before
    assert [json.loads(line)["step"] for line in after] == list(range(STEPS[run.name] + 1))
    assert vantage.evaluate(run, samples=1)


@pytest.mark.parametrize("run", STEPS, indirect=True)
def test_an_old_model_folder_is_a_start(run: Path) -> None:
    task = "cartpole" if run.name == "control-ppo" else "addition:digits=1"
    assert vantage.evaluate(run / "model", task, samples=1, options={"max_new_tokens": 4} if "add" in task else {})


@pytest.mark.parametrize(
    ("method", "settings", "name", "kept"),
    [
        ("brrl", {"form": "gbpo", "lr": 3e-5, "eps": 0.1, "epochs": None}, "brrl-group", {"lr": 3e-5, "eps_low": 0.1}),
        ("brrl", {"form": "bpo", "rows": 2}, "brrl", {"rows": 2}),
        ("otc", {"form": "ppo", "lam": 0.9}, "otc-ppo", {"lam": 0.9}),
        ("otc", {"c": 2.0}, "otc", {"c": 2.0}),
        ("grpo", {"beta": 0.0}, "grpo", {"beta": 0.0}),
    ],
)
def test_methods_that_were_split_are_found_under_their_names_of_now(
    method: str, settings: dict[str, object], name: str, kept: dict[str, object], tmp_path: Path
) -> None:
    assert upgraded({"method": method, "settings": settings}) == {"method": name, "settings": kept}
    stored = json.loads((OLD / "control-ppo" / "config.json").read_text())
    stored["run"] |= {"method": method, "settings": settings}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    read = read_config(tmp_path)
    assert (read.method, read.settings) == (name, kept)
    assert vantage.method(read.method, **read.settings).name == name
