"""Prefix Grouper: the numbers of its card."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vantage
from tests.methods.toys import trainer
from tests.reference import Case, cases
from vantage.core import Schedule, Trainer, Trajectories, UserError
from vantage.methods.registry import page
from vantage.policies.attention import attend, plan
from vantage.policies.language import LanguagePolicy
from vantage.policies.packing import inputs, pack
from vantage.study.arenas import arena
from vantage.study.jobs import Job, Reporter
from vantage.study.runs.language import one_group, shared_prefix
from vantage.tasks.language.loading import task_from_spec

pytest.importorskip("transformers")


def run_of(sharing: bool, kind: str = "float32", **settings: Any) -> Trainer:
    task = task_from_spec("addition", options={"max_new_tokens": 4, "evaluated": 2})
    policy: Any = task.make_policy(seed=0)
    policy.to(getattr(torch, kind))
    made = vantage.method("prefix-grouper", prompts=2, group_size=4, beta=0.0, sharing=sharing, **settings)
    return Trainer(made, task, policy, task.make_engine(policy), Schedule(3), seed=0)


def gradient(run: Trainer, rows: Trajectories) -> torch.Tensor:
    for p in run.context.policy.parameters():
        p.grad = None
    run.context.method.update.differentiate(rows, run.context)
    return torch.cat([p.grad.flatten() for p in run.context.policy.parameters() if p.grad is not None])


def ragged(rows: Trajectories, length: list[int]) -> Trajectories:
    sizes = torch.tensor(length)
    return rows.replace(length=sizes, mask=torch.arange(rows.steps) < sizes.unsqueeze(1))


@pytest.mark.parametrize(("kind", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("length", [[5, 5, 5, 5], [1, 5, 3, 2], [4]])
def test_outputs_and_gradients_are_those_of_the_repeated_prompt(kind: str, tolerance: float, length: list[int]) -> None:
    ours, repeated = run_of(True, kind), run_of(False, kind)
    rows = ragged(one_group(23, max(length), len(length), 60, seed=1), length)
    old = repeated.context.evaluate(rows)
    torch.testing.assert_close(ours.context.evaluate(rows), old, rtol=0, atol=tolerance)
    rows = rows.replace(logp_old=old + 0.1)
    mine, theirs = gradient(ours, rows), gradient(repeated, rows)
    assert float((mine - theirs).abs().max() / theirs.abs().max()) < tolerance


def test_tokens_that_are_computed() -> None:
    rows = one_group(1000, 10, 8, 60, seed=0)
    # The last token of an answer predicts nothing: it is not computed in either form.
    laid = inputs(rows, rows.mask)
    assert len(pack(laid, True).tokens) == 1000 + 8 * 9
    assert len(pack(laid, False).tokens) == 8 * (1000 + 9)
    assert round(1080 / 8080, 3) == 0.134
    alone = inputs(rows.select(torch.tensor([0])), rows.mask[:1])
    assert torch.equal(pack(alone, True).tokens, pack(alone, False).tokens)


def test_answers_do_not_see_each_other() -> None:
    run = run_of(True, "float64")
    rows = one_group(12, 6, 4, 60, seed=3)
    before = run.context.evaluate(rows)
    action = rows.action.clone()
    action[2] = (action[2] + 1) % 50 + 3
    after = run.context.evaluate(rows.replace(action=action))
    others = torch.tensor([0, 1, 3])
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[2], after[2])


def test_a_minibatch_keeps_its_groups_and_training_goes_the_same_way() -> None:
    ours, repeated = (run_of(sharing, minibatches=2, lr=1e-3) for sharing in (True, False))
    for run in (ours, repeated):
        run.context.task.score = lambda rows, where: {"correct": (rows.action[:, 0] % 2).float()}  # type: ignore[assignment,method-assign]
        run.run()
    for mine, theirs in zip(ours.context.policy.parameters(), repeated.context.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert ours.context.policy.prefix_sharing is True  # type: ignore[attr-defined]
    assert repeated.context.policy.prefix_sharing is False  # type: ignore[attr-defined]


def test_a_reference_is_told_too() -> None:
    task = task_from_spec("addition")
    policy: Any = task.make_policy(seed=0)
    made = vantage.method("prefix-grouper", prompts=2, group_size=2, sharing=False)
    run = Trainer(made, task, policy, task.make_engine(policy), Schedule(1), seed=0)
    assert run.context.policies["reference"].prefix_sharing is False  # type: ignore[attr-defined]


def test_a_policy_without_prompts_is_refused() -> None:
    with pytest.raises(UserError, match="ToyPolicy has no prompts"):
        trainer(vantage.method("prefix-grouper"), 1)


def test_a_model_that_is_run_by_its_own_forward_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    task = task_from_spec("addition", options={"max_new_tokens": 4, "evaluated": 2})
    tokenizer = task.make_policy(seed=0).tokenizer
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32)

    def start(sharing: bool) -> Trainer:
        policy = LanguagePolicy(GPT2LMHeadModel(config), tokenizer)
        made = vantage.method("prefix-grouper", prompts=2, group_size=2, beta=0.0, sharing=sharing)
        return Trainer(made, task, policy, task.make_engine(policy), Schedule(1), seed=0)

    with pytest.raises(UserError, match=r"sharing=True: a GPT2LMHeadModel .* cannot share prompts; sharing=False"):
        start(True)
    start(False).run()


def test_the_arena_times_both_forms_and_compares_their_gradients() -> None:
    where = arena("shared-prefix")
    found = page("prefix-grouper")
    for settings in ({"group_size": 8, "beta": 0.0}, {"group_size": 8, "beta": 0.0, "sharing": False}):
        report = Reporter("one", 0, 2)
        small = Job("prefix-grouper", settings, 0, _short(where), function=where.function)
        ratio = shared_prefix(small, report)
        assert ratio > 0
        assert report.curve[-1].score == ratio
        run = report.run(ratio, ("score",))
        assert run.diagnostics["gradient_difference"][-1][1] < 1e-4
    assert found.id == "S133"


@cases("prefix-grouper")
def test_attention_and_its_gradients_are_the_authors(case: Case) -> None:
    """Their padded pair of calls for each group, here one list of tokens: the prompts, then what continues each."""
    groups = case.inputs["groups"]
    starts = torch.tensor([0, *(sum(group) for group in groups)]).cumsum(0).tolist()
    prompts = [range(start, start + group[0]) for start, group in zip(starts, groups, strict=False)]
    answers = [range(start + group[0], start + sum(group)) for start, group in zip(starts, groups, strict=False)]
    order = torch.tensor([place for part in (*prompts, *answers) for place in part])
    lengths = [*(group[0] for group in groups), *(size for group in groups for size in group[1:])]
    layout = plan(lengths, [len(part) for part in answers], torch.device("cpu"))
    query, key, value = (case.tensor(name).requires_grad_() for name in ("query", "key", "value"))
    found = attend(query[order], key[order], value[order], layout, query.shape[-1] ** -0.5)
    back = torch.argsort(order)
    case.check("output", found[back])
    gradients = torch.autograd.grad(found[back], (query, key, value), case.tensor("along"))
    for name, gradient in zip(("query", "key", "value"), gradients, strict=True):
        case.check(f"{name}_gradient", gradient)


def _short(where: Any) -> Any:
    import dataclasses

    return dataclasses.replace(where, budget=dataclasses.replace(where.budget, size=2))
