"""Pruning as a task of the training loop: a decision keeps or removes a unit, a row is a mask, the reward is minus the loss.

    prune-digits:hidden=64x64,keep=0.5          a perceptron on handwritten digits
    prune-text:data=FILE,keep=0.7               a small language model on a text, or `model=DIR` one of the user's

A prompt is a mini-batch of training rows. The network's weights never change, and nothing is differentiated through it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vantage.core.checkpoint import save_tensors
from vantage.core.component import check_value
from vantage.core.context import Context
from vantage.core.errors import UserError, unknown
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.fields.compression.digits import digits
from vantage.fields.compression.network import Network
from vantage.fields.compression.policy import MaskEngine, MaskPolicy
from vantage.fields.compression.statistics import input_statistics
from vantage.fields.compression.text import text
from vantage.fields.compression.units import Registry, masked, remove
from vantage.functions.whitening import whiten
from vantage.settings import read_settings

NETWORKS: dict[str, Callable[..., Network]] = {"prune-digits": digits, "prune-text": text}
INITIAL = ("score", "minmax", "random", "even")


class PruningTask:
    """Task of pruning the units of a trained network.

    Args:
        network: network to prune; its weights do not change.
        keep: share of the units of each pool to keep, in (0, 1].
        batch: training rows per mini-batch.
        initial: initial probabilities: increasing with each unit's score of weights and inputs ("score", by a logistic function;
            "minmax", linear), random, or all `keep` ("even").
        calibration: number of training rows for the scores.
        within: "pool" for one budget over all layers, "layer" for one each.
        units: pools that are pruned, joined by +; "" for all.
        rows: rows per forward pass.
        spec: specification on the command line.

    Raises:
        UserError: a setting is out of range.
    """

    size = 0
    default_steps = 400

    def __init__(
        self,
        network: Network,
        *,
        keep: float = 0.5,
        batch: int = 64,
        initial: str = "score",
        calibration: int = 128,
        within: str = "pool",
        units: str = "",
        rows: int = 4096,
        spec: str = "",
    ) -> None:
        if initial not in INITIAL:
            raise unknown("initial", initial, INITIAL)
        for name, value in (("batch", batch), ("calibration", calibration), ("rows", rows)):
            if value < 1:
                raise UserError(f"{name}={value} is out of range: at least 1")
        if not 0 < keep <= 1:
            raise UserError(f"keep={keep} is out of range: above 0 and at most 1")
        network.model.requires_grad_(False).eval()
        found = network.units()
        self.network, self.registry = network, found.only(units.split("+")) if units else found
        self.keep, self.initial, self.calibration, self.within = keep, initial, calibration, within
        self.batch, self.rows = min(batch, len(network.train[0])), rows
        self.name, self.spec = f"prune-{network.name}", spec or f"prune-{network.name}"

    def prompts(self, ids: Tensor) -> Prompts:
        """Return mini-batches; an id is the seed of its rows."""
        return Prompts(ids, ids.tolist())

    @torch.no_grad()
    def score(self, batch: Trajectories, context: Context) -> dict[str, Tensor]:
        """Return `gain` [N], minus the loss of the network under each row's mask on the row's mini-batch; NaN where the loss is."""
        model, device = self.network.model.to(batch.device), batch.device
        ids, place = torch.unique(batch.prompt, return_inverse=True)
        drawn = torch.stack([self._draw(int(seed)) for seed in ids.tolist()])[place.cpu()]
        size = max(1, self.rows // self.batch)
        gains = []
        for masks, index in zip(batch.action.split(size), drawn.split(size), strict=True):
            rows = tuple(column[index.flatten()].to(device) for column in self.network.train)
            with masked(model, self.registry, masks.float()):
                gains.append(-self.network.losses(rows).view(len(masks), -1).mean(-1))
        return {"gain": torch.cat(gains)}

    def _draw(self, seed: int) -> Tensor:
        total = len(self.network.train[0])
        return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[: self.batch]

    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """Evaluate the network under the policy's hard mask on its held-out rows, deterministically.

        Returns:
            `loss` in nats, `accuracy` or `perplexity`, and `kept`, the share of kept units.
        """
        mask = policy.hard()
        with masked(self._on(mask.device).model, self.registry, mask.float()):
            judged = self._on(mask.device).evaluate()
        return {**judged, "kept": float(mask.float().mean())}

    def _on(self, device: torch.device) -> Network:
        """Return the network with model and held-out rows on a device."""
        self.network.model.to(device)
        return dataclasses.replace(self.network, held=tuple(column.to(device) for column in self.network.held))

    def make_policy(self, model: str | Path = "", seed: int = 0, **options: Any) -> MaskPolicy:
        """Return the initial policy, or the saved one in the folder `model`.

        Raises:
            UserError: the folder holds no policy, or one for another network.
        """
        initial = initial_means(self.network, self.registry, self.keep, self.initial, self.calibration, seed)
        policy = MaskPolicy(self.registry, self.keep, initial, self.within, self._export, **options)
        if model:
            policy.restore(model)
        return policy

    def make_engine(self, policy: MaskPolicy, seed: int = 0, **options: Any) -> MaskEngine:
        """Return an engine that samples masks."""
        return MaskEngine(policy)

    def _export(self, folder: Path, mask: Tensor) -> None:
        """Write the pruned network: in Hugging Face format where it has a tokenizer, else its weights."""
        pruned = self.network.copy()
        remove(pruned.model.cpu(), self.registry, mask)
        if pruned.tokenizer is not None:
            from vantage.policies.pretrained import write_pretrained

            write_pretrained(folder, pruned.model, pruned.tokenizer)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            save_tensors(pruned.model.state_dict(), folder / "model.safetensors")


def initial_means(network: Network, registry: Registry, keep: float, kind: str, calibration: int, seed: int) -> Tensor:
    """Return initial probabilities [T]; in each layer clip(z + keep - mean(z), 0, 1), z in [0, 1] increasing with the score.

    A unit's score sums, over the columns c in which its reader W reads it, mean_r |W_rc| * ||x_c||_2 on calibration rows; z is
    its logistic function after standardisation within the layer (std with n - 1), or its position between smallest and largest.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "even":
        return torch.full((registry.size,), keep)
    if kind == "random":
        z = [torch.rand(place.count, generator=generator) for place in registry.places]
    else:
        z = [_squash(score, kind) for score in unit_scores(network, registry, calibration, seed)]
    return torch.cat([(part + keep - part.mean()).clamp(0, 1) for part in z])


