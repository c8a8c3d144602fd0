"""BranchGRPO: the counts, advantages and prunings of its card."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import vantage
from tests.harness import context, loss_of
from tests.methods.generative.flows import assert_resumes, credited, trainer
from tests.reference import Case, cases
from vantage.advantages.groups import GroupStandardized
from vantage.core import Trajectories, UserError
from vantage.methods import registry
from vantage.methods.generative.branchgrpo import DepthStandardized, PruneDepths, PruneWidth, node_values
from vantage.policies.flow import normal_logp, transition
from vantage.study.meter import Meter


def grown(**settings: object) -> tuple[Trajectories, object]:
    where = trainer(vantage.method("branchgrpo", prompts=2, **settings))
    return where.context.method.rollout(where.context), where.context


def test_the_default_tree_has_219_nodes_and_shares_its_prefixes() -> None:
    batch, where = grown()
    assert batch.action.shape == (32, 20, 2)
    per_depth = batch.mask[:16].sum(0).tolist()
    assert per_depth == [2] * 3 + [4] * 3 + [8] * 3 + [16] * 11
    assert 1 + sum(per_depth) == 219
    edge = batch["edge"]
    assert len(torch.unique(edge)) == 2 * 218
    # Rows of an edge hold the same step, of which one is learnt from.
    for number in torch.unique(edge).tolist():
        rows, place = (edge == number).nonzero(as_tuple=True)
        assert int(batch.mask[rows, place].sum()) == 1
        assert (batch.action[rows, place] == batch.action[rows[0], place[0]]).all()
    torch.testing.assert_close(
        where.policy.evaluate(batch, frozenset({"logp"})).logp, batch.logp_old, rtol=1e-3, atol=1e-3
    )


def test_every_shared_step_is_computed_once() -> None:
    where = trainer(vantage.method("branchgrpo", prompts=2))
    meter = Meter(where.context.engine, "tokens", 1e9)
    where.context.engine = meter
    calls, network = [], where.context.policy.network.forward

    def count(x: Tensor, *rest: object) -> Tensor:
        calls.append(len(x))
        return network(x, *rest)

    where.context.policy.network.forward = count
    where.context.method.rollout(where.context)
    assert sum(calls) == 2 * 218
    assert meter.spent == 2 * 218


def tree(scores: list[float], splits: tuple[int, ...], steps: int, logp: Tensor | None = None) -> Trajectories:
    """One tree with these leaves, which splits at these steps."""
    rows = len(scores)
    sizes = [rows >> sum(split <= step for split in splits) for step in range(steps)]
    edge = torch.stack([torch.arange(rows) // max(size, 1) for size in sizes], 1) + 100 * torch.arange(steps)
    return Trajectories(
        {
            "edge": edge,
            "mask": torch.cat([torch.ones(1, steps, dtype=torch.bool), edge[1:] != edge[:-1]]),
            "group": torch.zeros(rows, dtype=torch.int64),
            "score": torch.tensor(scores),
            "action": torch.zeros(rows, steps, 2),
            "logp_old": torch.zeros(rows, steps) if logp is None else logp,
        }
    )


def test_worked_tree() -> None:
    batch = tree([1.0, 0.0, 0.0, 0.0], (0, 2), 4)
    found = DepthStandardized()(batch, context())
    assert found[[0, 2], 0].tolist() == pytest.approx([0.7071, -0.7071], abs=1e-4)
    assert found[:, 3].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-4)
    # Constant along an unsplit segment; the edges of a depth sum to 0.
    torch.testing.assert_close(found[:, 0], found[:, 1])
    torch.testing.assert_close(found[:, 2], found[:, 3])
    assert torch.where(batch.mask, found, 0.0).sum(0).abs().max() < 1e-5


@cases("branchgrpo", "tree")
def test_values_and_advantages_are_the_authors(case: Case) -> None:
    logp, splits = case.tensor("logp"), tuple(case.settings["splits"])
    # Theirs is a mean over dimensions, ours the sum over two.
    batch = tree(case.inputs["score"], splits, case.settings["steps"], 2 * logp)
    case.check("value", node_values(batch, case.settings["weighted"]))
    method = registry.page("branchgrpo").make({"weighted": case.settings["weighted"]})
    case.check("advantage", method.advantage(batch, context()))


@cases("branchgrpo", "step")
def test_a_step_is_the_authors(case: Case) -> None:
    settings = case.settings
    sampler = (
        registry.page("branchgrpo")
        .make({"steps": settings["steps"], "noise": settings["eta"], "shift": settings["shift"], "splits": ()})
        .rollout.sampler
    )
    step, x, velocity = settings["step"], case.tensor("x"), case.tensor("velocity").requires_grad_()
    now, after, sigma = (
        value.double().expand(len(x))
        for value in (sampler.times()[step], sampler.times()[step + 1], sampler.sigmas()[step])
    )
    mean, std = transition(x, velocity, now, after, sigma)
    logp = normal_logp(case.tensor("action"), mean, std) / 4
    case.check("logp", logp)
    case.check("prediction", x - now.reshape(-1, 1, 1, 1) * velocity)
    case.check("gradient", torch.autograd.grad(logp.sum(), velocity)[0])


@cases("branchgrpo", "loss")
def test_the_loss_is_the_authors(case: Case) -> None:
    """One optimiser step on the edges of one process: there an edge is a micro-batch, here their mean is taken at once."""
    method = registry.page("branchgrpo").make({"eps": case.settings["eps"]})
    logp = case.tensor("logp").unsqueeze(1).requires_grad_()
    rows = len(logp)
    batch = Trajectories(
        {
            "action": torch.zeros(rows, 1, 1),
            "mask": torch.ones(rows, 1, dtype=torch.bool),
            "length": torch.ones(rows, dtype=torch.int64),
            "group": torch.arange(rows) % case.settings["trees"],
            "logp_old": case.tensor("logp_old").unsqueeze(1),
            "advantage": case.tensor("advantage").clamp(-5, 5).unsqueeze(1),
        }
    )
    loss = loss_of(method, method.selection[-1](batch, context()), logp=logp)
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, logp)[0].squeeze(1))


def test_a_tree_without_splits_teaches_nothing() -> None:
    batch, where = grown(splits=())
    assert batch.mask.shape == (2, 20)
    batch = batch.replace(score=torch.tensor([1.0, 2.0]))
    assert DepthStandardized()(batch, where).abs().max() == 0


def test_a_split_at_the_first_step_alone_is_group_grpo() -> None:
    scores = [0.3, -1.0, 2.0, 0.1]
    rows = torch.arange(4)
    batch = tree(scores, (0,), 5).replace(
        edge=rows.unsqueeze(1) + 100 * torch.arange(5), mask=torch.ones(4, 5, dtype=torch.bool)
    )
    found = DepthStandardized()(batch, context())
    expected = GroupStandardized(eps=1e-8)(batch, context())
    torch.testing.assert_close(found, expected)
    drawn, where = grown(splits=(0,), noise_scale=1.0)
    assert bool(drawn.mask.all())
    drawn = drawn.replace(score=torch.arange(4.0).square())
    torch.testing.assert_close(DepthStandardized()(drawn, where), GroupStandardized(eps=1e-8)(drawn, where))


def test_fusion_by_probability() -> None:
    scores = [1.0, 0.0, 4.0, 2.0]
    equal = tree(scores, (0, 2), 4)
    torch.testing.assert_close(node_values(equal, True), node_values(equal, False))
    assert node_values(equal, False)[:, 0].tolist() == [0.5, 0.5, 3.0, 3.0]
    # Log-densities per dimension 0 and ln 3 of the two children of the left node: shares 1/4 and 3/4.
    logp = torch.zeros(4, 4)
    logp[1, 2] = 2 * torch.tensor(3.0).log()
    # A step where nothing splits has no say.
    logp[:, 3] = torch.tensor([5.0, -5.0, 1.0, 0.0])
    values = node_values(tree(scores, (0, 2), 4, logp), True)
    assert values[:, 0].tolist() == pytest.approx([0.25, 0.25, 3.0, 3.0])
    assert values[:, 2].tolist() == pytest.approx(scores)


def test_depths_are_pruned_by_a_window_that_slides() -> None:
    batch = tree([1.0, 0.0], (0,), 12)
    part = PruneDepths((11, 12), interval=30, stop=9)
    for step, gone in ((0, [10, 11]), (29, [10, 11]), (30, [9, 10]), (300, [8, 9])):
        found = part(batch, context(step=step)).mask
        assert (~found[0]).nonzero().flatten().tolist() == gone


def test_width_is_pruned_after_the_last_split_alone() -> None:
    batch = tree([3.0, 0.0, 1.0, 2.0], (0, 1), 6)
    batch = batch.replace(advantage=DepthStandardized()(batch, context()))
    first = PruneWidth(1, mode=1)(batch, context()).mask
    assert torch.equal(first[:, :2], batch.mask[:, :2])
    assert first[:, 2:].tolist() == [[True, True, False, False]] * 4
    second = PruneWidth(1, mode=2)(batch, context()).mask
    assert torch.equal(second[:, :2], batch.mask[:, :2])
    # Of 16 edges the 4 best are the first leaf's, the 4 worst the second's.
    assert second[:, 2:].sum(1).tolist() == [4, 4, 0, 0]
    assert PruneWidth(1, mode=0)(batch, context()) is batch
    with pytest.raises(UserError, match="mode=3"):
        PruneWidth(1, mode=3)


def test_pruning_changes_neither_samples_nor_advantages() -> None:
    plain, pruned = (
        credited(trainer(vantage.method("branchgrpo", prompts=2, **settings)))
        for settings in ({}, {"pruned_depths": (15, 16), "prune_width": 2})
    )
    assert torch.equal(plain.action, pruned.action)
    # The advantages are divided by a tree's trained edges.
    shares = [int(batch.mask.sum()) // 2 for batch in (plain, pruned)]
    assert shares[0] == 218
    torch.testing.assert_close(plain.advantage * shares[0], pruned.advantage * shares[1])
    assert int(pruned.mask.sum()) < int(plain.mask.sum())


def test_mixed_trees_learn_from_noisy_steps_alone() -> None:
    where = trainer(vantage.method("branchgrpo", prompts=2, mixed=True, window=2, interval=12))
    batch = credited(where)
    noisy = sorted({0, 1, 12, 13} | {0, 3, 6, 9})
    assert batch.mask.any(0).nonzero().flatten().tolist() == noisy


def test_an_update_judges_every_edge_once() -> None:
    where = trainer(vantage.method("branchgrpo", prompts=2, lr=1e-3, minibatches=1))
    judged, evaluate = [], where.context.policy.evaluate

    def watch(batch: Trajectories, want: frozenset[str]) -> object:
        judged.append(len(batch) * batch.steps)
        return evaluate(batch, want)

    where.context.policy.evaluate = watch
    where.step()
    assert judged == [2 * 218]


def test_the_default_is_a_step_every_96_edges_so_that_the_clip_acts() -> None:
    method = vantage.method("branchgrpo")
    edges = method.rollout.prompts * 218
    assert edges == 16 * 218
    assert edges / method.update.minibatches == pytest.approx(8 * 12, abs=2)
    for minibatches, clipped in ((1, False), (method.update.minibatches, True)):
        where = trainer(vantage.method("branchgrpo", prompts=2, lr=1e-2, minibatches=minibatches))
        metrics, _ = where.step()
        assert (metrics["clip_fraction/positive"] + metrics["clip_fraction/negative"] > 0) == clipped


def test_splits_out_of_range_are_refused_and_the_run_resumes(tmp_path: Path) -> None:
    for splits in ((3, 0), (0, 20), (1, 1)):
        with pytest.raises(UserError, match="ascending steps from 0 to 19"):
            vantage.method("branchgrpo", splits=splits)
    assert_resumes(tmp_path, vantage.method("branchgrpo", prompts=2, splits=[0, 2], steps=5, lr=1e-3, minibatches=4))


def test_the_defaults_compose_what_the_page_states() -> None:
    method = vantage.method("branchgrpo")
    sampler, depths = method.rollout.sampler, method.selection[1]
    assert (sampler.steps, sampler.noise, sampler.kind, sampler.shift) == (20, 0.3, "constant", 3.0)
    assert (sampler.stochastic, sampler.outcome) == (None, "prediction")
    assert (method.rollout.prompts, method.rollout.splits, method.rollout.noise_scale) == (16, (0, 3, 6, 9), 4.0)
    assert (method.advantage.limit, method.advantage.inner.weighted, method.objective.eps) == (5.0, False, 1e-3)
    assert (depths.depths, depths.interval, method.selection[2].mode) == ((), 30, 0)
