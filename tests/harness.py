"""Evaluates a method's loss on given log-probabilities, without a policy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import vantage
from vantage.core import Evaluation, Method, Schedule, Trainer, Trajectories
from vantage.core.checkpoint import load_tensors
from vantage.core.loss import method_loss, weighted
from vantage.metrics import Metrics


class Leaf:
    """A policy whose outputs are given tensors."""

    memoryless = False

    def __init__(self, **outputs: Tensor) -> None:
        self.outputs = outputs

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        return Evaluation(**self.outputs)

    def parameters(self) -> list[Tensor]:
        return list(self.outputs.values())


def context(**fields: Any) -> Any:
    """A context that records metrics and holds what a part asks for."""
    metrics = Metrics()
    made = SimpleNamespace(generator=torch.Generator().manual_seed(0), aside=False, **recording(metrics), **fields)
    made.asks_for = lambda column: "method" in fields and column in fields["method"].declared("columns")
    made.under = lambda prefix: SimpleNamespace(**{**vars(made), **recording(metrics.under(prefix)), "aside": True})
    return made


def reader(*columns: str) -> Any:
    """A method that declares nothing but that it reads these columns."""
    return SimpleNamespace(declared=lambda name: frozenset(columns if name == "columns" else ()), wants=frozenset())


def recording(metrics: Metrics) -> dict[str, Any]:
    """What a context offers to record metrics by."""
    return {"metrics": metrics} | {
        name: getattr(metrics, name) for name in ("record", "record_mean", "record_total", "derive")
    }


def loss_of(method: Method, batch: Trajectories, **outputs: Tensor) -> Tensor:
    """The method's loss on a whole minibatch, from outputs of the policy."""
    where = context(method=method)
    ready = weighted(batch, method.averaging)
    return method_loss(Evaluation(**outputs), ready, where, ready)


class Given(torch.nn.Module):
    """A policy whose log-probabilities are its parameter [N, T]."""

    memoryless = False

    def __init__(self, logp: Tensor) -> None:
        super().__init__()
        self.logp = torch.nn.Parameter(logp.detach().clone())

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        return Evaluation(logp=self.logp)


def step_gradient(method: Method, batch: Trajectories, logp: Tensor) -> Tensor:
    """The gradient by the log-probabilities [N, T] of one optimiser step of the method's update on a whole minibatch."""
    policy = Given(logp)
    where = context(method=method, policy=policy)
    method.update.prepare(where)
    method.update.step(batch, where)
    assert policy.logp.grad is not None
    return policy.logp.grad


def step_of(method: Method, batch: Trajectories, **outputs: Tensor) -> dict[str, Tensor]:
    """Gradients, clipped as the method clips them, of one optimiser step of its update on a policy with these outputs."""
    policy = Leaf(**{name: value.clone().requires_grad_() for name, value in outputs.items()})
    where = context(method=method, policy=policy)
    method.update.prepare(where)
    method.update.step(batch, where)
    return {name: value.grad for name, value in policy.outputs.items() if value.grad is not None}


def random_batch(
    rows: int = 8, steps: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64, size: int = 4
) -> Trajectories:
    """Ragged rows in groups of `size`, with log-probabilities of three policies and binary scores."""
    generator = torch.Generator().manual_seed(seed)

    def logs() -> Tensor:
        return -torch.rand(rows, steps, generator=generator, dtype=dtype) - 0.1

    length = torch.randint(1, steps + 1, (rows,), generator=generator)
    last = torch.arange(steps) == (length - 1).unsqueeze(1)
    return Trajectories(
        {
            "mask": torch.arange(steps) < length.unsqueeze(1),
            "length": length,
            "logp_old": logs(),
            "logp_ref": logs(),
            "group": torch.arange(rows) // size,
            "score": torch.randint(2, (rows,), generator=generator).to(dtype),
            "reward": torch.zeros(rows, steps, dtype=dtype),
            "terminated": last,
            "truncated": torch.zeros(rows, steps, dtype=torch.bool),
            "prompt": torch.arange(rows) // size,
        }
    )


def new_logp(batch: Trajectories, seed: int = 1, scale: float = 0.3) -> Tensor:
    """Log-probabilities near the old ones, some ratios beyond the usual clip; a leaf that takes gradient."""
    noise = torch.randn(batch.logp_old.shape, generator=torch.Generator().manual_seed(seed), dtype=batch.logp_old.dtype)
    return (batch.logp_old + scale * noise).requires_grad_()


def assert_resumes(folder: Path, method: Method, spec: str, options: dict[str, Any] | None = None) -> None:
    """A run that is dropped after its second step of four and resumed is, to the last bit, the run that never stopped."""

    def runner(name: str) -> Trainer:
        task = vantage.task(spec, options={**method.policy_options, **(options or {})})
        policy = task.make_policy(seed=0)
        schedule = Schedule(4, save_every=1, evaluate_samples=0, keep=10)
        return Trainer(method, task, policy, task.make_engine(policy), schedule, seed=3, folder=folder / name)

    for name in ("whole", "broken"):
        (folder / name).mkdir(parents=True)
    runner("whole").run()
    first = runner("broken")
    first.listeners.append(lambda report: setattr(first, "_interrupted", report.step == 2))
    assert first.run().status == "interrupted"
    again = runner("broken")
    assert again.restore() == 2
    again.run()
    one, other = (folder / name for name in ("whole", "broken"))
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    weights = [load_tensors(part / "checkpoints/step-00000004/policy.safetensors") for part in (one, other)]
    begun = load_tensors(one / "checkpoints/step-00000002/policy.safetensors")
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(not torch.equal(weights[0][key], begun[key]) for key in begun)
