"""VinePPO: the numbers of its card."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import STEPS, SYMBOLS
from tests.harness import context, loss_of, random_batch, step_gradient
from tests.methods.toys import assert_resumes, gain, trainer
from tests.reference import Case, cases
from vantage.core import Trajectories, UserError
from vantage.functions.whitening import whiten
from vantage.methods import registry
from vantage.methods.credit.vineppo import VineValues, step_difference
from vantage.rollouts.segments import Steps
from vantage.rollouts.sentences import sentence_starts

STEPWISE = Steps(ids=(1, 2, 3, 4))


def method(**settings: Any) -> vantage.Method:
    made = vantage.method(
        "vineppo", **{"prompts": 6, "group_size": 4, "unfinished": None, "temperature": 1.0, "beta": 0.0, **settings}
    )
    return made.adapt("values", steps=Steps("tokens"))


def valued(made: vantage.Method, **policy: Any) -> tuple[Any, Trajectories]:
    """A batch of the toy as it is when credit is due."""
    run = trainer(made, 1, **policy)
    where = run.context
    batch = where.verify(where.method.rollout(where))
    for part in where.method.rewards:
        batch = part(batch, where)
    return where, where.method.values(batch, where)


def columns(values: list[float], score: float) -> Trajectories:
    """One row whose steps are single decisions, with these values of their starts."""
    count = len(values)
    return Trajectories(
        {
            "mask": torch.ones(1, count, dtype=torch.bool),
            "length": torch.tensor([count]),
            "segment": torch.arange(count).unsqueeze(0),
            "value": torch.tensor([values]),
            "next_value": torch.tensor([[*values[1:], 0.0]]),
            "score": torch.tensor([score]),
        }
    )


def test_worked_row_telescopes() -> None:
    found = step_difference(columns([0.5, 1.0, 0.25], 1.0), context())
    assert found[0].tolist() == pytest.approx([0.5, -0.75, 0.75])
    assert float(found.sum()) == pytest.approx(0.5)
    # A whole answer as one step: its score less the mean of independent ones.
    assert step_difference(columns([0.3], 1.0), context())[0].tolist() == pytest.approx([0.7])


def test_every_row_telescopes_whatever_the_estimates() -> None:
    where, batch = valued(method(count=3))
    credit = step_difference(batch, where)
    torch.testing.assert_close((credit * batch.mask).sum(1), batch.score - batch.value[:, 0])


def test_decisions_of_a_step_share_its_credit() -> None:
    made = method(count=2).adapt("values", steps=STEPWISE)
    where, batch = valued(made, seed=3)
    credit = step_difference(batch, where)
    for row in range(len(batch)):
        size = int(batch.length[row])
        for step in range(int(batch.segment[row, :size].max()) + 1):
            inside = batch.segment[row, :size] == step
            assert len(torch.unique(credit[row, :size][inside])) == 1


def test_prefixes_are_continued_once() -> None:
    where, batch = valued(method(count=3))
    states = {
        (int(batch.prompt[row]), tuple(batch.action[row, :place].tolist()))
        for row in range(len(batch))
        for place in range(int(batch.length[row]))
    }
    metrics = where.metrics.collect()
    assert metrics["vine/states"] == len(states)
    assert metrics["reward/right"] == pytest.approx(float(batch.rewards["right"].mean()))
    assert "vine/reward/right" in metrics
    # The prompt's own state is shared by the group.
    assert len(torch.unique(batch.value[:4, 0])) == 1
    total = int(batch.length.sum())
    assert metrics["vine/shared"] == pytest.approx(1 - len(states) / total)


def test_states_beyond_the_last_that_is_estimated_have_the_score() -> None:
    where, batch = valued(method(count=2, most=1))
    credit = step_difference(batch, where)
    long = batch.length > 2
    assert long.any()
    torch.testing.assert_close(batch.value[long][:, 2], batch.score[long])
    torch.testing.assert_close(credit[long][:, 1], (batch.score - batch.value[:, 1])[long])
    assert credit[long][:, 2:].abs().max() == 0


def test_a_policy_without_chance_gets_no_credit() -> None:
    made = method(count=4)
    run = trainer(made, 1)
    with torch.no_grad():
        run.context.policy.head.mul_(500)
    where = run.context
    batch = where.verify(where.method.rollout(where))
    batch = where.method.values(where.method.rewards[0](batch, where), where)
    assert step_difference(batch, where).abs().max() < 1e-6


def test_estimates_are_those_of_the_policy() -> None:
    """With many continuations, the value of the prompt is the exact expected score."""
    where, batch = valued(method(count=3000, prompts=2, group_size=2, most=0))
    probs = where.policy.logits(batch.prompt, STEPS)[0].softmax(-1).detach()
    right = probs[torch.arange(len(batch)), :, batch.prompt % SYMBOLS]
    # The row goes on with the probability of what is not symbol 0; symbol 0 itself counts where it is right.
    alive = torch.cat([torch.ones(len(batch), 1), (1 - probs[:, :-1, 0]).cumprod(1)], 1)
    expected = (alive * right).sum(1) / STEPS
    torch.testing.assert_close(batch.value[:, 0], expected, rtol=0, atol=0.03)


def test_continuations_that_do_not_end_count_the_penalty() -> None:
    where, batch = valued(method(count=5, unfinished=-3.0, most=0))
    assert (batch.value[:, 0] < 0.5).all()
    assert float(batch.value[:, 0].min()) < -0.5
    unsure = VineValues(2, 0, 0.0, Steps("tokens"))(batch, where)
    assert (unsure.value[:, 0] >= 0).all()


def test_an_answer_that_does_not_end_counts_as_its_continuations_do() -> None:
    where, batch = valued(method(count=2, unfinished=0.0))
    over = batch.terminated.any(-1)
    assert over.any()
    assert not over.all()
    right = batch.replace(score=torch.ones(len(batch)))
    found = where.method.values(right, where)
    assert torch.equal(found.score, over.float())
    # Its last step is paid nothing: what it earns is the score less the value of where the step begins.
    credit = step_difference(found, where)
    last = (batch.length - 1).unsqueeze(-1)
    torch.testing.assert_close(credit.gather(1, last), found.score.unsqueeze(-1) - found.value.gather(1, last))


def test_whitening_is_over_each_minibatch() -> None:
    made = method(count=3, minibatches=2, epochs=1, lr=1e-9)
    where, batch = valued(made)
    batch = batch.replace(advantage=step_difference(batch, where))
    seen: list[Trajectories] = []
    clip = where.method.objective

    def watched(evaluation: Any, part: Trajectories, context: Any) -> torch.Tensor:
        seen.append(part)
        return clip(evaluation, part, context)

    where.method = where.method.replace(objective=watched)
    where.method.update(batch, where)
    assert len(seen) == 2
    for part in seen:
        found = part.advantage[part.mask]
        assert float(found.mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(found.std()) == pytest.approx(1.0, abs=1e-4)


def test_a_minibatch_with_a_large_mean_ratio_gives_no_gradient() -> None:
    for limit, moved in ((10.0, False), (11.0, True), (None, True)):
        where, batch = valued(method(count=2, ratio_limit=limit, minibatches=1, epochs=1, lr=1e-2))
        batch = batch.replace(advantage=step_difference(batch, where), logp_old=batch.logp_old - math.log(10.5))
        before = [parameter.clone() for parameter in where.policy.parameters()]
        where.method.update(batch, where)
        metrics = where.metrics.collect()
        assert metrics["ratio"] == pytest.approx(10.5, rel=1e-4)
        assert metrics["update/skipped"] == float(not moved)
        after = list(where.policy.parameters())
        assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True)) is moved


def test_divergence_is_summed_over_rows_and_bounded() -> None:
    made = vantage.method("vineppo", beta=0.5).replace(objective=lambda e, b, c: 0.0 * e.logp)
    batch = random_batch(4, 5).replace(segment=torch.zeros(4, 5, dtype=torch.int64))
    u = torch.where(batch.mask, batch.logp_ref - batch.logp_old, 0.0)
    loss = loss_of(made, batch, logp=batch.logp_old)
    assert float(loss) == pytest.approx(0.5 * float((u.exp() - 1 - u).sum(1).mean()), rel=1e-6)
    far = batch.replace(logp_ref=batch.logp_old + 30)
    assert float(loss_of(made, far, logp=batch.logp_old)) == pytest.approx(
        0.5 * 10.0 * float(batch.length.double().mean())
    )


def test_engines_and_settings_that_cannot_are_refused() -> None:
    with pytest.raises(UserError, match=r"VineValues\.count=0"):
        vantage.method("vineppo", count=0)

    class Simple:
        max_length = STEPS

        def __init__(self, engine: Any) -> None:
            self.sample = engine.sample

    run = trainer(method(), 1)
    run.context.engine = Simple(run.context.engine)  # type: ignore[assignment]
    with pytest.raises(
        UserError, match="VineValues needs an engine that can resume from a prefix of a row; Simple cannot"
    ):
        run.step()


def test_it_learns_and_resumes(tmp_path) -> None:
    made = method(count=4, lr=3e-2, minibatches=2)
    assert gain(made, 40) > 0.3
    assert_resumes(tmp_path, made)


@cases("vineppo", "lines")
def test_lines_are_those_of_the_authors(case: Case) -> None:
    steps = registry.page("vineppo").make().values.steps
    assert [steps.line_starts(text) for text in case.inputs["texts"]] == case.outputs["starts"]


@cases("vineppo", "sentences")
def test_sentences_are_those_of_the_authors(case: Case) -> None:
    assert registry.page("vineppo").make({"steps": "sentences"}).values.steps.by == "sentences"
    assert [sentence_starts(text) for text in case.inputs["texts"]] == case.outputs["starts"]


@cases("vineppo", "steps")
def test_credit_of_steps_is_the_authors(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    values = case.inputs["values"]
    length = torch.tensor([len(row) - 1 for row in values])
    inside = torch.arange(int(length.max())) < length.unsqueeze(1)
    batch = Trajectories(
        {
            "mask": inside,
            "length": length,
            "action": torch.zeros_like(inside, dtype=torch.int64),
            "prompt": torch.arange(len(values)),
            "score": case.tensor("scores"),
            "terminated": torch.arange(inside.shape[1]) == length.unsqueeze(1) - 1,
        }
    )
    made = registry.page("vineppo").make({"most": case.settings["max_step_for_value_estimation"], "steps": "tokens"})

    def scores(self: VineValues, batch: Trajectories, rows: torch.Tensor, places: torch.Tensor, _: Any) -> torch.Tensor:
        return torch.tensor([values[row][place] for row, place in zip(rows.tolist(), places.tolist(), strict=True)])

    monkeypatch.setattr(VineValues, "_scores", scores)
    found = made.advantage(made.values(batch, context()), context())
    for row, expected in enumerate(case.outputs["advantages"]):
        assert found[row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-5)


@cases("vineppo", "minibatch")
def test_a_minibatch_is_the_authors(case: Case) -> None:
    """Whitened advantage, loss and gradient; the inputs are what one of their devices has of a minibatch."""
    made = registry.page("vineppo").make({"max_grad_norm": None})
    mask, advantage = case.tensor("mask"), case.tensor("advantages")
    case.check("whitened", whiten(advantage, mask))
    given = {name: case.tensor(name) for name in ("logp_old", "logp_ref")}
    batch = Trajectories({"mask": mask, "length": mask.sum(1), "advantage": advantage, **given})
    case.check("gradient", step_gradient(made, batch, case.tensor("logp")))
    if case.outputs["loss"]:
        case.check("loss", loss_of(made, batch.replace(advantage=whiten(advantage, mask)), logp=case.tensor("logp")))
