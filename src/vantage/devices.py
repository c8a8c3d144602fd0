"""Devices of policies, by their names on the command line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vantage.core.errors import UserError

if TYPE_CHECKING:
    import torch


def device_of(name: str) -> torch.device:
    """Return the device of this name: 'cpu' (or 'cpu:0'), 'cuda' or 'cuda:N'.

    Raises:
        UserError: the name is not known, or this machine has no such device.
    """
    import torch

    match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", name)
    if match is None:
        raise UserError(f"device={name!r} is not known: cpu, cuda or cuda:N")
    kind, index = match[1], int(match[2] or 0)
    if kind == "cpu":
        if index:
            raise UserError(
                f"device={name}: there is one CPU device, cpu; --threads sets how many of its threads are used"
            )
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UserError(f"device={name}: there is no CUDA device here; give --device cpu")
    if index >= count:
        raise UserError(f"device={name}: this machine has {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return torch.device(name)
