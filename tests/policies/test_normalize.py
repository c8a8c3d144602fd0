"""Running moments against Gymnasium's and against the moments of all values at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vantage.policies.normalize import Moments, RunningMoments


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, shape)


def fresh(*shape: int) -> Moments:
    return Moments(np.zeros(shape), np.ones(shape), np.array(1e-4))


@pytest.mark.parametrize("rows", [1, 4, 37])
def test_equals_gymnasiums(rows: int) -> None:
    peers = pytest.importorskip("gymnasium.wrappers.utils")
    ours, peer = fresh(3), peers.RunningMeanStd(shape=(3,))
    for step in range(50):
        values = draw(step, rows, 3)
        ours.update(values)
        peer.update(values)
    np.testing.assert_allclose(ours.mean, peer.mean, rtol=1e-12)
    np.testing.assert_allclose(ours.var, peer.var, rtol=1e-12)
    assert float(ours.count) == pytest.approx(peer.count)


def test_equals_the_moments_of_all_values() -> None:
    ours, values = fresh(2), draw(0, 5000, 2)
    for part in np.split(values, 100):
        ours.update(part)
    np.testing.assert_allclose(ours.mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(ours.var, values.var(0), rtol=1e-6)


def test_keeps_precision_far_from_zero() -> None:
    ours = fresh(1)
    values = 1e6 + draw(1, 20_000, 1) * 1e-2
    for part in np.split(values, 2000):
        ours.update(part)
    # The start (mean 0, weight 1e-4) is far away too; without it the moments are the values'.
    assert float(ours.mean[0]) == pytest.approx(values.mean(), rel=1e-7)
    exact = fresh(1)
    exact.mean[:], exact.var[:], exact.count[...] = values[:10].mean(), values[:10].var(), 10
    for part in np.split(values[10:], 1999):
        exact.update(part)
    assert float(exact.var[0]) == pytest.approx(values.var(), rel=1e-6)


def test_normalises_and_clips() -> None:
    moments = Moments(np.array([1.0, 0.0]), np.array([4.0, 1e-12]), np.array(10.0))
    out = np.empty((2, 2), np.float32)
    moments.normalize(np.array([[3.0, 1.0], [-99.0, 0.0]]), out)
    np.testing.assert_allclose(out, [[1.0, 10.0], [-10.0, 0.0]], atol=1e-6)


def test_buffers_are_shared_with_the_rollout_and_saved() -> None:
    module = RunningMoments((3,))
    with module.on_host() as moments:
        moments.update(draw(2, 8, 3))
        assert np.shares_memory(moments.mean, module.mean.numpy())
    assert float(module.count) == pytest.approx(8 + 1e-4)
    values = torch.from_numpy(draw(3, 5, 3))
    other = RunningMoments((3,))
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(values), other(values))
    expected = np.empty((5, 3), np.float32)
    moments.normalize(values.numpy(), expected)
    torch.testing.assert_close(module(values), torch.from_numpy(expected))
    assert module(values).dtype == torch.float32
