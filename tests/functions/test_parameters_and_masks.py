"""Vectors of parameters; random masks."""

from __future__ import annotations

import pytest
import torch

from vantage.core.errors import UserError
from vantage.functions.masks import draw_masks
from vantage.functions.parameters import inner, polyak, project_out, twins


def test_inner_products_and_projections_are_those_of_the_joined_vector() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = ([torch.randn(shape, generator=generator) for shape in ((3, 2), (4,))] for _ in range(2))
    flat, along = (torch.cat([part.flatten() for part in parts]) for parts in (one, other))
    torch.testing.assert_close(inner(one, other), flat @ along)
    rest, c = project_out(one, other)
    torch.testing.assert_close(c, flat @ along / (along @ along))
    assert float(inner(rest, other)) == pytest.approx(0, abs=1e-5)
    kept, none = project_out(one, [torch.zeros(3, 2), torch.zeros(4)])
    assert float(none) == 0
    assert all(torch.equal(a, b) for a, b in zip(kept, one))


def test_polyak_moves_by_the_rate_and_twins_pair_by_name() -> None:
    policy, frozen = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1).requires_grad_(False)
    pairs = twins(policy, frozen)
    expected = [0.75 * copy + 0.25 * live.detach() for live, copy in pairs]
    polyak([copy for _, copy in pairs], [live for live, _ in pairs], 0.25)
    for (_, copy), wanted in zip(pairs, expected):
        torch.testing.assert_close(copy, wanted)
    with pytest.raises(UserError, match="shares its weights"):
        twins(policy, torch.nn.Identity())


@pytest.mark.parametrize("kind", ["fixed", "bernoulli"])
def test_weights_of_masks_have_expectation_one(kind: str) -> None:
    weight = draw_masks(200_000, 4, kind, torch.Generator().manual_seed(0))
    assert weight.mean(0).tolist() == pytest.approx([1.0] * 4, abs=0.02 if kind == "fixed" else 0.05)
    if kind == "fixed":
        # l masked positions of weight 4 / l each
        assert weight.sum(1).tolist() == pytest.approx([4.0] * len(weight))
