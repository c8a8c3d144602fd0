"""The check at the door: what it lets through, what it says of the rest, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vantage.core.errors import ShapeError, UserError
from vantage.functions.checks import checked
from vantage.functions.ratios import log_ratio
from vantage.functions.returns import gae

A = torch.zeros(2, 3)
MASK = torch.ones(2, 3, dtype=torch.bool)


@checked(values="float ... A", other="float ... B", mask="bool A")
def leading(values: Tensor, other: Tensor | float | None = None, mask: Tensor | None = None) -> int:
    return values.dim()


def test_it_names_function_argument_shape_found_and_expected() -> None:
    with pytest.raises(ShapeError) as error:
        log_ratio(A, A, torch.ones(2, 4, dtype=torch.bool))
    assert str(error.value) == (
        "functions.ratios.log_ratio: argument 'mask' is [2, 4] of torch.bool; expected [N, T] of bool with N = 2, T = 3"
    )


def test_types_ranks_and_what_is_no_tensor_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"'mask' is \[2, 3\] of torch.float32; expected \[N, T\] of bool"):
        log_ratio(A, A, A)
    with pytest.raises(ShapeError, match=r"'logp_old' is \[3\] of torch.float32; expected \[N, T\]"):
        log_ratio(A, logp_old=A[0], mask=MASK)
    with pytest.raises(ShapeError, match="'reward' is a list"):
        gae([[0.0]], A, A, MASK, MASK, MASK, 1.0, 1.0)
    with pytest.raises(ShapeError, match=r"'logp' is \[2, 3\] of torch.int64; expected \[N, T\] of a floating type"):
        log_ratio(A.long(), A, MASK)
    assert issubclass(ShapeError, UserError)
    assert issubclass(ShapeError, TypeError)


def test_leading_dimensions_are_the_same_wherever_they_stand_and_numbers_pass() -> None:
    assert leading(torch.zeros(4, 5, 6), torch.zeros(4, 5, 2)) == 3
    assert leading(torch.zeros(6), 1.0) == 1
    assert leading(torch.zeros(6), None, torch.ones(6, dtype=torch.bool)) == 1
    with pytest.raises(ShapeError, match=r"'other' is \[4, 2\].*expected \[\.\.\., B\].*\.\.\. = \[4, 5\]"):
        leading(torch.zeros(4, 5, 6), torch.zeros(4, 2))


def test_gradient_and_result_are_those_of_the_bare_function() -> None:
    logp = torch.randn(2, 3, requires_grad=True)
    log_ratio(logp, A, MASK).sum().backward()
    assert torch.equal(logp.grad, torch.ones(2, 3))
