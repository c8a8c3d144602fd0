"""The perceptron in one operation against torch's own operations: values, gradients, second derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vantage.policies.networks import MLP, both
from vantage.policies.perceptron import _plain, perceptrons, suits


def network(*sizes: int, kind: str = "tanh") -> tuple[MLP, list[Tensor]]:
    mlp = MLP(sizes, kind, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return mlp, mlp.pairs


def perceptron(x: Tensor, parameters: list[Tensor], kind: str) -> Tensor:
    return perceptrons(x, [parameters], kind)[0]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", [(4, 64, 64, 2), (7, 16, 1), (5, 3), (3, 8, 8, 8, 2)])
@pytest.mark.parametrize("lead", [(9,), (5, 1), (3, 4), (1,)])
def test_equals_torch(kind: str, sizes: tuple[int, ...], lead: tuple[int, ...]) -> None:
    _, parameters = network(*sizes, kind=kind)
    x, weight = draw(*lead, sizes[0]).requires_grad_(), draw(*lead, sizes[-1])
    ours, peer = perceptron(x, parameters, kind), _plain(x, kind, parameters)
    torch.testing.assert_close(ours, peer, atol=1e-5, rtol=1e-5)
    inputs = [x, *parameters]
    for got, expected in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((peer * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_gradients_that_are_views_or_shared() -> None:
    _, parameters = network(3, 8, 1)
    x = draw(6, 3)
    # The gradient of a sum is one number seen six times, that of a flipped column a view with a step.
    for reduce in (
        lambda y: y.sum(),
        lambda y: (y.squeeze(-1).flip(0) * draw(6)).sum(),
        lambda y: y[::2].square().mean(),
    ):
        got = torch.autograd.grad(reduce(perceptron(x, parameters, "tanh")), parameters)
        expected = torch.autograd.grad(reduce(_plain(x, "tanh", parameters)), parameters)
        for one, another in zip(got, expected, strict=True):
            torch.testing.assert_close(one, another, atol=1e-5, rtol=1e-5)


def test_frozen_parts_get_no_gradient() -> None:
    _, parameters = network(3, 8, 8, 2)
    parameters[0].requires_grad_(False)
    parameters[5].requires_grad_(False)
    perceptron(draw(4, 3), parameters, "tanh").sum().backward()
    assert [p.grad is None for p in parameters] == [True, False, False, False, False, True]
    expected = torch.autograd.grad(_plain(draw(4, 3), "tanh", parameters).sum(), parameters[1])[0]
    torch.testing.assert_close(parameters[1].grad, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_second_derivatives(kind: str) -> None:
    _, parameters = network(3, 8, 2, kind=kind)
    x = draw(5, 3).requires_grad_()
    vectors = [torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) for p in (x, *parameters)]

    def hessian_vector(function: object) -> tuple[Tensor, ...]:
        inputs = [x, *parameters]
        loss = function(x).exp().sum()  # type: ignore[operator]
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        return torch.autograd.grad(sum((g * v).sum() for g, v in zip(first, vectors, strict=True)), inputs)

    got = hessian_vector(lambda z: perceptron(z, parameters, kind))
    expected = hessian_vector(lambda z: _plain(z, kind, parameters))
    for one, another in zip(got, expected, strict=True):
        torch.testing.assert_close(one, another, atol=1e-4, rtol=1e-4)


def test_a_parameter_changed_in_between_is_noticed() -> None:
    _, parameters = network(3, 8, 2)
    loss = perceptron(draw(4, 3), parameters, "tanh").sum()
    with torch.no_grad():
        parameters[2] += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inputs_and_parameters_stay_as_they_are() -> None:
    _, parameters = network(3, 8, 8, 2)
    x = draw(4, 3)
    before = [tensor.clone() for tensor in (x, *parameters)]
    out = perceptron(x, parameters, "tanh")
    out.sum().backward(retain_graph=True)
    first = [p.grad.clone() for p in parameters if p.grad is not None]
    for parameter in parameters:
        parameter.grad = None
    out.sum().backward()
    assert all(torch.equal(one, p.grad) for one, p in zip(first, parameters, strict=True) if p.grad is not None)
    assert all(torch.equal(one, another) for one, another in zip(before, (x, *parameters), strict=True))


def test_what_is_left_to_torch() -> None:
    _, parameters = network(3, 8, 2)
    x = draw(4, 3)
    assert suits(x, parameters, "tanh")
    assert not suits(x.double(), parameters, "tanh")
    assert not suits(x, [p.double() for p in parameters], "tanh")
    assert not suits(x, parameters, "gelu")
    assert not suits(x.to("meta"), parameters, "tanh")


def test_transforms_of_functions_pass() -> None:
    mlp, _ = network(3, 8, 2)
    x = draw(4, 3)
    held = dict(mlp.named_parameters())

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(mlp, weights, (row,)).square().sum()

    per_row = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(held, x)
    mlp(x).square().sum().backward()
    for name, parameter in mlp.named_parameters():
        torch.testing.assert_close(per_row[name].sum(0), parameter.grad, atol=1e-5, rtol=1e-5)


def test_no_gradient_asked_for() -> None:
    _, parameters = network(3, 8, 2)
    with torch.no_grad():
        out = perceptron(draw(4, 3), parameters, "tanh")
    assert not out.requires_grad
    np.testing.assert_allclose(out.numpy(), _plain(draw(4, 3), "tanh", parameters).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)])
def test_two_networks_in_one_node(used: tuple[bool, bool]) -> None:
    (one, _), (other, _) = network(3, 8, 2), network(3, 6, 6, 1)
    x = draw(5, 1, 3).requires_grad_()
    inputs = [x, *one.pairs, *other.pairs]

    def gradients(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
        loss = sum(out.square().sum() for out, wanted in zip(outputs, used, strict=True) if wanted)
        return torch.autograd.grad(loss, inputs, allow_unused=True)  # type: ignore[arg-type]

    got = gradients(both(x, one, other))
    expected = gradients((_plain(x, "tanh", one.pairs), _plain(x, "tanh", other.pairs)))
    for one_, another in zip(got, expected, strict=True):
        assert (one_ is None) == (another is None)
        if one_ is not None:
            torch.testing.assert_close(one_, another, atol=1e-5, rtol=1e-5)


def test_networks_apart_where_one_does_not_suit() -> None:
    (one, _), (other, _) = network(3, 8, 2, kind="gelu"), network(3, 6, 1, kind="gelu")
    x = draw(5, 3)
    first, second = both(x, one, other)
    assert torch.equal(first, one(x))
    assert torch.equal(second, other(x))
