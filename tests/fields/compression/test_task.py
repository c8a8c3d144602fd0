"""The task on the road: masks as rows, their rewards, the policy's files, and other methods on it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vantage
from tests.fields.compression.tools import language, small
from tests.harness import context
from vantage.core.errors import UserError
from vantage.core.protocols import Prompts
from vantage.fields.compression.network import weight_sparsity
from vantage.fields.compression.policy import MaskEngine, MaskPolicy
from vantage.fields.compression.task import PruningTask, task_from_spec
from vantage.fields.compression.text import made_text
from vantage.fields.compression.units import masked
from vantage.study.runs.compression import random_weights


def draw(task: PruningTask, policy: MaskPolicy, prompts: int = 2, count: int = 3) -> Any:
    ids = torch.arange(prompts)
    return MaskEngine(policy).sample(Prompts(ids, ids.tolist()), count, context())


@pytest.mark.parametrize("kind", ["perceptron", "language"])
def test_rewards_are_minus_the_loss_under_each_mask(kind: str) -> None:
    network = small() if kind == "perceptron" else language()
    # Few rows at once: the scores are computed in several parts.
    task = PruningTask(network, batch=5, rows=10)
    policy = task.make_policy()
    batch = draw(task, policy)
    gain = task.score(batch, context())["gain"]
    assert gain.shape == (6,)
    for row in range(6):
        index = task._draw(int(batch.prompt[row]))
        assert len(index.unique()) == 5
        rows = tuple(column[index] for column in network.train)
        with torch.no_grad(), masked(network.model, task.registry, batch.action[row].float()):
            assert float(gain[row]) == pytest.approx(-float(network.losses(rows).mean()), rel=1e-5)


def test_masks_follow_the_probabilities() -> None:
    task = PruningTask(small(), keep=0.5)
    policy = task.make_policy()
    batch = draw(task, policy, 1, 4000)
    means = policy.means().detach()
    torch.testing.assert_close(batch.action.float().mean(0), means, atol=0.04, rtol=0)
    kept = batch.action.bool()
    wanted = torch.where(kept, means.log(), torch.log1p(-means))
    torch.testing.assert_close(batch.logp_old, wanted)
    judged = policy.evaluate(batch, frozenset({"logp", "entropy", "distribution"}))
    torch.testing.assert_close(judged.logp.detach(), batch.logp_old)
    entropy = torch.distributions.Bernoulli(means).entropy().expand(4000, -1)
    torch.testing.assert_close(judged.entropy.detach(), entropy, rtol=1e-4, atol=1e-5)
    taken = judged.distribution.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(taken.detach(), batch.logp_old, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("within", ["pool", "layer"])
@pytest.mark.parametrize("initial", ["score", "minmax", "random", "even"])
def test_the_budget_holds_from_the_start(initial: str, within: str) -> None:
    task = PruningTask(language(), keep=0.5, initial=initial, within=within)
    policy = task.make_policy()
    means, hard = policy.means().detach(), policy.hard()
    places = task.registry.pools().values() if within == "pool" else [part for _, part in task.registry.slices()]
    for part in places:
        count = part.stop - part.start
        assert float(means[part].sum()) <= count * 0.5 + 1e-4
        assert int(hard[part].sum()) == count - int(count * 0.5)


def test_scores_of_units_by_hand() -> None:
    from vantage.fields.compression.task import unit_scores

    network = small()
    task = PruningTask(network)
    found = unit_scores(network, task.registry, 1000, 0)
    hidden = network.model[:2](network.train[0])  # type: ignore[index]
    weight = network.model[2].weight  # type: ignore[index]
    wanted = weight.abs().mean(0) * hidden.square().sum(0).sqrt()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(found[0], wanted.detach())


def test_files_of_a_policy_and_its_network(tmp_path: Path) -> None:
    network = small()
    task = PruningTask(network, keep=0.5)
    policy = task.make_policy()
    with torch.no_grad():
        policy.mean.copy_(torch.rand(13, generator=torch.Generator().manual_seed(0)))
        policy.project()
    policy.save(tmp_path)
    again = task.make_policy(model=tmp_path)
    assert torch.equal(again.mean, policy.mean)
    from safetensors.torch import load_file

    pruned = network.copy()
    pruned.model.load_state_dict(load_file(tmp_path / "network" / "model.safetensors"))
    assert pruned.evaluate() == pytest.approx(
        {k: v for k, v in task.evaluate(policy, samples=1, seed=0).items() if k != "kept"}
    )
    with pytest.raises(UserError, match="of another network"):
        PruningTask(small((6, 4, 3))).make_policy(model=tmp_path)
    with pytest.raises(UserError, match="no policy over masks"):
        task.make_policy(model=tmp_path / "network")


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce"])
def test_other_methods_learn_masks(name: str) -> None:
    settings = {"grpo": {"prompts": 1, "group_size": 8, "beta": 0.0}, "rloo": {"prompts": 1, "group_size": 8, "beta": 0.0},
                "reinforce": {"episodes": 8}}[name]  # fmt: skip
    task = PruningTask(small((6, 16, 3), rows=100, seed=3), batch=50, initial="even")
    policy = task.make_policy()
    run = vantage.train(name, task, steps=5, settings={**settings, "lr": 0.02}, evaluate_samples=0, policy=policy)
    assert run.outcome.step == 5
    assert not torch.equal(policy.mean, task.make_policy().mean)
    assert float(policy.means().sum()) <= 8 + 1e-4


def test_a_run_resumes_to_the_same_means(tmp_path: Path) -> None:
    network = small()

    def go(folder: Path, stop: int) -> Any:
        def interrupt(report: Any) -> None:
            if report.step == stop:
                trainer_stop["now"] = True
                raise KeyboardInterrupt

        trainer_stop: dict[str, bool] = {}
        task = PruningTask(network, batch=10)
        return vantage.train(
            "bypass-backprop", task, steps=6, settings={"lr": 0.1}, out=folder, evaluate_samples=0, save_every=3,
            listeners=[interrupt] if stop else [],
        )  # fmt: skip

    whole = go(tmp_path / "whole", 0).policy.mean
    assert (tmp_path / "whole" / "model" / "units.json").is_file()
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", 5)
    from vantage import api

    # The network is not one that a name makes: it is given again.
    config, built = api.read_config(tmp_path / "cut"), api.build_method("bypass-backprop", {"lr": 0.1})
    task = PruningTask(network, batch=10)
    again = api._run(config, built, task, tmp_path / "cut", (), None, resume=True, report=lambda line: None)
    assert torch.equal(again.policy.mean, whole)


def test_specifications(monkeypatch: pytest.MonkeyPatch) -> None:
    from vantage.fields.compression import task as module

    given: dict[str, Any] = {}

    def fake(**settings: Any) -> Any:
        given.update(settings)
        return small()

    monkeypatch.setattr(module, "NETWORKS", {"prune-digits": fake, "prune-text": fake})
    made = task_from_spec("prune-digits:hidden=40x20,keep=0.25,batch=8")
    assert given == {"hidden": "40x20"}
    assert (made.keep, made.batch, made.spec) == (0.25, 8, "prune-digits:hidden=40x20,keep=0.25,batch=8")
    with pytest.raises(UserError, match="unknown option 'kep'"):
        task_from_spec("prune-digits:kep=1")
    with pytest.raises(UserError, match="keep='x' is not a number"):
        task_from_spec("prune-digits:keep=x")
    with pytest.raises(UserError, match=r"keep=1\.5"):
        task_from_spec("prune-digits:keep=1.5")
    with pytest.raises(UserError, match="unknown initial 'scored'; did you mean score"):
        task_from_spec("prune-digits:initial=scored")


def test_random_weights_and_text() -> None:
    network = random_weights(small(), 0.5, 0)
    assert weight_sparsity(network) == pytest.approx(0.5, abs=0.01)
    text = made_text(500, seed=1)
    assert len(text) == 500
    assert text == made_text(500, seed=1)
    assert text != made_text(500, seed=2)


def test_a_policy_has_no_critic() -> None:
    policy = PruningTask(small()).make_policy()
    with pytest.raises(UserError, match="no critic"):
        policy.values(SimpleNamespace())  # type: ignore[arg-type]
    assert all(not p.requires_grad for p in policy.frozen().parameters())
