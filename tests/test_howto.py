"""The how-to pages: their files are written, their commands are run."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("gymnasium")

import vantage
from tests.tasks.language.scripted import Scripted
from vantage.cli import main
from vantage.core import Report, Schedule, Trainer, Trajectories
from vantage.core.context import Context
from vantage.core.trajectories import ENVIRONMENT
from vantage.rollouts.tokens.engine import TokenEngine
from vantage.tasks.language.samples import read_samples

DOCS = Path(__file__).parents[1] / "docs"
OFF_POLICY = (DOCS / "howto-off-policy.md").read_text()
TOOL = (DOCS / "howto-tool.md").read_text()
SMALL = {"length": 4, "batch": 8, "warmup": 12}


def written(folder: Path, page: str = OFF_POLICY, name: str = "sac.py") -> str:
    """Write the page's one program, as it is, and return its path."""
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert code.startswith("# units.py\n" if page == TOOL else "# sac.py\n")
    (folder / name).write_text(code)
    return str(folder / name)


def run_commands(page: str) -> None:
    (commands,) = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    for command in commands.splitlines():
        assert main(shlex.split(command)[1:]) == 0, command


def test_the_off_policy_method_resumes_to_the_last_bit(tmp_path: Path) -> None:
    method = vantage.method(written(tmp_path), **SMALL)
    assert method.asked("engine_options") == {"normalize_rewards": False}

    def trainer(name: str, steps: int) -> Trainer:
        task = vantage.task("pendulum")
        torch.manual_seed(3)
        policy = method.policy_for(task, seed=3)
        engine = method.engine_for(task, policy, seed=3)
        (tmp_path / name).mkdir(exist_ok=True)
        return Trainer(method, task, policy, engine, Schedule(steps, save_every=2), seed=3, folder=tmp_path / name)

    whole = trainer("whole", 6)
    whole.run()
    trainer("cut", 4).run()
    resumed = trainer("cut", 6)
    resumed.restore()
    assert resumed.context.step == 4
    resumed.run()
    for name, value in whole.context.policy.state_dict().items():
        assert torch.equal(value, resumed.context.policy.state_dict()[name]), name


@pytest.mark.slow
def test_the_off_policy_method_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    run_commands(OFF_POLICY)
    first, *_, last = (json.loads(line) for line in (tmp_path / "sac" / "metrics.jsonl").read_text().splitlines())
    assert first["eval/return"] < -900
    assert last["eval/return"] > -600


def conversation(prompt: str, row: int) -> list[str]:
    """Turns of the scripted policy: even rows copy the converter's answer, odd rows ignore it."""
    question = prompt.removesuffix("=")
    value, units = question.split(" ")
    factor = {"d>h": 24, "ft>in": 12, "h>min": 60, "kg>g": 1000}[units]
    return [f"{question}?", str(int(value) * factor) if row % 2 == 0 else "0"]


@dataclasses.dataclass(frozen=True)
class Spoiled:
    """The advantage, with nonsense at inserted tokens, in their log-probabilities too."""

    inner: Any

    def __call__(self, batch: Trajectories, context: Context) -> Tensor:
        inserted = batch.origin == ENVIRONMENT
        assert bool(inserted.any())
        return torch.where(inserted, 1e6, self.inner(batch.replace(logp_old=batch.logp_old + 5.0 * inserted), context))


def test_a_task_with_a_tool_trains_and_is_evaluated_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    path = written(tmp_path, TOOL, "units.py")
    opened: list[int] = []

    def open_scripted(self: Any, prefixes: Any, n: int, sampling: Any, *, seed: int) -> Any:
        opened.append(len(prefixes) * n)
        return Scripted(policy, conversation).open(prefixes, n, sampling, seed)

    monkeypatch.setattr(TokenEngine, "open", open_scripted)
    grpo = vantage.method("grpo", prompts=3, group_size=4, beta=0.0, lr=1e-3)
    reports: list[Report] = []
    weights = []
    for number, method in enumerate((grpo, grpo.replace(advantage=Spoiled(grpo.advantage)))):
        task = vantage.task(path, options={"evaluated": 6})
        policy = task.make_policy()
        run = vantage.train(
            method,
            task,
            policy=policy,
            steps=2,
            out=tmp_path / f"run{number}",
            evaluate_samples=2,
            listeners=[reports.append],
        )
        weights.append(torch.cat([one.detach().flatten() for one in policy.parameters()]))
        # Both steps, and the evaluations before and after them, held conversations, with the tool.
        assert opened == [12, 12, 12, 12]
        opened.clear()
        first, *steps = run.metrics
        for evaluated in (first, steps[-1]):
            assert (evaluated["eval/pass@1"], evaluated["eval/calls"]) == (0.5, 1.0)
        assert [(step["rollout/calls"], step["tool/errors"], step["score"]) for step in steps] == [(1.0, 0.0, 0.5)] * 2
    # Inserted tokens carry no credit: nonsense in their place changes no weight, and there was something to learn.
    assert torch.equal(*weights)
    untrained = vantage.task(path).make_policy()
    assert not torch.equal(weights[0], torch.cat([one.detach().flatten() for one in untrained.parameters()]))

    report = reports[2]  # of the last step of the first run
    batch = report.batch
    assert batch is not None
    # The answer after the tool's output is scored: 1 where it was copied, 0 where "0" was said, though the tool said it too.
    assert batch.score.tolist() == [1.0, 0.0] * 6
    for row in range(12):
        question, answer = conversation(task.problems.problem("train", int(batch.prompt[row])).prompt, row)
        right = conversation(f"{question[:-1]}=", 0)[1]
        size, mask, inserted = int(batch.length[row]), batch.mask[row], batch.origin[row] == ENVIRONMENT
        assert policy.tokenizer.decode(batch.action[row][mask], skip_special_tokens=True) == question + answer
        assert policy.tokenizer.decode(batch.action[row][inserted]) == f"={right};"
        assert torch.equal(mask[:size], ~inserted[:size])
        assert batch.turn[row, :size].tolist() == [0] * (size - len(answer) - 1) + [1] * (len(answer) + 1)
        # Every token of the policy has the same credit, of the question and of the answer: (1 - 1/2) / 0.577 = 0.866.
        credit = batch.advantage[row][mask]
        torch.testing.assert_close(credit, torch.full_like(credit, 0.866 * (-1) ** row), atol=1e-3, rtol=0)

    sample = read_samples(tmp_path / "run0")[0]
    question, answer = conversation(sample["prompt"], 0)
    assert sample["completion"] == f"[policy] {question}\n[inserted] ={answer};\n[policy] {answer}"
    # The options of the command line: with one turn nothing is answered.
    alone = vantage.task(f"{path}:turns=1", options={"evaluated": 6}).evaluate(policy, samples=2, seed=0)
    assert (alone["pass@1"], alone["calls"]) == (0.0, 0.0)


@pytest.mark.slow
def test_the_task_with_a_tool_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, TOOL, "units.py")
    monkeypatch.chdir(tmp_path)
    run_commands(TOOL)
    shown = capsys.readouterr().out
    assert re.search(r"\[policy\] (\d+ \w+>\w+)\?\n +\[inserted\] =\d+;\n +\[policy\] ", shown)
    assert re.search(r"pass@1 +0\.0000\n", shown)  # with turns=1
    last = [json.loads((tmp_path / run / "metrics.jsonl").read_text().splitlines()[-1]) for run in ("asks", "units")]
    assert last[0]["eval/calls"] > 0.9
    assert last[1]["eval/pass@1"] > last[0]["eval/pass@1"] > 0.3
