"""Routing tasks: streams that do not meet, references that an exhaustive search confirms, evaluation, the command line."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vantage
from vantage.cli import main
from vantage.core import UserError
from vantage.policies.routing import RoutingPolicy
from vantage.tasks.routing import instances, references
from vantage.tasks.routing.evaluation import best_costs, contributions, symmetries, wins

SMALL = "width=16,layers=1,heads=2,feedforward=32,reference=none"


def test_instances_are_functions_of_their_numbers_and_streams_do_not_meet() -> None:
    ids = torch.arange(4000)
    train = instances.tsp(ids, 20)
    assert torch.equal(instances.tsp(torch.tensor([17, 3]), 20), train[[17, 3]])
    held = instances.tsp(ids, 20, stream=instances.HELD_OUT)
    rows = torch.cat([train, held, instances.tsp(ids, 20, seed=1)]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == len(rows)
    assert len(torch.unique(torch.cat([train, held])[:, 0, 0])) > 7900
    # Uniform: mean 1/2, variance 1/12, neighbours in place and number uncorrelated; bounds are 4.5 standard errors.
    numbers = rows.double()
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    count = numbers.numel()
    assert abs(float(numbers.mean()) - 0.5) < 4.5 * (1 / 12 / count) ** 0.5
    assert abs(float((numbers - 0.5).square().mean()) - 1 / 12) < 4.5 * (1 / 180 / count) ** 0.5
    for one, other in ((numbers[:, 1:], numbers[:, :-1]), (numbers[1:], numbers[:-1])):
        assert abs(float(((one - 0.5) * (other - 0.5)).mean()) * 12) < 4.5 / one.numel() ** 0.5


def test_demands_are_whole_and_equally_likely() -> None:
    nodes = instances.cvrp(torch.arange(2000), 20, 30)
    assert nodes.shape == (2000, 21, 3)
    assert (nodes[:, 0, 2] == 30).all()
    counts = torch.bincount(nodes[:, 1:, 2].long().flatten(), minlength=10)
    assert counts[0] == 0
    # 8 degrees of freedom: the statistic exceeds 26.1 once in a thousand.
    expected = 40_000 / 9
    assert float(((counts[1:] - expected).square() / expected).sum()) < 26.1


def exhaustive(nodes: Tensor) -> float:
    """Shortest routes by trying every order of the customers, cut into routes in the best way."""
    places = nodes[:, :2].double()
    distance = torch.cdist(places, places).numpy()
    if nodes.shape[1] == 2:
        return min(
            sum(distance[a, b] for a, b in itertools.pairwise((0, *order, 0)))
            for order in itertools.permutations(range(1, len(nodes)))
        )
    demand, capacity = nodes[:, 2].tolist(), float(nodes[0, 2])
    best = float("inf")
    for order in itertools.permutations(range(1, len(nodes))):
        cost = [0.0] + [float("inf")] * len(order)
        for start in range(len(order)):
            load, length = 0.0, distance[0, order[start]]
            for end in range(start, len(order)):
                load += demand[order[end]]
                if load > capacity:
                    break
                if end > start:
                    length += distance[order[end - 1], order[end]]
                cost[end + 1] = min(cost[end + 1], cost[start] + length + distance[order[end], 0])
        best = min(best, cost[-1])
    return best


def test_references_are_optimal_where_all_tours_can_be_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyvrp")
    monkeypatch.setenv("VANTAGE_CACHE", str(tmp_path))
    for problem, nodes in (
        ("tsp", instances.tsp(torch.arange(5), 8)),
        ("cvrp", instances.cvrp(torch.arange(4), 6, 12)),
    ):
        found = references.references(problem, nodes)
        assert found.tolist() == pytest.approx([exhaustive(one) for one in nodes], abs=1e-5)
    # Kept: the second time nothing is solved.
    monkeypatch.setattr(references, "solve", lambda *_: pytest.fail("solved again"))
    assert torch.equal(references.references(problem, nodes), found)
    assert len(list((tmp_path / "routing").iterdir())) == 2


def test_without_the_solver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyvrp", None)
    with pytest.raises(ImportError, match=r"vantage\[routing\]"):
        references.solve(np.zeros((4, 4), np.int64))


def test_symmetries_keep_every_distance_and_differ() -> None:
    nodes = instances.cvrp(torch.arange(2), 5, 10)
    images = symmetries(nodes)
    assert torch.equal(images[0], nodes)
    assert len(torch.unique(images[:, 0].flatten(1), dim=0)) == 8
    assert torch.equal(images[..., 2], nodes[..., 2].expand(8, -1, -1))
    for image in images:
        assert torch.allclose(
            torch.cdist(image[..., :2], image[..., :2]), torch.cdist(nodes[..., :2], nodes[..., :2]), atol=1e-6
        )


def test_a_duplicated_agent_contributes_nothing_and_one_more_cannot_hurt() -> None:
    cost = torch.tensor([[3.0, 2.0, 2.0], [1.0, 4.0, 4.0], [5.0, 1.0, 1.0]])
    assert contributions(cost).tolist() == pytest.approx([1.0, 0.0, 0.0])
    without = torch.tensor([[3.0, 2.0, 4.0], [1.0, 5.0, 4.0]])
    expected = [
        float(without[:, [j for j in range(3) if j != k]].amin(1).mean() - without.amin(1).mean()) for k in range(3)
    ]
    assert contributions(without).tolist() == pytest.approx(expected)
    assert wins(cost).tolist() == pytest.approx([1 / 3, 2 / 3, 0.0])
    policy = RoutingPolicy("tsp", width=16, layers=1, heads=2, feedforward=32, agents=3)
    with torch.no_grad():
        policy.decoder["read"].add_(
            torch.randn(policy.decoder["read"].shape, generator=torch.Generator().manual_seed(0))
        )
        policy.decoder["read"][2] = policy.decoder["read"][1]
        policy.decoder["extra"][2] = policy.decoder["extra"][1]
    greedy, best = best_costs(
        policy, instances.tsp(torch.arange(20), 8), rounds=2, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(greedy[:, 1], greedy[:, 2])
    assert contributions(greedy)[1:].tolist() == [0.0, 0.0]
    assert contributions(greedy)[0] > 0
    assert (best <= greedy).all()
    means = [float(greedy[:, :k].amin(1).mean()) for k in (1, 2, 3)]
    assert means[0] >= means[1] >= means[2]


def test_evaluation_has_the_gap_and_more_looking_finds_no_longer_tours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyvrp")
    monkeypatch.setenv("VANTAGE_CACHE", str(tmp_path))
    options = {"width": 16, "layers": 1, "heads": 2, "feedforward": 32}
    task = vantage.task("tsp:nodes=8,held_out=6", options=options)
    policy = task.make_policy(seed=0)
    judged = task.evaluate(policy, samples=3, seed=0)
    again = vantage.task("tsp:nodes=8,held_out=6,symmetric=true", options=options).evaluate(policy, samples=3, seed=0)
    assert judged["gap"] >= judged["best_gap"] >= 0
    assert again["length"] <= judged["length"]
    nodes = instances.tsp(torch.arange(6), 8, stream=instances.HELD_OUT)
    reference = torch.tensor([exhaustive(one) for one in nodes])
    length = best_costs(policy, nodes)[0][:, 0]
    assert judged["gap"] == pytest.approx(float(100 * (length / reference - 1).mean()), abs=1e-3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tsp:node=5", "did you mean nodes"),
        ("tsp:nodes=2", "at least 3"),
        ("tsp:capacity=20", "of cvrp alone"),
        ("cvrp:nodes=33", "give one, as in cvrp:nodes=33,capacity=40"),
        ("cvrp:capacity=5", "at least 9"),
        ("tsp:reference=lkh", "auto, pyvrp, none"),
        ("tsp:file=/nowhere.tsp", "cannot read"),
        ("cvrp:file=x", "for tsp"),
    ],
)
def test_bad_options(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        vantage.task(spec)


def test_a_policy_of_the_other_problem_is_refused(tmp_path: Path) -> None:
    vantage.task(f"tsp:{SMALL}").make_policy().save(tmp_path)
    with pytest.raises(UserError, match="made for tsp, not for cvrp"):
        vantage.task("cvrp").make_policy(model=str(tmp_path))


@pytest.mark.parametrize("method", ["pomo", "poppy", "rlor"])
@pytest.mark.parametrize("problem", ["tsp", "cvrp"])
def test_train_resume_and_evaluate_from_the_command_line(
    method: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, out = f"{problem}:nodes=6,held_out=4,{SMALL}", tmp_path / "run"
    if problem == "cvrp":
        spec += ",capacity=20"
    small = ["prompts=4", *{"poppy": ["agents=2"], "rlor": ["starts=5", "minibatches=2"]}.get(method, [])]
    assert main(["train", method, "--task", spec, "--steps", "3", "--out", str(out), "--set", *small]) == 0
    assert main(["eval", str(out), "--samples", "2"]) == 0
    assert "best_length" in capsys.readouterr().out
    assert main(["resume", str(out)]) == 0


def losses(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [line for line in history if "loss/policy" in line]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("pomo", {}),
        ("poppy", {"agents": 2, "warm": 0.5}),
        ("poppy", {"agents": 2, "warm": 0.8}),
        ("rlor", {"starts": 6, "minibatches": 2}),
    ],
)
def test_a_run_that_stopped_and_went_on_is_the_run_that_did_not(
    method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    from vantage.core.trainer import Schedule, Trainer

    def trainer(folder: Path) -> Trainer:
        folder.mkdir(exist_ok=True)
        task = vantage.task(f"tsp:nodes=6,{SMALL}")
        policy = task.make_policy(seed=1)
        built = vantage.method(method, prompts=4, lr=1e-2, **settings)
        return Trainer(
            built, task, policy, task.make_engine(policy), Schedule(6, save_every=1, keep=9), seed=2, folder=folder
        )

    whole = trainer(tmp_path / "whole")
    history = whole.run().history
    first = trainer(tmp_path / "broken")
    for _ in range(4):
        first.step()
    first.save()
    second = trainer(tmp_path / "broken")
    assert second.restore() == 4
    assert losses(second.run().history) == losses(history)[-2:]
    expected = whole.context.policy.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.context.policy.state_dict().items())


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("grpo", {"prompts": 3, "group_size": 4}),
        ("remax", {"prompts": 3, "group_size": 4, "kl_coefficient": 0.0}),
        ("reinforce", {"episodes": 4}),
        ("ppo", {"rows": 4, "length": 6, "minibatches": 1, "epochs": 2}),
    ],
)
def test_methods_of_other_fields_train_on_it(method: str, settings: dict[str, Any]) -> None:
    task = vantage.task(f"cvrp:nodes=5,capacity=12,{SMALL}")
    policy = task.make_policy(seed=0)
    before = [p.detach().clone() for p in policy.parameters()]
    run = vantage.train(vantage.method(method, **settings), task, policy=policy, steps=2, evaluate_samples=0)
    assert run.outcome.step == 2
    assert any(not torch.equal(p, b) for p, b in zip(policy.parameters(), before, strict=False))
