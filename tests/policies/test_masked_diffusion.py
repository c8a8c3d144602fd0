"""The masked diffusion policy: masks, text, and what it judges."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import vantage
from vantage.core import Trajectories, UserError
from vantage.functions.masks import draw_masks
from vantage.policies.masked_diffusion import END, MASK, PAD, MaskedDiffusionPolicy


def small(seed: int = 0, length: int = 3) -> MaskedDiffusionPolicy:
    return MaskedDiffusionPolicy("0123+=", 5, length, width=16, layers=1, heads=2, seed=seed)


def batch_of(policy: MaskedDiffusionPolicy, weight: torch.Tensor | None = None) -> Trajectories:
    tokens = policy.encode(["1+1=", "2+1="])
    action = policy.encode(["2", "3"], answers=True)
    columns = {
        "observation": {"tokens": tokens},
        "action": action,
        "mask": torch.ones_like(action, dtype=torch.bool),
    }
    return Trajectories(columns if weight is None else {**columns, "masked_weight": weight})


@pytest.mark.parametrize("kind", ["fixed", "bernoulli"])
def test_every_position_has_expected_weight_one(kind: str) -> None:
    weight = draw_masks(40_000, 4, kind, torch.Generator().manual_seed(0))
    if kind == "fixed":
        assert weight.mean(0).tolist() == pytest.approx([1.0] * 4, abs=0.04)
        masked = weight > 0
        torch.testing.assert_close(weight.sum(1), torch.full((40_000,), 4.0))
        assert masked.sum(1).bincount(minlength=5)[1:].tolist() == pytest.approx([10_000] * 4, rel=0.05)
    else:
        # The weight 1 / t has no variance: what converges is each position's chance given t.
        time = torch.where(weight > 0, 1 / weight.clamp(min=1e-9), torch.nan)
        assert float(torch.nanmean(time)) == pytest.approx(2 / 3, abs=0.01)
        assert float((weight > 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    with pytest.raises(UserError, match="'fixed' or 'bernoulli'"):
        draw_masks(1, 1, "all", torch.Generator())


def test_of_independent_tokens_the_bound_is_the_likelihood() -> None:
    """Over all masks of the fixed estimator, weighted by their probability, exactly the sum of the tokens' own."""
    own = torch.tensor([-0.3, -1.2, -2.0, -0.1], dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for size in range(1, 5):
        masks = list(itertools.combinations(range(4), size))
        for mask in masks:
            total += (4 / size) * own[list(mask)].sum() / (4 * len(masks))
    assert float(total) == pytest.approx(float(own.sum()))
    drawn = draw_masks(20_000, 4, "fixed", torch.Generator().manual_seed(1)).double()
    assert float((drawn * own).sum(1).mean()) == pytest.approx(float(own.sum()), abs=0.05)


def test_masked_positions_are_judged_and_seen_by_none() -> None:
    policy = small()
    weight = torch.tensor([[1.5, 0.0, 1.5], [0.0, 3.0, 0.0]])
    batch = batch_of(policy, weight)
    found = policy.evaluate(batch, frozenset({"logp"}))
    assert found.proxy
    given = torch.where(weight > 0, MASK, batch.action)
    logs = policy.logits(batch.observation["tokens"], given).log_softmax(-1)
    expected = logs.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1) * weight
    torch.testing.assert_close(found.logp, expected)
    # Another token at a masked place changes that place's probability alone.
    other = batch.action.clone()
    other[0, 0] = END
    again = policy.evaluate(batch.replace(action=other), frozenset({"logp"})).logp
    assert not torch.equal(again[0, 0], found.logp[0, 0])
    torch.testing.assert_close(again.flatten()[1:], found.logp.flatten()[1:])


def test_without_masks_it_is_one_pass_over_all_of_them() -> None:
    policy = small()
    batch = batch_of(policy)
    found = policy.evaluate(batch, frozenset({"logp", "entropy"}))
    logs = policy.logits(batch.observation["tokens"], torch.full((2, 3), MASK)).log_softmax(-1)
    torch.testing.assert_close(found.logp, logs.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1))
    probs = logs.exp()
    torch.testing.assert_close(found.entropy, -torch.special.entr(probs).neg().sum(-1))
    assert probs[..., [PAD, MASK]].abs().max() == 0


def test_padding_is_seen_by_nobody() -> None:
    policy = small()
    answer = torch.full((1, 3), MASK)
    short = policy.encode(["1+1="])
    assert short[0, 0] == PAD
    whole = policy.logits(short, answer)
    torch.testing.assert_close(policy.logits(short[:, 1:], answer), whole)


def test_texts_round_trip_and_what_does_not_fit_is_named() -> None:
    policy = small(length=4)
    action = policy.encode(["13", "", "210"], answers=True)
    assert action[0].tolist()[2:] == [END, END]
    assert policy.decode(action) == ["13", "", "210"]
    with pytest.raises(UserError, match="'x', which is not in the model's alphabet"):
        policy.encode(["1+x="])
    with pytest.raises(UserError, match="at most 3 fit: raise length"):
        policy.encode(["1111"], answers=True)
    with pytest.raises(UserError, match="at most 5 fit: raise prompt_length"):
        policy.encode(["11111="])
    with pytest.raises(UserError, match="heads must divide width"):
        MaskedDiffusionPolicy("01", 2, 2, width=10, heads=3)


def test_files_round_trip(tmp_path: Path) -> None:
    policy = small(seed=4)
    policy.save(tmp_path)
    again = MaskedDiffusionPolicy.load(tmp_path)
    assert again.config == policy.config
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    with pytest.raises(UserError, match="is missing"):
        MaskedDiffusionPolicy.load(tmp_path / "none")


def test_the_defaults_of_the_recipe_compose_what_its_docstring_says() -> None:
    method = vantage.method("masked-diffusion")
    update, masks = method.update, method.selection[0]
    assert (method.rollout.batch, masks.samples, masks.kind, method.averaging) == (64, 1, "fixed", "token-mean")
    assert (update.optimizer.lr, update.optimizer.weight_decay, update.max_grad_norm) == (2e-3, 0.0, 1.0)
    assert (update.schedule.final, update.schedule.warmup, update.micro_batch) == (0.1, 0.05, None)
