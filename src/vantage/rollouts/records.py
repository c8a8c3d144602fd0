"""Table of numbers per prompt, kept across steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vantage.core.errors import UserError


class PromptIndex:
    """Index of prompt ids: numbers 0, 1, 2, ... in the order of first appearance; ids may be any int64. Found by bisection."""

    def __init__(self) -> None:
        self.keys = torch.zeros(0, dtype=torch.int64)
        self.places = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, ids: Tensor) -> Tensor:
        """Return the number of each id [B]; -1 for an unknown one."""
        self.to(ids.device)
        if not len(self):
            return torch.full_like(ids, -1)
        at = torch.searchsorted(self.keys, ids).clamp(max=len(self) - 1)
        return torch.where(self.keys[at] == ids, self.places[at], -1)

    def add(self, ids: Tensor) -> Tensor:
        """Return the number of each id [B]; new ids get the next numbers."""
        new = torch.unique(ids[self.find(ids) < 0])
        if len(new):
            places = torch.arange(len(self), len(self) + len(new), device=ids.device)
            self.keys, order = torch.cat([self.keys, new]).sort()
            self.places = torch.cat([self.places, places])[order]
        return self.find(ids)

    def to(self, device: torch.device) -> None:
        """Move the table to a device."""
        if self.keys.device != device:
            self.keys, self.places = self.keys.to(device), self.places.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Return ids and numbers."""
        return {"keys": self.keys, "places": self.places}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self.keys, self.places = state["keys"], state["places"]


class Records:
    """Named numbers (float32) of each prompt, kept across steps.

    Reading a prompt that was never written gives the initial values. The table is on the device of the last call's ids.

    Args:
        initial: name -> value of a prompt that was never written.
    """

    def __init__(self, **initial: float) -> None:
        self.initial = initial
        self.index = PromptIndex()
        self.values = {name: torch.zeros(0) for name in initial}

    def __len__(self) -> int:
        return len(self.index)

    def read(self, ids: Tensor) -> dict[str, Tensor]:
        """Return each name's values [B] for these prompts [B]."""
        places = self.index.find(ids)
        self._follow(ids.device)
        if not len(self):
            return {name: torch.full(ids.shape, value, device=ids.device) for name, value in self.initial.items()}
        return {
            name: torch.where(places >= 0, held[places.clamp(min=0)], self.initial[name])
            for name, held in self.values.items()
        }

    def write(self, ids: Tensor, **values: Tensor) -> None:
        """Set values [B] of these prompts [B], which must be distinct; values of other names are unchanged."""
        odd = set(values) - set(self.values)
        if odd:
            raise UserError(f"these records have {', '.join(self.values)}, not {', '.join(sorted(odd))}")
        places = self.index.add(ids)
        self._follow(ids.device)
        for name, held in self.values.items():
            new = len(self) - len(held)
            if new:
                held = torch.cat([held, held.new_full((new,), self.initial[name])])
            if name in values:
                # Out of place, so that values read before do not change.
                held = held.scatter(0, places, values[name].to(held.dtype))
            self.values[name] = held

    def _follow(self, device: torch.device) -> None:
        self.values = {name: held.to(device) for name, held in self.values.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the table."""
        return {"index": self.index.state_dict(), "values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self.index.load_state_dict(state["index"])
        self.values = dict(state["values"])


def per_prompt(prompt: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the distinct prompts [P] of a batch's column `prompt` [N], each row's number among them [N], and P."""
    ids, index = torch.unique(prompt, return_inverse=True)
    return ids, index, int(ids.numel())
