"""The mixtures in the plane."""

from __future__ import annotations

import math

import pytest
import torch

from vantage.core import UserError
from vantage.tasks.generative.mixture import Mixture
from vantage.tasks.generative.task import task_from_spec


def test_the_density_is_scipys_and_integrates_to_one() -> None:
    stats = pytest.importorskip("scipy.stats")
    data = Mixture(modes=3)
    x, _ = data.draw(20, torch.Generator().manual_seed(0))
    parts = [stats.multivariate_normal(mean.numpy(), 0.09).pdf(x.numpy()) for mean in data.means()]
    assert data.log_density(x).exp().tolist() == pytest.approx((sum(parts) / 3).tolist(), rel=1e-4)
    side = torch.linspace(-5, 5, 401)
    cells = data.log_density(torch.cartesian_prod(side, side)).double().exp() * 0.025**2
    assert float(cells.sum()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("shape", "modes", "count"), [("ring", 8, 8), ("grid", 3, 9)])
def test_draws_fall_on_the_modes(shape: str, modes: int, count: int) -> None:
    data = Mixture(shape, modes)
    assert len(data.means()) == count
    x, label = data.draw(4000, torch.Generator().manual_seed(1))
    assert label is None
    judged = data.measure(x, None)
    # 1 - exp(-9/2) of a normal in the plane lies within three standard deviations.
    assert judged["kept"] == pytest.approx(1 - math.exp(-4.5), abs=0.006)
    share = torch.cdist(x, data.means()).argmin(1).bincount(minlength=count) / 4000
    assert (share - 1 / count).abs().max() < 0.03


def test_rewards() -> None:
    x = torch.tensor([[2.0, 0.0], [2.0, 0.8], [0.0, 0.0], [6.0, 0.0]])
    assert Mixture().rewards(x, None)["mode"].tolist() == pytest.approx(
        [1, math.exp(-0.32), math.exp(-2), math.exp(-8)]
    )
    assert Mixture(reward="region").rewards(x, None)["region"].tolist() == [1, 1, 0, 0]
    proxy = Mixture(reward="proxy").rewards(x, None)["proxy"]
    assert float(proxy[3]) == pytest.approx(math.exp(-8) + 0.75 * 2)


def test_a_specification_is_read_and_mistakes_are_named() -> None:
    task = task_from_spec("flow2d:grid,modes=3,reward=region", {"steps": 6, "noise": 0.5})
    assert task.data == Mixture("grid", 3, reward="region")
    assert (task.sampler.steps, task.sampler.noise, task.size) == (6, 0.5, 0)
    for spec, told in (
        ("flow2d:rings", "did you mean ring"),
        ("flow2d:reward=modes", "did you mean mode"),
        ("flow2d:modes=1", "modes=1 is out of range: 2 to 64"),
        ("flow2d:grid,modes=9", "2 to 8 in a grid"),
        ("flow2d:target=8", "target=8 is out of range: 0 to 7"),
        ("flow2d:std=0", "std=0"),
        ("flow2d:size=3", "shape='size=3' is not known"),
    ):
        with pytest.raises(UserError, match=told):
            task_from_spec(spec)
    with pytest.raises(UserError, match="did you mean hidden"):
        task_from_spec("flow2d", {"hiden": [3]})


def test_a_model_of_other_samples_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    task_from_spec("flow2d").make_policy().save(tmp_path)
    assert task_from_spec("flow2d").make_policy(tmp_path).shape == (2,)
    pytest.importorskip("sklearn")
    with pytest.raises(UserError, match="shape"):
        task_from_spec("digits").make_policy(tmp_path)
