"""RePO: the numbers of its card."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import vantage
from tests.harness import context, loss_of, random_batch
from tests.methods.toys import assert_resumes, gain, trainer
from tests.reference import Case, cases
from vantage.core import Trajectories, UserError
from vantage.core.checkpoint import load_tensors
from vantage.methods.sampling.repo_replay import choose


def rows(fresh: list[float], old: list[float], mixed: bool) -> Trajectories:
    """One prompt's fresh and replayed rows as the rollout gives them."""
    count = len(fresh) + len(old)
    group = torch.tensor([0] * len(fresh) + [0 if mixed else 1] * len(old))
    return random_batch(count, 3, size=1).replace(
        score=torch.tensor(fresh + old), group=group, source=(torch.arange(count) >= len(fresh)).long()
    )


def advantages(fresh: list[float], old: list[float], mixed: bool) -> list[float]:
    method = vantage.method("repo-replay")
    return method.advantage(rows(fresh, old, mixed), context())[:, 0].tolist()


@cases("repo-replay", "choice")
def test_the_choice_of_answers_is_the_authors(case: Case) -> None:
    queues = case.inputs["queues"]
    held = torch.tensor([len(queue) for queue in queues])
    score = torch.nn.utils.rnn.pad_sequence([torch.tensor(queue).float() for queue in queues], batch_first=True)
    there = torch.arange(score.shape[1]) < held.unsqueeze(1)
    plan = vantage.method("repo-replay", **case.settings).rollout
    found = choose(score, there, plan.take, plan.strategy, torch.Generator())
    assert [row.nonzero()[:, 0].tolist() for row in found] == case.outputs["chosen"]


@cases("repo-replay", "advantage")
def test_the_advantages_are_the_authors(case: Case) -> None:
    source, prompt = case.tensor("source").long(), case.tensor("prompt").long()
    group = prompt if case.settings["mixed"] else 2 * prompt + source
    batch = random_batch(len(prompt), 1, size=1).replace(score=case.tensor("score"), group=group, source=source)
    case.check("advantage", vantage.method("repo-replay", **case.settings).advantage(batch, context())[:, 0])


@cases("repo-replay", "loss")
def test_the_loss_is_the_authors(case: Case) -> None:
    method = vantage.method("repo-replay", **case.settings)
    source = case.tensor("source").long()
    columns = {name: case.tensor(name) for name in ("mask", "logp_old", "logp_ref")}
    batch = random_batch(*case.tensor("mask").shape).replace(
        **columns,
        advantage=case.tensor("advantage").unsqueeze(1) * columns["mask"],
        source=source,
        weight=torch.where(source == 1, method.rollout.weight, 1.0),
    )
    logp = case.tensor("logp").requires_grad_()
    loss = loss_of(method, batch, logp=logp)
    loss.backward()
    case.check("loss", loss)
    case.check("grad", logp.grad)


def test_split_and_mixed_standardisation() -> None:
    assert advantages([0, 0], [1, 0], False) == pytest.approx([0, 0, 0.707007, -0.707007], abs=1e-6)
    assert advantages([0, 0, 0, 0], [1, 0], True) == pytest.approx([-0.408148] * 4 + [2.040742, -0.408148], abs=2e-6)
    # One replayed answer alone, and replayed answers that were all right.
    assert advantages([1, 0], [1], False)[2] == 0
    assert advantages([1, 0], [1, 1], False)[2:] == [0, 0]


