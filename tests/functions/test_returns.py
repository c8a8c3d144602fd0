"""Generalised advantage estimation: the card's numbers, the plain recursion, and the peers' loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vantage.functions import returns as module
from vantage.functions.returns import gae, reverse_scan


def plain(decay: Tensor, increment: Tensor) -> Tensor:
    out, running = torch.empty_like(increment), torch.zeros(len(increment), dtype=increment.dtype)
    for t in range(increment.shape[1] - 1, -1, -1):
        running = increment[:, t] + decay[:, t] * running
        out[:, t] = running
    return out


def case(rows: int, steps: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(rows, steps, generator=generator)
    return {
        "reward": torch.randn(rows, steps, generator=generator),
        "value": torch.randn(rows, steps, generator=generator),
        "next_value": torch.randn(rows, steps, generator=generator),
        "terminated": draw < 0.02,
        "truncated": (draw > 0.01) & (draw < 0.03),
        "mask": torch.rand(rows, steps, generator=generator) > 0.05,
    }


def recursion(columns: dict[str, Tensor], gamma: float, lam: float) -> Tensor:
    """Equation 16, decision by decision, in float64."""
    names = ("mask", "terminated", "truncated", "next_value", "reward", "value")
    rows = []
    for row in zip(*(columns[name].tolist() for name in names), strict=True):
        running, out = 0.0, []
        for here, over, cut, after, reward, value in reversed(list(zip(*row, strict=True))):
            delta = reward + gamma * (0.0 if over else after) - value
            running = delta + (0.0 if over or cut else gamma * lam * running) if here else 0.0
            out.append(running)
        rows.append(out[::-1])
    return torch.tensor(rows, dtype=torch.float64)


def test_the_cards_example() -> None:
    ones, none = torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool)
    end = torch.tensor([[False, False, True]])
    advantage, returns = gae(ones, 0 * ones, 0 * ones, end, none, ones.bool(), 0.5, 0.5)
    assert advantage.tolist() == [[1.3125, 1.25, 1.0]]
    assert torch.equal(returns, advantage)


@pytest.mark.parametrize("shape", [(4, 128), (64, 128), (1, 2048), (3, 1), (2, 7), (8, 1000), (130, 257)])
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 1.0), (0.99, 0.0)])
def test_equals_the_recursion(shape: tuple[int, int], gamma: float, lam: float) -> None:
    columns = case(*shape)
    advantage, returns = gae(**columns, gamma=gamma, lam=lam)
    expected = recursion(columns, gamma, lam)
    torch.testing.assert_close(advantage.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(returns, torch.where(columns["mask"], advantage + columns["value"], 0.0))
    assert (advantage[~columns["mask"]] == 0).all()


@pytest.mark.parametrize("decay", [1.0, 0.9, 1e-3, 0.0])
@pytest.mark.parametrize("shape", [(1, 20_000), (6, 6_001), (512, 512)])
def test_scan_is_exact_over_long_rows(decay: float, shape: tuple[int, int]) -> None:
    increment = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    decays = torch.full(shape, decay)
    expected = plain(decays.double(), increment.double())
    scale = float(expected.abs().max())
    assert (reverse_scan(decays, increment).double() - expected).abs().max() / scale < 1e-5


def test_all_ways_of_scanning_agree() -> None:
    generator = torch.Generator().manual_seed(2)
    increment = torch.randn(5, 999, generator=generator, dtype=torch.float64)
    decay = torch.rand(5, 999, generator=generator, dtype=torch.float64)
    expected = plain(decay, increment)
    in_numpy = torch.from_numpy(module._doubling_numpy(decay.numpy(), increment.numpy()))
    for found in (in_numpy, module._doubling(decay, increment), module._odd_even(decay, increment)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_truncation_bootstraps_and_termination_does_not() -> None:
    zero, three = torch.zeros(1, 2), torch.full((1, 2), 3.0)
    never, first = torch.zeros(1, 2, dtype=torch.bool), torch.tensor([[True, False]])
    cut, _ = gae(zero, zero, three, never, first, ~never, 0.5, 1.0)
    over, _ = gae(zero, zero, three, first, never, ~never, 0.5, 1.0)
    both, _ = gae(zero, zero, three, first, first, ~never, 0.5, 1.0)
    assert cut.tolist() == [[1.5, 1.5]]
    assert over.tolist() == both.tolist() == [[0.0, 1.5]]


def test_limits_in_lambda() -> None:
    columns = case(3, 50) | {"mask": torch.ones(3, 50, dtype=torch.bool)}
    alive = ~columns["terminated"]
    delta = columns["reward"] + 0.9 * columns["next_value"] * alive - columns["value"]
    torch.testing.assert_close(gae(**columns, gamma=0.9, lam=0.0)[0], delta)
    # lambda = 1 and no value: the discounted return of a finished episode.
    reward, none = torch.tensor([[1.0, 2.0, 4.0]]), torch.zeros(1, 3)
    never, end = torch.zeros(1, 3, dtype=torch.bool), torch.tensor([[False, False, True]])
    assert gae(reward, none, none, end, never, ~never, 0.5, 1.0)[0].tolist() == [[3.0, 4.0, 4.0]]


def test_discount_per_decision() -> None:
    columns = case(3, 40)
    constant = gae(**columns, gamma=0.97, lam=0.9)[0]
    torch.testing.assert_close(gae(**columns, gamma=torch.full((3, 40), 0.97), lam=0.9)[0], constant)


def test_carries_no_gradient() -> None:
    columns = case(2, 5)
    columns["value"].requires_grad_()
    advantage, returns = gae(**columns, gamma=0.9, lam=0.9)
    assert not advantage.requires_grad
    assert not returns.requires_grad


@pytest.mark.peers
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.5)])
def test_equals_stable_baselines(gamma: float, lam: float) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    rows, steps = 4, 128
    columns = case(rows, steps, seed=3)
    # Stable-Baselines3 knows one kind of end; it adds gamma * V(final observation) to the reward of a cut episode itself.
    over = columns["terminated"]
    value, last = columns["value"], torch.randn(rows, generator=torch.Generator().manual_seed(4))
    box, discrete = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)
    buffer = buffers.RolloutBuffer(steps, box, discrete, device="cpu", gae_lambda=lam, gamma=gamma, n_envs=rows)
    started = np.ones(rows)
    for t in range(steps):
        buffer.add(
            np.zeros((rows, 1)),
            np.zeros((rows, 1)),
            columns["reward"][:, t].numpy(),
            started,
            value[:, t],
            torch.zeros(rows),
        )
        started = over[:, t].numpy().astype(float)
    buffer.compute_returns_and_advantage(last, started)
    next_value = torch.cat([value[:, 1:], last[:, None]], 1)
    everywhere = torch.ones_like(over)
    advantage, returns = gae(columns["reward"], value, next_value, over, ~everywhere, everywhere, gamma, lam)
    torch.testing.assert_close(advantage, torch.from_numpy(buffer.advantages.T.copy()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(returns, torch.from_numpy(buffer.returns.T.copy()), rtol=1e-5, atol=1e-5)


def test_equals_the_loop_of_the_one_file_scripts() -> None:
    """The form with `nextnonterminal` and time first, in which an end of any kind stops the value too."""
    rows, steps, gamma, lam = 3, 64, 0.99, 0.95
    columns = case(rows, steps, seed=5)
    value, reward, over = columns["value"].T, columns["reward"].T, columns["terminated"].T.float()
    last = torch.zeros(rows)
    expected, carried = torch.zeros(steps, rows), torch.zeros(rows)
    for t in reversed(range(steps)):
        follows = last if t == steps - 1 else value[t + 1]
        delta = reward[t] + gamma * follows * (1 - over[t]) - value[t]
        carried = delta + gamma * lam * (1 - over[t]) * carried
        expected[t] = carried
    next_value = torch.cat([columns["value"][:, 1:], last[:, None]], 1)
    everywhere = torch.ones(rows, steps, dtype=torch.bool)
    found, _ = gae(
        columns["reward"], columns["value"], next_value, columns["terminated"], ~everywhere, everywhere, gamma, lam
    )
    torch.testing.assert_close(found, expected.T, rtol=1e-5, atol=1e-5)


def test_nan_outside_of_the_mask_and_after_a_termination_reaches_nothing() -> None:
    mask = torch.tensor([[True, True, False, True, True, False]])
    terminated = torch.tensor([[False, True, False, False, True, False]])
    junk = torch.tensor(float("nan"))
    reward, value = (torch.where(mask, torch.tensor(part), junk) for part in (1.0, 0.5))
    next_value = torch.where(mask & ~terminated, torch.tensor(0.25), junk)
    none = torch.zeros_like(mask)
    for flows in (None, mask):
        advantage, returns = gae(reward, value, next_value, terminated, none, mask, 0.9, 0.5, flows)
        # delta is 1 + 0.9 * 0.25 - 0.5 = 0.725 and 1 - 0.5 = 0.5; credit is 0.725 + 0.45 * 0.5
        assert advantage[0].tolist() == pytest.approx([0.95, 0.5, 0.0, 0.95, 0.5, 0.0])
        assert returns[0].tolist() == pytest.approx([1.45, 1.0, 0.0, 1.45, 1.0, 0.0])
