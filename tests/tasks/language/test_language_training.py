"""Language runs on the road: a run that is stopped and resumed is the run that never stopped."""

import pytest
import torch

import vantage
from vantage.core.checkpoint import checkpoints
from vantage.core.trainer import Schedule, Trainer
from vantage.tasks.language.loading import task_from_spec
from vantage.tasks.language.samples import read_samples

OPTIONS = {"max_new_tokens": 6, "evaluated": 8}


def trainer(method, folder, steps, options, horizon=5):
    torch.manual_seed(0)
    task = task_from_spec("addition:digits=1", options={**OPTIONS, **options})
    policy = task.make_policy(seed=0)
    return Trainer(
        method,
        task,
        policy,
        task.make_engine(policy),
        Schedule(horizon, save_every=1, evaluate_samples=2, keep=10),
        seed=3,
        folder=folder,
        listeners=[task.writer(folder)],
    )


@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        ("grpo", {"prompts": 4, "group_size": 4, "lr": 1e-3, "beta": 0.1, "minibatches": 2}, {}),
        ("grpo", {"prompts": 4, "group_size": 4, "lr": 1e-3, "beta": 0.1}, {"lora_rank": 2}),
        ("sft", {"batch": 8, "lr": 1e-3}, {}),
    ],
)
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, name, settings, options):
    if options:
        pytest.importorskip("peft")
    method = vantage.method(name, **settings)
    whole = trainer(method, tmp_path / "whole", 5, options)
    (tmp_path / "whole").mkdir()
    history = whole.run().history
    # The same run, cut back to its second step as a kill would have left it.
    for path in checkpoints(tmp_path / "whole" / "checkpoints")[3:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    again = trainer(method, tmp_path / "whole", 5, options)
    assert again.restore(report=lambda text: None) == 2
    rest = again.run().history
    assert [line["step"] for line in rest] == [3, 4, 5]
    assert rest == history[3:]
    for (label, one), (_, two) in zip(whole.context.policy.named_parameters(), again.context.policy.named_parameters()):
        assert torch.equal(one, two), label


def test_a_language_model_learns_and_its_samples_are_stored(tmp_path):
    task = task_from_spec("addition:digits=1", options={**OPTIONS, "stored": 4})
    run = vantage.train(
        "sft", task, steps=40, out=tmp_path / "run", settings={"batch": 32, "lr": 3e-3}, evaluate_samples=0
    )
    losses = [line["loss/policy"] for line in run.metrics if "loss/policy" in line]
    assert losses[-1] < 0.5 * losses[0]
    rows = read_samples(tmp_path / "run")
    assert {row["step"] for row in rows} == set(range(1, 41))
    first = task.problems.problem("train", rows[0]["problem"])
    assert (rows[0]["prompt"], rows[0]["completion"]) == (first.prompt, first.solution)
    tuned = task.make_policy(model=tmp_path / "run" / "model")
    for one, two in zip(tuned.parameters(), run.policy.parameters()):
        assert torch.equal(one, two)