@pytest.mark.parametrize("strategy", ["highest", "recent", "variance"])
def test_strategies_against_enumeration(strategy: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        held = int(torch.randint(1, 8, (), generator=generator))
        take = int(torch.randint(1, 5, (), generator=generator))
        score = torch.randint(4, (7,), generator=generator) / 3
        there = torch.arange(7) < held
        found = choose(score[None], there[None], take, strategy, generator)[0]
        count = min(held, take)
        subsets = list(itertools.combinations(range(held), count))
        values = [score[list(s)].double() for s in subsets]
        if strategy == "recent":
            expected = score[held - count : held].double()
        elif strategy == "highest":
            expected = max(values, key=lambda v: float(v.sum()))
        else:
            expected = max(values, key=lambda v: (round(float(v.var(correction=0)), 9), float(v.sum())))
        assert not found[held:].any()
        assert int(found.sum()) == count
        torch.testing.assert_close(score[found].double().sort().values, expected.sort().values)


def test_ties_go_to_the_older_and_variance_takes_half_of_each_kind() -> None:
    score = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]])
    there = torch.ones(1, 8, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    assert choose(score, there, 2, "highest", generator)[0].nonzero()[:, 0].tolist() == [1, 2]
    found = choose(score, there, 4, "variance", generator)
    assert float(score[found].var(correction=0)) == 0.25
    assert choose(score, there, 3, "all", generator).all()
    drawn = torch.stack([choose(score, there, 3, "random", generator)[0] for _ in range(300)])
    assert (drawn.sum(1) == 3).all()
    assert (drawn.float().mean(0) - 3 / 8).abs().max() < 0.12


def watched(method: vantage.Method, steps: int) -> list[Trajectories]:
    seen: list[Trajectories] = []
    trained = trainer(method, steps)
    trained.context.method = trained.context.method.replace(selection=(lambda b, c: seen.append(b) or b,))
    trained.run()
    return seen


def test_replay_fires_on_the_third_visit_with_what_was_kept() -> None:
    # All six prompts come each step.
    seen = watched(vantage.method("repo-replay", prompts=6, group_size=8, lr=1e-2, strategy="all"), 3)
    assert [int((batch.source == 1).sum()) for batch in seen] == [0, 0, 96]
    old = seen[2].select(seen[2].source == 1)
    before = [batch.select(batch.source == 0) for batch in seen[:2]]
    for prompt in range(6):
        mine = old.select(old.prompt == prompt)
        kept = torch.cat([batch.logp_old[batch.prompt == prompt] for batch in before])
        # Oldest first, with the log-probabilities of the policy that wrote them.
        torch.testing.assert_close(mine.logp_old, kept)
        assert len(torch.unique(mine.group)) == 1
        assert not torch.isin(mine.group, seen[2].group[seen[2].source == 0]).any()


def test_the_score_that_is_recorded_is_that_of_the_fresh_answers() -> None:
    seen: list[Trajectories] = []
    # The highest of the kept answers are taken back, so that a mean over all rows is another.
    trained = trainer(vantage.method("repo-replay", prompts=6, group_size=8, capacity=16, least=8, take=2), 3)
    trained.context.method = trained.context.method.replace(selection=(lambda b, c: seen.append(b) or b,))
    history = trained.run().history[1:]
    assert int((seen[-1].source == 1).sum()) == 12
    for line, batch in zip(history, seen, strict=True):
        fresh, whole = batch.score[batch.source == 0].mean(), batch.score.mean()
        assert line["score"] == pytest.approx(float(fresh))
        assert line["reward/right"] == pytest.approx(float(fresh))
        assert line["batch/score"] == pytest.approx(float(whole))
    assert history[-1]["batch/score"] > history[-1]["score"] + 0.01


def test_mixed_mode_shares_the_groups() -> None:
    settings: dict[str, Any] = {"prompts": 6, "group_size": 8, "capacity": 8, "least": 8, "take": 3}
    seen = watched(vantage.method("repo-replay", mixed=True, **settings), 2)
    for group in torch.unique(seen[1].group):
        part = seen[1].select(seen[1].group == group)
        assert (len(part), int(part.source.sum()), len(torch.unique(part.prompt))) == (11, 3, 1)


def test_before_any_replay_the_run_is_grpos(tmp_path) -> None:
    constant: dict[str, Any] = {"lr_schedule": "constant", "lr_warmup": 0.0}
    for name, method in (
        ("repo", vantage.method("repo-replay", prompts=6, group_size=4, lr=1e-2, **constant)),
        ("grpo", vantage.method("grpo", prompts=6, group_size=4, lr=1e-2, beta=0.0)),
    ):
        (tmp_path / name).mkdir()
        trainer(method, 4, tmp_path / name).run()
    left, right = (
        load_tensors(tmp_path / name / "checkpoints/step-00000004/policy.safetensors") for name in ("repo", "grpo")
    )
    assert all(torch.equal(left[key], right[key]) for key in right)


def test_denominator_is_shared_and_the_weight_is_of_replayed_rows() -> None:
    batch = rows([1, 0, 1, 0], [1, 0, 0, 1], False)
    advantage = torch.randn(8, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = batch.replace(advantage=advantage * batch.mask)
    method = vantage.method("repo-replay")

    def gradient(part: Trajectories, weight: float) -> torch.Tensor:
        logp = part.logp_old.clone().requires_grad_()
        weights = torch.where(part.source == 1, weight, 1.0)
        loss_of(method, part.replace(weight=weights), logp=logp).backward()
        assert logp.grad is not None
        return logp.grad

    none = gradient(batch, 0.0)
    alone = gradient(batch.select(batch.source == 0), 0.0)
    torch.testing.assert_close(none[:4], alone / 2)
    assert none[4:].abs().max() == 0
    torch.testing.assert_close(gradient(batch, 0.5)[4:], 0.5 * gradient(batch, 1.0)[4:])


def test_divergence_is_of_fresh_tokens_alone() -> None:
    batch = rows([1, 0], [1, 0], False)
    method = vantage.method("repo-replay", beta=0.7).replace(objective=lambda e, b, c: 0.0 * e.logp)
    logp = batch.logp_old.clone().requires_grad_()
    loss = loss_of(method, batch, logp=logp)
    u = (batch.logp_ref - batch.logp_old)[:2][batch.mask[:2]]
    assert float(loss.detach()) == pytest.approx(0.7 * float((u.exp() - 1 - u).mean()), rel=1e-6)
    loss.backward()
    assert logp.grad[2:].abs().max() == 0


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"strategy='best' is not known; did you mean highest\? \(known: highest"):
        vantage.method("repo-replay", strategy="best")
    with pytest.raises(UserError, match="take=0"):
        vantage.method("repo-replay", take=0)
    with pytest.raises(UserError, match=r"least=16 is more than capacity=8.*nothing would be replayed"):
        vantage.method("repo-replay", capacity=8)


def test_it_learns_and_resumes_with_its_queues(tmp_path) -> None:
    rate: dict[str, Any] = {"lr": 3e-2, "lr_schedule": "constant", "lr_warmup": 0.0}
    method = vantage.method("repo-replay", prompts=3, group_size=8, strategy="variance", **rate)
    assert gain(method, 40) > 0.3
    small = vantage.method(
        "repo-replay", prompts=3, group_size=4, capacity=6, least=4, take=3, lr=3e-2, strategy="random", beta=0.01
    )
    assert_resumes(tmp_path, small)


def test_the_defaults_compose_what_the_page_states() -> None:
    method = vantage.method("repo-replay")
    replay = method.rollout
    assert (replay.capacity, replay.least, replay.take, replay.strategy) == (16, 16, 8, "highest")
    assert (replay.mixed, replay.weight, replay.plan.prompts, replay.plan.size) == (False, 1.0, 4, 8)
    assert [type(reward).__name__ for reward in method.rewards] == ["FreshRecorded"]
    assert method.regularizers == ()
    assert [term.coefficient for term in vantage.method("repo-replay", beta=0.1).regularizers] == [0.1]
