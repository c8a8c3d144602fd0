"""Values in units of their spread: equal ones are exactly 0, nearly equal ones stay near 0, padding does not matter."""

from __future__ import annotations

import pytest
import torch

from vantage.functions.whitening import masked_mean, masked_moments, standardize, whiten

RAGGED = torch.arange(8) < torch.tensor([[8], [1], [0], [5], [8], [2], [7], [3]])


@pytest.mark.parametrize("value", [0.1, 0.7, 0.9444, 1 / 3, 0.0, -12.7, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mask", [torch.ones(8, 8, dtype=torch.bool), RAGGED, torch.ones(8, 1, dtype=torch.bool)])
def test_equal_values_are_exactly_zero(value: float, dtype: torch.dtype, mask: torch.Tensor) -> None:
    found = whiten(torch.full(mask.shape, value, dtype=dtype), mask)
    assert found.dtype == dtype
    assert torch.equal(found, torch.zeros(mask.shape, dtype=dtype))


def test_values_that_differ_by_rounding_stay_near_zero() -> None:
    noise = 6e-8 * torch.randint(-1, 2, (64, 32), generator=torch.Generator().manual_seed(0))
    for level in (0.0, 0.7, -1.0):
        found = whiten(level + noise, torch.ones(64, 32, dtype=torch.bool))
        assert 0 < found.abs().max() < 0.01


def test_it_is_the_formula_of_verl_and_in_ordinary_ranges_that_of_the_others() -> None:
    values = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 5
    seen = values[RAGGED]
    found = whiten(values, RAGGED)
    torch.testing.assert_close(found[RAGGED], (seen - seen.mean()) * torch.rsqrt(seen.var() + 1e-8))
    torch.testing.assert_close(found[RAGGED], (seen - seen.mean()) / (seen.std() + 1e-8), rtol=1e-5, atol=1e-5)
    assert not found[~RAGGED].any()
    population = whiten(values, RAGGED, ddof=0)[RAGGED]
    assert float(population.mean()) == pytest.approx(0, abs=1e-12)
    assert float(population.std(correction=0)) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("count", [0, 1])
def test_none_or_one_value_gives_zeros(count: int) -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask[0, :count] = True
    assert torch.equal(whiten(torch.full((2, 3), 4.0), mask), torch.zeros(2, 3))
    assert float(masked_mean(torch.full((2, 3), 4.0), mask)) == 4.0 * count
    _, mean, variance = masked_moments(torch.full((2, 3), 4.0), mask)
    assert (float(mean), float(variance)) == (4.0 * count, 0.0)


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf")])
def test_padding_changes_neither_values_nor_gradients(steps: int, junk: float) -> None:
    mask = RAGGED[:, :steps]
    clean = torch.randn(8, steps, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for fill in (0.0, junk):
        values = torch.where(mask, clean, fill).requires_grad_()
        outputs = [whiten(values, mask), masked_mean(values, mask), *masked_moments(values, mask)]
        weight = torch.linspace(0, 1, 8 * steps, dtype=torch.float64).view(8, steps)
        sum((out * weight).sum() for out in outputs).backward()
        results.append([*outputs, values.grad])
    for one, other in zip(*results):
        assert torch.isfinite(other).all()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mask", [RAGGED[:4], RAGGED[:1]])
def test_gradient_of_whitening_is_that_of_the_formula(mask: torch.Tensor) -> None:
    values = torch.randn(
        mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda x: whiten(x, mask), values)
    assert torch.autograd.gradcheck(lambda x: masked_moments(x, mask), values)


def test_a_mask_that_holds_everywhere_is_a_mask_like_others() -> None:
    values = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    full, padded = torch.ones(4, 8, dtype=torch.bool), torch.arange(9).expand(4, 9) < 8
    wider = torch.cat([values, torch.full((4, 1), torch.nan)], -1)
    for one, other in zip(masked_moments(values, full), masked_moments(wider, padded)):
        torch.testing.assert_close(one, other[:, :8] if other.dim() else other, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(whiten(values, full), whiten(wider, padded)[:, :8], rtol=1e-14, atol=1e-14)


def test_standardize_divides_by_std_plus_eps_and_gives_zero_where_scores_do_not_differ() -> None:
    centred = torch.tensor([1.0, -1.0, 2e-8, float("nan"), 3.0])
    std = torch.tensor([2.0, 2.0, 0.0, 1.0, 1e-6])
    assert standardize(centred, std, 0.5).tolist() == pytest.approx([0.4, -0.4, 0, 0, 0])
    assert standardize(centred, std).tolist() == [0.5, -0.5, 0, 0, 0]