def unit_scores(network: Network, registry: Registry, calibration: int, seed: int) -> list[Tensor]:
    """Return the scores [count] of the units of each layer: weights times norms of inputs, see `initial_means`."""
    rows = list(network.batches(network.sample(calibration, seed), network.rows))
    device = next(network.model.parameters()).device
    runs = [partial(network.predict, network.model, tuple(column.to(device) for column in part)) for part in rows]
    found = input_statistics(network.model, [place.reader for place in registry.places], runs)
    scores = []
    for place in registry.places:
        weight: Any = network.model.get_submodule(place.reader).weight
        squares = found[place.reader].squares
        assert squares is not None
        column = weight.detach().float().flatten(1).abs().mean(0) * squares.sqrt()
        scores.append(column.view(place.count, -1).sum(-1).cpu())
    return scores


def _squash(score: Tensor, kind: str) -> Tensor:
    if kind == "minmax":
        return (score - score.min()) / (score.max() - score.min()).clamp(min=1e-8)
    # Scores may be as small as squared gradients, so the epsilon must only avoid a division by 0.
    return torch.sigmoid(whiten(score.unsqueeze(0), torch.ones(1, len(score), dtype=torch.bool), eps=1e-16).squeeze(0))


def task_from_spec(spec: str, options: Mapping[str, Any] | None = None) -> PruningTask:
    """Make the task of `prune-digits`, `prune-digits:hidden=64x64,keep=0.5` or `prune-text:data=FILE,model=DIR,keep=0.7`.

    Options of the network are `hidden` and `seed` (digits), or `data`, `model`, `length`, `steps` and `seed` (text); all others are
    the task's.

    Raises:
        UserError: the task, an option or its value is not known.
    """
    name, _, rest = spec.partition(":")
    if name not in NETWORKS:
        raise unknown("task", name, NETWORKS)
    given = {**dict(options or {}), **read_settings(rest, f"task {spec}")}
    own = {"prune-digits": ("hidden", "seed"), "prune-text": ("data", "model", "length", "steps", "seed")}[name]
    kinds = {"keep": float, **dict.fromkeys(("seed", "length", "steps", "batch", "calibration", "rows"), int)}
    known = (*own, "keep", "batch", "initial", "calibration", "within", "units", "rows")
    for key, value in given.items():
        if key not in known:
            raise unknown("option", key, known, f"task {spec}")
        check_value(f"task {spec}: {key}", value, kinds.get(key, Any))
    network: Network = NETWORKS[name](**{key: given.pop(key) for key in own if key in given})
    return PruningTask(network, spec=spec, **given)
