"""Recorded data: whole episodes, Minari's own reader, and what cannot be read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vantage
from vantage.core import UserError
from vantage.tasks.offline import task as offline
from vantage.tasks.offline.dataset import Recorded, action_bound, read_minari, record, write_minari
from vantage.tasks.offline.worlds import Point

pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def data() -> Recorded:
    return record(Point(), 1500, good=0.4, noise=0.2, seed=3)


def test_episodes_are_whole_and_follow_the_world(data: Recorded) -> None:
    assert data.episodes[-1][1] == len(data)
    for start, end in data.episodes:
        torch.testing.assert_close(data.observation[start + 1 : end], data.next_observation[start : end - 1])
        assert not (data.terminated | data.truncated)[start : end - 1].any()
        assert bool(data.terminated[end - 1]) or end - start == Point.limit
    after, reward, over = Point().step((data.observation + 1) / 2, data.action)
    torch.testing.assert_close(Point().observe(after), data.next_observation, atol=1e-5, rtol=0)
    assert torch.equal(reward, data.reward)
    assert torch.equal(over, data.terminated)


def test_same_seed_same_data(data: Recorded) -> None:
    again = record(Point(), 1500, good=0.4, noise=0.2, seed=3)
    assert torch.equal(again.action, data.action)
    assert not torch.equal(record(Point(), 1500, 0.4, 0.2, 4).action[:9], data.action[:9])


def test_good_episodes_are_good() -> None:
    ended = [float(record(Point(), 20_000, good, 0.1, 0).terminated.sum()) for good in (0.0, 1.0)]
    assert ended[1] > 3 * max(ended[0], 1.0)


def test_minari_reads_what_is_written(data: Recorded, tmp_path: Path) -> None:
    minari = pytest.importorskip("minari")
    write_minari(data, tmp_path / "point", "vantage/point-v0", ref_min_score=-100.0, ref_max_score=-25.0)
    found = minari.MinariDataset(tmp_path / "point")
    assert found.total_episodes == len(data.episodes)
    assert found.total_steps == len(data)
    assert found.action_space.shape == (2,)
    for episode, (start, end) in zip(found.iterate_episodes(), data.episodes, strict=True):
        np.testing.assert_array_equal(episode.observations[:-1], data.observation[start:end].numpy())
        np.testing.assert_array_equal(episode.observations[-1], data.next_observation[end - 1].numpy())
        np.testing.assert_array_equal(episode.actions, data.action[start:end].numpy())
        np.testing.assert_array_equal(episode.rewards, data.reward[start:end].numpy())
        np.testing.assert_array_equal(episode.terminations, data.terminated[start:end].numpy())
        np.testing.assert_array_equal(episode.truncations, data.truncated[start:end].numpy())


def test_round_trip_and_a_task_of_it(data: Recorded, tmp_path: Path) -> None:
    write_minari(data, tmp_path / "d", "vantage/point-v0")
    again = read_minari(tmp_path / "d")
    for name in ("observation", "action", "reward", "next_observation", "terminated", "truncated"):
        assert torch.equal(getattr(again, name), getattr(data, name))
    task = vantage.task(f"offline:world=point,data={tmp_path / 'd'},hidden=8")
    assert task.size == len(data)
    run = vantage.train("bc", task, steps=2, settings={"rows": 8})
    assert "eval/score" in run.outcome.history[-1]


def test_what_minari_writes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    gymnasium = pytest.importorskip("gymnasium")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffer_of = pytest.importorskip("minari.data_collector").EpisodeBuffer
    env = gymnasium.make("Pendulum-v1")
    buffers = []
    for seed in range(2):
        env.action_space.seed(seed)
        seen, steps = [env.reset(seed=seed)[0]], []
        for _ in range(200):
            action = env.action_space.sample()
            steps.append((action, *env.step(action)[:4]))
            seen.append(steps[-1][1])
        actions, _, rewards, over, cut = zip(*steps, strict=True)
        buffers.append(
            buffer_of(
                id=seed, seed=seed, observations=np.stack(seen), actions=np.stack(actions), rewards=list(rewards),
                terminations=list(over), truncations=list(cut),
            )
        )  # fmt: skip
    minari.create_dataset_from_buffers("test/pendulum-v0", buffers, env="Pendulum-v1")
    found = read_minari(tmp_path / "test" / "pendulum-v0")
    assert len(found) == 400
    assert found.episodes == [(0, 200), (200, 400)]
    assert action_bound(found.metadata).tolist() == [2.0]
    task = vantage.task(f"offline:data={tmp_path / 'test' / 'pendulum-v0'},hidden=8")
    batch = task.make_engine(task.make_policy()).read(torch.arange(400), None)
    torch.testing.assert_close(batch.action[:, 0] * 2, found.action)
    assert float(batch.observation.mean()) == pytest.approx(0, abs=1e-4)
    judged = task.evaluate(task.make_policy(), samples=2, seed=0)
    assert judged["length"] == 200
    assert judged["return"] < 0


def test_what_cannot_be_read_or_written_is_refused(data: Recorded, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Minari data set"):
        read_minari(tmp_path)
    write_minari(data, tmp_path / "d", "vantage/point-v0")
    with pytest.raises(UserError, match="holds a data set"):
        write_minari(data, tmp_path / "d", "vantage/point-v0")
    with pytest.raises(UserError, match=r"\(2, 2\).*pendulum"):
        vantage.task(f"offline:world=pendulum,data={tmp_path / 'd'}")
    with pytest.raises(UserError, match="symmetric"):
        action_bound({"action_space": json.dumps({"type": "Box", "low": [0.0], "high": [1.0]})})
    for spec, said in (("offline:world=pont", "point"), ("offline:good=2", "good=2"), ("offline:stps=3", "steps")):
        with pytest.raises(UserError, match=said):
            vantage.task(spec)


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("observations", lambda seen: seen[:-1], r"episode 1: (\d+) observations for \1 actions: the last obs.* is missing"),
        ("observations", lambda seen: seen[:-2], r"episode 1: \d+ observations for \d+ actions: there must be \d+"),
        ("observations", lambda seen: seen[:, 0], "episode 1: observations and actions must be vectors; observations are not"),
        ("observations", lambda seen: seen * np.nan, "episode 1: observations hold a number that is not finite"),
        ("observations", lambda seen: np.hstack([seen, seen]), "observations of different widths: 2, 4"),
        ("rewards", lambda reward: reward[1:], r"episode 1: \d+ rewards for \d+ actions"),
        ("terminations", lambda over: over[:0], "episode 1: 0 terminations for"),
        ("truncations", None, "episode 1: there are no truncations.*found: "),
    ],
)  # fmt: skip
def test_an_episode_that_is_not_whole_is_refused(
    data: Recorded, tmp_path: Path, key: str, change: Any, said: str
) -> None:
    h5py = pytest.importorskip("h5py")
    write_minari(data, tmp_path / "d", "vantage/point-v0")
    with h5py.File(tmp_path / "d" / "main_data.hdf5", "r+") as file:
        group = file["episode_1"]
        held = group[key][()]
        del group[key]
        if change is not None:
            group[key] = change(held)
    with pytest.raises(UserError, match=said):
        read_minari(tmp_path / "d")


def test_an_episode_without_steps_is_left_out(data: Recorded, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_minari(data, tmp_path / "d", "vantage/point-v0")
    with h5py.File(tmp_path / "d" / "main_data.hdf5", "r+") as file:
        empty = file.create_group(f"episode_{len(file)}")
        for key, shape in (
            ("observations", (1, 2)),
            ("actions", (0, 2)),
            *((each, (0,)) for each in ("rewards", "terminations", "truncations")),
        ):
            empty[key] = np.zeros(shape)
    assert len(read_minari(tmp_path / "d")) == len(data)


def test_a_coordinate_that_never_changes_is_standardised_to_zero(
    data: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = data.observation.clone()
    seen[:, 0] = 1000.1
    monkeypatch.setattr(offline, "record", lambda *given: dataclasses.replace(data, observation=seen))
    made = offline.OfflineTask("offline", offline.Offline())
    standard = (seen - made.mean) / made.std
    assert not standard[:, 0].any()
    expected = (seen[:, 1] - seen[:, 1].mean()) / (seen[:, 1].std(correction=0) + 1e-3)
    torch.testing.assert_close(standard[:, 1], expected, rtol=1e-4, atol=1e-4)
