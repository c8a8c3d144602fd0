from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.core.toy import ToyEngine, ToyPolicy, ToyTask, toy_method
from vantage.core import CheckpointError, Schedule, Trainer, TrainingError, UserError, reads
from vantage.core.checkpoint import checkpoints, load_tensors, newest_checkpoint, read_checkpoint, save_tensors
from vantage.core.runlog import read_metrics
from vantage.regularizers.penalties import ReferenceKL


def trainer(folder: Path | None, steps: int = 12, method: Any = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    policy = ToyPolicy()
    listeners = options.pop("listeners", ())
    schedule = Schedule(steps, **{"save_every": 3, "evaluate_every": 4, "evaluate_samples": 1, **options})
    chosen = method or toy_method(regularizers=(ReferenceKL(0.05),))
    return Trainer(chosen, ToyTask(), policy, ToyEngine(policy), schedule, seed=5, folder=folder, listeners=listeners)


def test_it_learns_and_logs_and_saves(tmp_path: Path) -> None:
    outcome = trainer(tmp_path, steps=40).run()
    lines = read_metrics(tmp_path)
    assert outcome.status == "finished"
    assert [line["step"] for line in lines] == list(range(41))
    assert lines[-1]["eval/right"] > lines[0]["eval/right"] + 0.3
    assert "score" in lines[1]
    assert [p.name for p in checkpoints(tmp_path / "checkpoints")] == ["step-00000039", "step-00000040"]
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert set(timing[1]) >= {"step", "rollout", "reward", "credit", "update"}


def test_resumed_run_is_bit_for_bit_the_run_that_never_stopped(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    trainer(whole).run()

    class Stop(Exception):
        pass

    def die_at_eight(report: Any) -> None:
        if report.step == 8:
            raise Stop

    with pytest.raises(Stop):
        trainer(part, listeners=[die_at_eight]).run()
    torch.rand(17)  # another process has other global states
    again = trainer(part)
    assert again.restore() == 6
    again.run()
    assert (part / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    mine, theirs = (load_tensors(p / "checkpoints" / "step-00000012" / "policy.safetensors") for p in (part, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_evaluating_more_often_changes_nothing_else(tmp_path: Path) -> None:
    often, seldom = trainer(None, evaluate_every=1), trainer(None, evaluate_every=0)
    a, b = often.run().history, seldom.run().history
    for left, right in zip(a[1:], b[1:], strict=True):
        assert {k: v for k, v in left.items() if not k.startswith("eval/")} == {
            k: v for k, v in right.items() if not k.startswith("eval/")
        }


@pytest.mark.parametrize("harm", ["truncate", "alter", "remove", "manifest"])
def test_a_checkpoint_that_is_not_whole_is_refused_and_the_one_before_it_used(tmp_path: Path, harm: str) -> None:
    trainer(tmp_path).run()
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    target = newest / ("manifest.json" if harm == "manifest" else "policy.safetensors")
    data = bytearray(target.read_bytes())
    if harm == "truncate":
        target.write_bytes(data[:-7])
    elif harm == "remove":
        target.unlink()
    else:
        data[len(data) // 2] ^= 0xFF
        target.write_bytes(b"{" if harm == "manifest" else bytes(data))
    said: list[str] = []
    step, _, _ = newest_checkpoint(tmp_path / "checkpoints", said.append)
    assert step == 9
    assert len(said) == 1
    assert "refused" in said[0]
    assert target.name in said[0] or harm == "manifest"
    with pytest.raises(CheckpointError):
        read_checkpoint(newest)


MANIFESTS = {
    "list": "[]",
    "null": "null",
    "text": "{",
    "bytes": "\udcff",
    "another step": '"step": 9',
    "no hashes": '"sha256": {}',
    "hashes that are a list": '"sha256": ["state.pt"]',
}


@pytest.mark.parametrize("harm", [*MANIFESTS, "a file", "empty"])
def test_whatever_the_damage_the_checkpoint_before_is_used(tmp_path: Path, harm: str) -> None:
    trainer(tmp_path).run()
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    manifest = newest / "manifest.json"
    if harm in ("a file", "empty"):
        shutil.rmtree(newest)
        newest.write_text("x") if harm == "a file" else newest.mkdir()
    elif '"' in MANIFESTS[harm]:
        key = MANIFESTS[harm].partition(":")[0]
        held = json.loads(manifest.read_text()) | json.loads("{" + MANIFESTS[harm] + "}")
        assert key.strip('"') in held
        manifest.write_text(json.dumps(held))
    else:
        manifest.write_bytes(MANIFESTS[harm].encode("utf-8", "surrogateescape"))
    said: list[str] = []
    assert newest_checkpoint(tmp_path / "checkpoints", said.append)[0] == 9
    assert len(said) == (harm != "a file")


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "remove"])
def test_a_named_policy_is_part_of_the_checkpoint(tmp_path: Path, harm: str) -> None:
    trainer(tmp_path).run()
    file = next((tmp_path / "policies").iterdir())
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes({"flip": bytes(data), "truncate": bytes(data[:-3]), "empty": b""}[harm])
    with pytest.raises(CheckpointError, match=f"named policy: {file.name} is (missing|truncated or altered)"):
        trainer(tmp_path).restore(lambda text: None)


def test_what_listeners_hold_is_written_with_the_checkpoint(tmp_path: Path) -> None:
    """Steps that a checkpoint covers are not run again on resume."""
    flushed: list[int] = []

    class Kept:
        def __call__(self, report: Any) -> None:
            self.step = report.step

        def flush(self) -> None:
            flushed.append(self.step)

    trainer(tmp_path, listeners=[Kept()]).run()
    assert flushed == [0, 3, 6, 9, 12]


def test_a_run_without_checkpoint_or_of_another_method_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none was written yet"):
        trainer(tmp_path).restore()
    trainer(tmp_path).run()
    other = trainer(
        tmp_path, method=toy_method(prompts=lambda count, context: context.task.prompts(torch.arange(count)))
    )
    with pytest.raises(CheckpointError, match="another method"):
        other.restore()


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where_it_began(tmp_path: Path) -> None:
    calls = {"n": 0}

    def poisoned(evaluation: Any, batch: Any, context: Any) -> torch.Tensor:
        calls["n"] += 1
        loss = -batch.advantage * evaluation.logp
        return loss * float("nan") if calls["n"] > 4 * 5 else loss

    with pytest.raises(TrainingError, match=r"step 6: .*loss/policy=nan.*began in step 6.*last good checkpoint"):
        trainer(tmp_path, method=toy_method(objective=poisoned)).run()
    step, weights, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert step == 3
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_an_interrupt_finishes_the_step_saves_and_ends(tmp_path: Path) -> None:
    def interrupt(report: Any) -> None:
        if report.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    outcome = trainer(tmp_path, listeners=[interrupt]).run()
    assert outcome.status == "interrupted"
    assert outcome.step == 5
    assert newest_checkpoint(tmp_path / "checkpoints")[0] == 5
    again = trainer(tmp_path)
    again.restore()
    assert again.run().status == "finished"
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(13))


def train_on(folder: Path, restored: Any) -> None:
    """Go on with the run in a folder, slowly; set the event `restored` before the first step."""
    run = trainer(folder, steps=30, save_every=2, listeners=[lambda report: time.sleep(0.02)])
    with contextlib.suppress(CheckpointError):
        run.restore()
    restored.set()
    run.run()


def test_killed_at_any_moment_and_resumed_is_the_same_run(tmp_path: Path) -> None:
    """SIGKILL at a random moment, several times over, then resumed to the end: the same metrics to the last byte."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    trainer(whole, steps=30, save_every=2).run()

    def saved() -> set[str]:
        folder = part / "checkpoints"
        return {one.name for one in folder.iterdir() if not one.name.startswith(".")} if folder.is_dir() else set()

    # One process imports torch; those that are killed are its children, which begin with the modules loaded.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    held: set[str] = set()
    ends = []
    for delay in (0.0, 0.05, 0.11):
        restored = server.Event()
        process = server.Process(target=train_on, args=(part, restored))
        process.start()
        assert restored.wait(120)
        # However slow the machine is, a kill comes after some progress: a checkpoint that was not there before.
        while process.is_alive() and saved() <= held:
            time.sleep(0.005)
        held = saved()
        process.join(delay)
        process.kill()
        process.join()
        ends.append(process.exitcode)
    assert -signal.SIGKILL in ends
    assert set(ends) <= {-signal.SIGKILL, 0}  # one that was done before its kill, on a machine that was busy elsewhere
    again = trainer(part, steps=30, save_every=2)
    assert again.restore() > 0
    again.run()
    assert (part / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_tied_tensors_are_written_once(tmp_path: Path) -> None:
    shared = torch.randn(100, 100)
    save_tensors({"a": shared, "b": shared, "c": torch.ones(2)}, tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_size < 45_000
    loaded = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(loaded["a"], shared)
    assert torch.equal(loaded["b"], shared)


def test_schedules_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="steps=0 is out of range: at least 1"):
        Schedule(0)
    with pytest.raises(UserError, match="save_every=-1"):
        Schedule(1, save_every=-1)


def test_runs_share_no_memory_of_stateful_parts() -> None:
    method = toy_method()
    first, second = trainer(None, method=method), trainer(None, method=method)
    first.run()
    assert second.context.method.update.state_dict()["optimizer"]["state"] == {}


def test_a_part_may_judge_in_micro_batches_and_read_settings_that_change() -> None:
    whole, cut = trainer(None), trainer(None)
    cut.context.micro_batch = 5
    batch = whole.context.method.rollout(whole.context)
    torch.testing.assert_close(cut.context.evaluate(batch), whole.context.evaluate(batch))
    hidden = cut.context.evaluate(batch, "hidden", read=lambda evaluation, _: evaluation.hidden.square().sum(-1))
    torch.testing.assert_close(hidden, whole.context.evaluate(batch, "hidden").square().sum(-1))
    assert not whole.context.evaluate(batch).requires_grad
    assert whole.context.evaluate(batch[:0]).shape == (0, batch.steps)
    assert whole.context.now(3) == 3
    assert whole.context.now(lambda context: context.step + 7) == 7


def test_columns_under_any_named_policy_are_filled() -> None:
    @reads("logp", columns=("logp_under_elder", "logp_current"))
    def towards(evaluation: Any, batch: Any, context: Any) -> torch.Tensor:
        torch.testing.assert_close(batch.logp_under_elder, batch.logp_current)
        return evaluation.logp - batch.logp_under_elder

    run = trainer(None, steps=1, method=toy_method(objective=towards))
    run.step()
    assert set(run.context.policies) == {"elder"}
