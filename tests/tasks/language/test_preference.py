"""Pairs in language: what rows they become, what a file of them needs, and a run from the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vantage
from vantage.cli import main
from vantage.core import Schedule, Trainer, UserError
from vantage.core.context import Context
from vantage.core.trajectories import Trajectories
from vantage.policies.tiny import new_model
from vantage.tasks.language.preference import PaddedSorting, PairTask, task_from_pairs
from vantage.tasks.language.task import LanguageTask

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    new_model(folder, preset="tiny")
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": "no idea"} for n in range(40)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_generated_pairs() -> None:
    made = PaddedSorting(length=3, filler=4, longer=0.7)
    longer = padded_solution = 0
    count = 600
    for index in range(count):
        problem = made.problem("train", index)
        chosen, rejected = problem.fields["chosen"], problem.fields["rejected"]
        assert made.score(problem, chosen)["correct"] == 1
        assert made.score(problem, rejected)["correct"] == 0
        assert abs(len(chosen) - len(rejected)) == 5
        assert problem.solution in (chosen, rejected)
        longer += len(rejected) > len(chosen)
        padded_solution += problem.solution.startswith(".")
        assert made.score(problem, problem.solution)["padded"] == float(problem.solution.startswith("."))
    assert longer / count == pytest.approx(0.7, abs=0.05)
    assert padded_solution / count == pytest.approx(0.5, abs=0.06)
    assert made.problem("train", 7) == PaddedSorting(length=3, filler=4, longer=0.7).problem("train", 7)


def test_rows_of_pairs(model: Path) -> None:
    task = vantage.task("padded-sorting:length=3,filler=4")
    policy = task.make_policy(model=str(model))
    engine = task.make_engine(policy)
    trainer = Trainer(vantage.method("dpo", prompts=5), task, policy, engine, Schedule(1))
    batch = trainer.context.method.rollout(trainer.context)
    assert batch.group.tolist() == [i // 2 for i in range(10)]
    for row in range(10):
        problem = task.problems.problem("train", int(batch.prompt[row]))
        size = int(batch.length[row])
        text = policy.tokenizer.decode(batch.action[row, :size].tolist(), skip_special_tokens=True)
        assert text == problem.fields["rejected" if row % 2 else "chosen"]
        # The end token is a decision too.
        assert int(batch.action[row, size - 1]) in policy.stop_tokens
        assert int(batch.mask[row].sum()) == size == len(text) + 1
        prompt = batch.observation["tokens"][row, : int(batch.observation["length"][row])].tolist()
        assert prompt == policy.encode(problem.prompt)


def test_at_the_reference_every_pair_is_a_tie_for_any_micro_batch(model: Path) -> None:
    task = vantage.task("padded-sorting:length=3,filler=4")
    for size in (None, 1, 2, 5):
        policy = task.make_policy(model=str(model))
        method = vantage.method("dpo", prompts=12)
        engine = task.make_engine(policy)
        first = Trainer(method, task, policy, engine, Schedule(1), seed=0, micro_batch=size).step()[0]
        assert first["pairs/accuracy"] == 0.5, size
        assert abs(first["pairs/margin"]) < 1e-6


@pytest.mark.parametrize("chat", [False, True])
def test_an_empty_answer_is_the_end_token_alone(tmp_path: Path, model: Path, chat: bool) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"{n}+1=", "chosen": "" if n % 2 else str(n + 1), "rejected": "?" if n % 2 else ""}
        for n in range(40)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    task = task_from_pairs(str(path))
    policy: Any = task.make_policy(model=str(model))
    if chat:
        policy.tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
        for row in task.problems.train:
            object.__setattr__(row, "prompt", [{"role": "user", "content": row.prompt}])
    method = vantage.method("dpo", prompts=4, lr=1e-3)
    trainer = Trainer(method, task, policy, task.make_engine(policy), Schedule(1))
    batch = trainer.context.method.rollout(trainer.context)
    empty = torch.tensor(
        [
            not task.problems.problem("train", int(batch.prompt[row])).fields["rejected" if row % 2 else "chosen"]
            for row in range(8)
        ]
    )
    assert empty.sum() == 4
    if not chat:
        assert (batch.length[empty] == 1).all()
        assert all(int(token) in policy.stop_tokens for token in batch.action[empty, 0])
    assert all(math.isfinite(value) for line in trainer.run().history for value in line.values())
    assert math.isfinite(task.evaluate(policy, samples=1, seed=0)["margin"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dpo", {"prompts": 4}),
        ("simpo", {"prompts": 4, "sft_weight": 0.1}),
        ("rebel", {"prompts": 4, "temperature": 1.0}),
        ("hypo", {"pairs": 4, "fresh": 3, "samples": 2}),
        ("nash-mp", {"prompts": 3, "group_size": 2}),
        ("sft", {"batch": 4}),
    ],
)
def test_two_steps_of_every_page(
    name: str, settings: dict[str, Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "nash-mp":
        # No answer of an untrained model is right, so by the task's scores every duel is a tie; this judge always decides.
        def by_tokens(task: LanguageTask, own: Trajectories, other: Trajectories, context: Context) -> Tensor:
            return ((own.action * own.mask).sum(1) > (other.action * other.mask).sum(1)).float()

        monkeypatch.setattr(LanguageTask, "prefer", by_tokens, raising=False)
    task = vantage.task("padded-sorting:length=3", options={"max_new_tokens": 8, "evaluated": 4})
    policy = task.make_policy(model=str(model))
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    method = (
        vantage.method(name, lr=1e-3, micro_batch=4, **settings)
        if name != "sft"
        else vantage.method(name, lr=1e-3, **settings)
    )
    run = vantage.train(method, task, steps=2, policy=policy, evaluate_samples=2)
    measured = [value for line in run.outcome.history for key, value in line.items() if not key.startswith("reward/")]
    assert all(map(math.isfinite, measured))
    assert any(not torch.equal(before[key], value) for key, value in policy.state_dict().items())
    last = run.outcome.history[-1]
    assert {"eval/pass@1", "eval/accuracy", "eval/margin", "eval/length_drift"} <= set(last)


def test_duels_that_are_all_ties_teach_nothing(model: Path) -> None:
    task = vantage.task("padded-sorting:length=3", options={"max_new_tokens": 8, "evaluated": 4})
    policy = task.make_policy(model=str(model))
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    method = vantage.method("nash-mp", lr=1e-3, prompts=3, group_size=2)
    run = vantage.train(method, task, steps=2, policy=policy, evaluate_samples=2)
    assert [line["duels/win"] for line in run.outcome.history if "duels/win" in line] == [0.5, 0.5]
    assert all(torch.equal(before[key], value) for key, value in policy.state_dict().items())


def test_a_file_of_pairs_is_known_by_its_fields(pairs: Path, model: Path) -> None:
    task = vantage.tasks.registry.make_task("", data=str(pairs))
    assert isinstance(task, PairTask)
    assert task.size + task.problems.size("test") == 40
    run = vantage.train(
        "dpo", task, steps=20, policy=task.make_policy(model=str(model)), settings={"lr": 1e-3, "prompts": 8}
    )
    first, last = run.outcome.history[0], run.outcome.history[-1]
    assert {key for key in last if key.startswith("eval/")} == {"eval/accuracy", "eval/margin"}
    assert last["eval/margin"] > first["eval/margin"] + 0.1
    assert last["loss/policy"] < math.log(2) < run.outcome.history[1]["loss/policy"] + 1e-6


def test_samples_are_judged_where_a_verifier_is_given(pairs: Path, model: Path) -> None:
    task = task_from_pairs(str(pairs), "exact", options={"max_new_tokens": 4, "evaluated": 2})
    judged = task.evaluate(task.make_policy(model=str(model)), samples=1, seed=0)
    assert {"pass@1", "accuracy"} <= set(judged)


def test_problems_and_demonstrations_stay_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{n}?", "answer": str(n)}) for n in range(30)))
    task = vantage.tasks.registry.make_task("", data=str(path))
    assert type(task) is LanguageTask
    with pytest.raises(UserError, match="holds none"):
        vantage.train("dpo", task, steps=1, evaluate_samples=0)


def test_a_broken_pair_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "b", "rejected": "b"}\n'
    )
    with pytest.raises(UserError, match=r"line 2.*the same text"):
        vantage.tasks.registry.make_task("", data=str(path))
    with pytest.raises(UserError, match="answer_after"):
        task_from_pairs(str(path), reading={"answer_after": "#"})


def test_from_the_command_line(pairs: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = [
        "train",
        "dpo",
        "--model",
        str(model),
        "--data",
        str(pairs),
        "--steps",
        "2",
        "--set",
        "prompts=4",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    capsys.readouterr()
    assert main(["eval", str(out), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"accuracy", "margin"}
