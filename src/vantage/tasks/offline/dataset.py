"""Recorded episodes of mixed policies, written and read in Minari's format.

The format is a folder with `main_data.hdf5`, one group an episode (`observations` [T + 1, D], `actions` [T, A], `rewards`,
`terminations`, `truncations` [T]), and `metadata.json`, which describes the spaces. Nothing in it is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vantage.core.errors import UserError, require
from vantage.tasks.offline.worlds import World

MINARI = "0.5.3"
"""Version of Minari's format that is written."""


@dataclass(frozen=True)
class Recorded:
    """Table of M transitions in the order of their episodes.

    Attributes:
        observation, next_observation: [M, D] float32.
        action: [M, A] float32, in the data's own units.
        reward: [M] float32.
        terminated, truncated: [M] bool; the last transition of an episode is one of both.
        metadata: contents of `metadata.json`.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminated: Tensor
    truncated: Tensor
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def episodes(self) -> list[tuple[int, int]]:
        """First row and end (exclusive) of each episode."""
        ends = ((self.terminated | self.truncated).nonzero().squeeze(-1) + 1).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))


def record(world: World, steps: int, good: float, noise: float, seed: int) -> Recorded:
    """Record about `steps` transitions of mixed policies, as whole episodes from the usual initial states.

    A share `good` of the episodes follows the controller with Gaussian noise of scale `noise`; the others are random walks
    whose action drifts: a_t = clip(0.9 a_{t-1} + 0.5 e_t).
    """
    generator = torch.Generator().manual_seed(seed)
    rows = max(2, round(steps / world.limit))
    follows = torch.arange(rows) < round(good * rows)
    state = world.reset(rows, generator)
    drift = 2 * torch.rand(rows, world.actions, generator=generator) - 1
    running = torch.ones(rows, dtype=torch.bool)
    columns: list[tuple[Tensor, ...]] = []
    alive = []
    for t in range(world.limit):
        wander = torch.randn(rows, world.actions, generator=generator)
        drift = (0.9 * drift + 0.5 * wander).clamp(-1, 1)
        steered = (world.controller(state) + noise * wander).clamp(-1, 1)
        action = torch.where(follows.unsqueeze(1), steered, drift)
        following, reward, terminated = world.step(state, action)
        ended = ~terminated & (t == world.limit - 1)
        columns.append((world.observe(state), action, reward, world.observe(following), terminated, ended))
        alive.append(running)
        state, running = following, running & ~terminated
    kept = torch.stack(alive, 1)
    seen, action, reward, after, over, cut = (torch.stack(column, 1)[kept] for column in zip(*columns, strict=True))
    return Recorded(seen, action, reward, after, over, cut)


def write_minari(data: Recorded, folder: str | Path, name: str, **more: Any) -> None:
    """Write the data so that `minari.MinariDataset(folder)` reads it.

    Args:
        data: whole episodes; actions in [-1, 1].
        folder: created; must not hold a data set.
        name: the data set's id, such as "vantage/point-v0".
        **more: further metadata, JSON values (`ref_min_score`, `ref_max_score`).

    Raises:
        UserError: the folder holds a data set, or the last episode has no end.
    """
    h5py = require("h5py", "offline")
    folder = Path(folder)
    if (folder / "metadata.json").exists():
        raise UserError(f"{folder} holds a data set: give another folder")
    episodes = data.episodes
    if not episodes or episodes[-1][1] != len(data):
        raise UserError("the last episode of the data does not end: mark its last transition as `truncated`")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "main_data.hdf5"
    with h5py.File(path, "w", track_order=True) as file:
        for number, (start, end) in enumerate(episodes):
            group = file.create_group(f"episode_{number}")
            group.attrs.update(id=number, total_steps=end - start)
            seen = torch.cat([data.observation[start:end], data.next_observation[end - 1 : end]])
            for key, column in (
                ("observations", seen),
                ("actions", data.action[start:end]),
                ("rewards", data.reward[start:end].double()),
                ("terminations", data.terminated[start:end]),
                ("truncations", data.truncated[start:end]),
            ):
                group.create_dataset(key, data=column.numpy())
    metadata = {
        "dataset_id": name,
        "minari_version": MINARI,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "total_episodes": len(episodes),
        "total_steps": len(data),
        "dataset_size": path.stat().st_size / 1e6,
        "observation_space": _box(data.observation.shape[1], float("-inf"), float("inf")),
        "action_space": _box(data.action.shape[1], -1.0, 1.0),
        "algorithm_name": "mixed policies",
        **more,
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))


def _box(width: int, low: float, high: float) -> str:
    return json.dumps(
        {"type": "Box", "dtype": "float32", "shape": [width], "low": [low] * width, "high": [high] * width}
    )


def read_minari(folder: str | Path) -> Recorded:
    """Read a Minari data set of vectors, HDF5 format.

    Raises:
        UserError: the folder holds no data set, or an episode is incomplete; the message names the episode and what it lacks.
        ImportError: h5py is not installed.
    """
    h5py = require("h5py", "offline")
    folder = Path(folder)
    # Minari's own cache has the files in a subfolder.
    place = folder if (folder / "main_data.hdf5").is_file() else folder / "data"
    if not (place / "main_data.hdf5").is_file() or not (place / "metadata.json").is_file():
        raise UserError(f"{folder}: no Minari data set (main_data.hdf5 and metadata.json)")
    try:
        metadata = json.loads((place / "metadata.json").read_text())
    except ValueError as error:
        raise UserError(f"{place / 'metadata.json'}: not JSON: {error}") from None
    columns: dict[str, list[Any]] = {key: [] for key in ("now", "next", "action", "reward", "terminated", "truncated")}
    try:
        file = h5py.File(place / "main_data.hdf5", "r")
    except OSError as error:
        raise UserError(f"{place / 'main_data.hdf5'}: not an HDF5 file: {error}") from None
    with file:
        for number in range(len(file)):
            if f"episode_{number}" not in file:
                raise UserError(f"{folder}: there are {len(file)} episodes, but no episode_{number}")
            episode = _episode(f"{folder}: episode {number}", file[f"episode_{number}"], h5py)
            if episode is None:
                continue
            observed, over, cut = episode["observations"], episode["terminations"], episode["truncations"]
            if not (over[-1] or cut[-1]):
                cut[-1] = True
            columns["now"].append(observed[:-1])
            columns["next"].append(observed[1:])
            columns["action"].append(episode["actions"])
            columns["reward"].append(episode["rewards"])
            columns["terminated"].append(over)
            columns["truncated"].append(cut)
    if not columns["now"]:
        raise UserError(f"{folder}: the data set holds no episode")
    for key, name in (("now", "observations"), ("action", "actions")):
        widths = sorted({part.shape[1] for part in columns[key]})
        if len(widths) > 1:
            raise UserError(f"{folder}: {name} of different widths: {', '.join(map(str, widths))}")
    found = {key: torch.from_numpy(np.concatenate(parts)) for key, parts in columns.items()}
    return Recorded(
        found["now"], found["action"], found["reward"], found["next"], found["terminated"], found["truncated"], metadata
    )


def _episode(where: str, group: Any, h5py: Any) -> dict[str, Any] | None:
    """Return the arrays of an episode of T steps, None where T is 0.

    Raises:
        UserError: an array is missing, or has another length than T (observations: T + 1).
    """
    found: dict[str, Any] = {}
    for key in ("actions", "rewards", "terminations", "truncations", "observations"):
        if key not in group:
            raise UserError(f"{where}: there are no {key} (found: {', '.join(group) or 'nothing'})")
        vectors = key in ("actions", "observations")
        if not isinstance(group[key], h5py.Dataset) or (vectors and group[key].ndim != 2):
            raise UserError(f"{where}: observations and actions must be vectors; {key} are not")
        kind = np.float32 if vectors or key == "rewards" else bool
        found[key] = np.asarray(group[key][()], dtype=kind)
        if not vectors:
            found[key] = found[key].reshape(-1)
    steps = len(found["actions"])
    if len(found["observations"]) == steps and steps:
        raise UserError(
            f"{where}: {steps} observations for {steps} actions: the last observation, which follows the last action, is missing;"
            f" write {steps + 1} (as Minari does), or leave the last action out"
        )
    for key, value in found.items():
        wanted = steps + (key == "observations")
        if len(value) != wanted:
            raise UserError(f"{where}: {len(value)} {key} for {steps} actions: there must be {wanted}")
        if value.dtype == np.float32 and not np.isfinite(value).all():
            raise UserError(f"{where}: {key} hold a number that is not finite")
    return found if steps else None


def action_bound(metadata: Mapping[str, Any]) -> Tensor:
    """Return the bound [A] of the data's actions, which must be symmetric about 0 and finite; a scalar 1 where it is not given.

    Raises:
        UserError: the action space is not of this kind.
    """
    said = metadata.get("action_space")
    if not said:
        return torch.ones(())
    space = json.loads(said)
    low, high = (torch.tensor(space.get(side, 0.0)).reshape(-1) for side in ("low", "high"))
    if space.get("type") != "Box" or not torch.isfinite(high).all() or not torch.equal(low, -high):
        raise UserError(f"actions must be bounded and symmetric about 0, not {said:.120}")
    return high
