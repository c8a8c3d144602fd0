"""Policy over masks: a probability for each unit of a network to be kept, with a budget on the expected share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vantage.core.checkpoint import load_tensors, write_atomically
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation, Prompts
from vantage.core.trajectories import Trajectories
from vantage.fields.compression.masks import keep_largest, project, pruned_count, threshold
from vantage.fields.compression.units import Registry
from vantage.policies.folder import write_tensors

_IMPOSSIBLE = -16.0
"""Log-probability of a decision of probability 0 (about that of 1e-7), so that ratios are finite."""
WEIGHTS, CARD = "policy.safetensors", "units.json"


class MaskPolicy(nn.Module):
    """Policy of independent Bernoulli decisions, one per unit: action 1 keeps unit t in [0, T), T the registry's size.

    The parameter `mean` [T] is projected onto the budget where it is read, so that any optimiser respects it: in each pool the
    probabilities sum to at most `keep` times its number of units. A probability of exactly 0 or 1 has no gradient.

    Args:
        registry: the units.
        keep: share of each pool's units to keep, in (0, 1].
        initial: initial probabilities [T].
        within: "pool" for one budget over all layers, "layer" for one each.
        export: writes the network without the units that a mask [T] does not keep into a folder; None for no export.
    """

    memoryless = False
    """A decision depends on its position in the row."""

    def __init__(
        self,
        registry: Registry,
        keep: float,
        initial: Tensor,
        within: str = "pool",
        export: Callable[[Path, Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise UserError(f"keep={keep} is out of range: above 0 and at most 1")
        if within not in ("pool", "layer"):
            raise UserError(f"within={within!r} is not known: 'pool' or 'layer'")
        if initial.shape != (registry.size,):
            raise UserError(f"{initial.numel()} probabilities do not fit {registry.size} units")
        self.registry, self.keep, self.within, self.export = registry, keep, within, export
        parts = registry.pools().values() if within == "pool" else [part for _, part in registry.slices()]
        self.parts = list(parts)
        self.mean = nn.Parameter(initial.detach().clone().float())
        self.project()

    def means(self) -> Tensor:
        """Return each unit's probability of being kept, [T]; with gradient to `mean` where it is neither 0 nor 1."""
        held = [self.mean[part] for part in self.parts]
        return torch.cat([(raw - threshold(raw, self._budget(len(raw)))).clamp(0, 1) for raw in held])

    @torch.no_grad()
    def project(self) -> None:
        """Project the parameter onto the budget, in place."""
        for part in self.parts:
            raw = self.mean[part]
            raw.copy_(project(raw, self._budget(len(raw))))

    def _budget(self, count: int) -> float:
        return count * self.keep

    @torch.no_grad()
    def hard(self) -> Tensor:
        """Return the mask [T] of the most probable units: all but floor(n (1 - keep)) of the n of each budget."""
        mask = torch.empty(self.registry.size, dtype=torch.bool, device=self.mean.device)
        for part in self.parts:
            raw = self.mean[part]
            mask[part] = keep_largest(raw, len(raw) - pruned_count(len(raw), 1 - self.keep))
        return mask

    def logp(self, action: Tensor) -> Tensor:
        """Return the log-probability of each decision of rows [N, T] (0 or 1)."""
        s = self.means()
        free = (s > 0) & (s < 1)
        safe = torch.where(free, s, 0.5)
        kept = action.bool()
        fixed = torch.where(kept == (s.detach() > 0.5), 0.0, _IMPOSSIBLE)
        return torch.where(free, torch.where(kept, safe.log(), torch.log1p(-safe)), fixed)

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Evaluate the batch's decisions: `logp`, `entropy` [N, T], and `distribution`, logits of (remove, keep) [N, T, 2]."""
        found = Evaluation()
        if "logp" in want:
            found.logp = self.logp(batch.action)
        if "entropy" in want or "distribution" in want:
            s = self.means().clamp(1e-7, 1 - 1e-7)
            logs = torch.stack([torch.log1p(-s), s.log()], -1)
            if "entropy" in want:
                found.entropy = -(logs.exp() * logs).sum(-1).expand(batch.action.shape)
            if "distribution" in want:
                found.distribution = logs.expand(*batch.action.shape, 2)
        return found

    def values(self, batch: Trajectories) -> tuple[Tensor, Tensor]:
        """Raise UserError: there is no critic.

        Raises:
            UserError: always.
        """
        raise UserError("a policy over masks has no critic: choose a method without one")

    def frozen(self) -> MaskPolicy:
        """Return a frozen copy."""
        copied = MaskPolicy(self.registry, self.keep, self.mean, self.within, self.export).to(self.mean.device)
        return copied.requires_grad_(False)

    def save(self, folder: Path | str) -> None:
        """Write the probabilities, the kept units of each layer, and with `export` the pruned network in `folder/network`."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        write_tensors({"mean": self.mean.detach()}, target / WEIGHTS)
        mask = self.hard().cpu()
        kept = {place.reader: mask[part].nonzero().squeeze(-1).tolist() for place, part in self.registry.slices()}
        write_atomically(target / CARD, json.dumps({"keep": self.keep, "within": self.within, "kept": kept}))
        if self.export is not None:
            self.export(target / "network", mask)

    def restore(self, folder: Path | str) -> None:
        """Restore the probabilities that `save` wrote.

        Raises:
            UserError: the folder holds none, or those of another network.
        """
        path = Path(folder) / WEIGHTS
        if not path.is_file():
            raise UserError(f"there is no policy over masks in {folder}")
        mean = load_tensors(path).get("mean")
        if mean is None or mean.shape != self.mean.shape:
            raise UserError(f"the policy in {folder} is of another network than one of {self.registry.size} units")
        with torch.no_grad():
            self.mean.copy_(mean)


class MaskEngine:
    """Engine that samples whole masks; a row is a mask, a group the masks that are scored on one mini-batch."""

    def __init__(self, policy: MaskPolicy) -> None:
        self.policy = policy
        self.max_length = policy.registry.size

    def sample(
        self, prompts: Prompts, count: int, context: Context, *, greedy: bool = False, limit: int | None = None
    ) -> Trajectories:
        """Sample `count` masks for each mini-batch; greedily the mask of the most probable units."""
        n, steps = len(prompts) * count, self.max_length
        with torch.no_grad():
            means = self.policy.means()
            if greedy:
                action = self.policy.hard().expand(n, steps)
            else:
                action = torch.rand(n, steps, generator=context.generator).to(means.device) < means
            logp = self.policy.logp(action)
        full = torch.ones(n, steps, dtype=torch.bool, device=means.device)
        last = torch.zeros_like(full)
        last[:, -1] = True
        return Trajectories(
            {
                "action": action.long(),
                "mask": full,
                "length": full.sum(-1),
                "logp_old": logp,
                "reward": torch.zeros_like(logp),
                "terminated": last,
                "truncated": torch.zeros_like(full),
                "prompt": prompts.ids.repeat_interleave(count).to(means.device),
                "group": torch.arange(len(prompts), device=means.device).repeat_interleave(count),
            }
        )

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Sample one mask for each of the next `rows` mini-batches: an episode is one mask, whatever `steps`."""
        return self.sample(context.next_prompts(rows), 1, context)

    def state_dict(self) -> dict[str, Any]:
        """Return no state: random numbers are the run's."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Restore nothing: there is no state."""
