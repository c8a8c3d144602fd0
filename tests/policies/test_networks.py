"""Networks: initial weights, and the numpy perceptron against torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vantage.core.errors import UserError
from vantage.policies.networks import MLP, HostMLP, NatureCNN, activation


def mlp(*sizes: int, kind: str = "tanh", gain: float = 1.0) -> MLP:
    return MLP(sizes, kind, gain, torch.Generator().manual_seed(0))


def test_initial_weights_are_orthogonal_with_their_gains() -> None:
    network = mlp(5, 64, 64, 3, gain=0.01)
    for layer, gain in zip(network.linears, (math.sqrt(2), math.sqrt(2), 0.01), strict=True):
        weight = layer.weight.detach()
        square = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(square, gain**2 * torch.eye(len(square)), atol=1e-6, rtol=1e-5)
        assert (layer.bias == 0).all()


def test_weights_follow_from_the_generator() -> None:
    assert torch.equal(mlp(3, 8, 2).linears[0].weight, mlp(3, 8, 2).linears[0].weight)


@pytest.mark.parametrize("kind", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", [(4, 64, 64, 2), (11, 32, 3), (6, 2)])
def test_numpy_equals_torch(kind: str, sizes: tuple[int, ...]) -> None:
    network = mlp(*sizes, kind=kind)
    host = HostMLP(network, 8)
    for rows in (8, 3):
        x = torch.randn(rows, sizes[0], generator=torch.Generator().manual_seed(1))
        out = np.empty((rows, sizes[-1]), np.float32)
        host(x.numpy(), out)
        torch.testing.assert_close(torch.from_numpy(out), network(x).detach(), atol=1e-6, rtol=1e-5)


def test_numpy_views_follow_the_optimiser_and_notice_a_move() -> None:
    network = mlp(4, 16, 2)
    host = HostMLP(network, 4)
    x, before, after = torch.randn(4, 4), np.empty((4, 2), np.float32), np.empty((4, 2), np.float32)
    host(x.numpy(), before)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(x).square().sum().backward()
    optimizer.step()
    host(x.numpy(), after)
    assert np.abs(after - before).max() > 1e-3
    torch.testing.assert_close(torch.from_numpy(after), network(x).detach(), atol=1e-6, rtol=1e-5)
    network.load_state_dict(mlp(4, 16, 2).state_dict())
    host(x.numpy(), after)
    torch.testing.assert_close(torch.from_numpy(after), network(x).detach(), atol=1e-6, rtol=1e-5)
    assert not host.stale
    network.linears[0].weight.data = network.linears[0].weight.data.clone()
    assert host.stale


def test_what_numpy_takes_on() -> None:
    assert HostMLP.suits(mlp(4, 64, 64, 2))
    assert not HostMLP.suits(mlp(4, 64, 2, kind="gelu"))
    assert not HostMLP.suits(mlp(4, 1024, 2))
    assert not HostMLP.suits(mlp(4, 64, 2).double())
    assert not HostMLP.suits(torch.nn.Linear(4, 2))


def test_images_in_either_order() -> None:
    generator = torch.Generator().manual_seed(0)
    first = NatureCNN((4, 84, 84), 512, generator)
    assert not first.channels_last
    assert first.linear.in_features == 3136
    images = torch.randint(256, (2, 3, 4, 84, 84), dtype=torch.uint8)
    assert first(images).shape == (2, 3, 512)
    last = NatureCNN((96, 96, 3), 32, generator)
    assert last.channels_last
    assert last(torch.zeros(5, 96, 96, 3, dtype=torch.uint8)).shape == (5, 32)
    # Scaled to [0, 1]: a white image gives what ones give to the first layer.
    white = first.convolutions[0](torch.ones(1, 4, 84, 84))
    seen = []
    first.convolutions[0].register_forward_hook(lambda module, given, out: seen.append(out))
    first(torch.full((1, 4, 84, 84), 255, dtype=torch.uint8))
    torch.testing.assert_close(seen[0], white)


def test_bad_networks_are_refused() -> None:
    with pytest.raises(UserError, match="20 by 20 are too small"):
        NatureCNN((3, 20, 20), 8, torch.Generator())
    with pytest.raises(UserError, match="'tahn' is not known; did you mean tanh"):
        activation("tahn")
