"""Filling in masked answers."""

from __future__ import annotations

import pytest
import torch

from tests.harness import context
from vantage.core import UserError
from vantage.core.protocols import Prompts
from vantage.policies.masked_diffusion import MASK, MaskedDiffusionPolicy
from vantage.rollouts.unmasking import Unmask, UnmaskingEngine, unmask


def small() -> MaskedDiffusionPolicy:
    return MaskedDiffusionPolicy("0123+=", 5, 4, width=16, layers=1, heads=2)


@pytest.mark.parametrize("per_step", [1, 3, 4])
def test_every_position_is_filled_and_the_surest_first(per_step: int) -> None:
    policy, given = small(), []
    logits = policy.logits

    def watch(prompt: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        given.append(answer.clone())
        return logits(prompt, answer)

    policy.logits = watch  # type: ignore[method-assign]
    prompt = policy.encode(["1+1=", "3+2="])
    found = unmask(policy, prompt, None, per_step)
    assert (found > 0).all()
    assert (found != MASK).all()
    assert len(given) == -(-4 // per_step)
    assert [int((answer == MASK).sum()) for answer in given] == [
        2 * max(4 - per_step * i, 0) for i in range(len(given))
    ]
    with torch.no_grad():
        best = logits(prompt, given[0]).log_softmax(-1).amax(-1)
    filled = (given[1] != MASK) if len(given) > 1 else torch.ones(2, 4, dtype=torch.bool)
    for row in range(2):
        assert best[row][filled[row]].min() >= best[row][~filled[row]].max() if not filled[row].all() else True


def test_draws_follow_the_models_distribution() -> None:
    policy = MaskedDiffusionPolicy("01", 3, 1, width=8, layers=1, heads=1)
    prompt = policy.encode(["0"]).expand(20_000, -1)
    found = unmask(policy, prompt, torch.Generator().manual_seed(0))[:, 0]
    expected = policy.logits(prompt[:1], torch.full((1, 1), MASK)).softmax(-1)[0, 0]
    share = found.bincount(minlength=len(expected)) / 20_000
    assert (share - expected).abs().max() < 0.015


def test_a_batch_of_answers() -> None:
    policy = small()
    where = context(policy=policy, device=torch.device("cpu"))

    def judge(batch: object) -> torch.Tensor:
        return policy.evaluate(batch, frozenset({"logp"})).logp.detach()  # type: ignore[arg-type]

    where.evaluate = judge
    engine = UnmaskingEngine(policy)
    prompts = Prompts(torch.tensor([4, 9]), ["1+1=", "3+2="])
    batch = engine.sample(prompts, 3, where)
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.prompt.tolist() == [4, 4, 4, 9, 9, 9]
    torch.testing.assert_close(batch.logp_old, judge(batch))
    assert "logp_old" not in engine.sample(prompts, 3, where, logp=False)
    greedy = engine.sample(prompts, 2, where, greedy=True)
    assert torch.equal(greedy.action[0], greedy.action[1])
    with pytest.raises(UserError, match="no streams"):
        engine.advance(1, 1, where)
    with pytest.raises(UserError, match="fills in masked answers"):
        Unmask(1, 1)(context(engine=object()))
