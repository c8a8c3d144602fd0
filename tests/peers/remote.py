"""Calls of functions of libraries that live in environments of their own, because their requirements exclude ours.

`make peers NAME` makes `.peers/NAME` from `tests/peers/NAME.txt`. A test sends arrays to `tests/peers/sides/of_NAME.py`, which runs
there, and gets arrays back. Without the environment the test is skipped; `make test-peers` makes that a failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
REQUIRED = "VANTAGE_PEERS"
"""Variable of the environment that turns a missing peer into a failure."""
NAMES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.txt")))


class Peer:
    """A library in its own environment.

    Args:
        name: of the library, one of `NAMES`.
        folder: where the environments are.
    """

    def __init__(self, name: str, folder: Path = ROOT / ".peers") -> None:
        self.name = name
        self.python = folder / name / "bin" / "python"

    def require(self) -> None:
        """Skip the test, or fail it where peers are required, if the environment was not made."""
        if self.python.exists():
            return
        text = f"{self.name} is not installed: `make peers {self.name}`"
        if os.environ.get(REQUIRED):
            pytest.fail(text)
        pytest.skip(text)

    def call(self, *calls: tuple[str, dict[str, Any], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Run calls in one process; return what each gave.

        Args:
            *calls: (function of the side's file, its settings, its tensors), each.

        Raises:
            AssertionError: the process failed; the message has what it wrote.
        """
        self.require()
        arrays = {
            f"{i}/{key}": value.detach().numpy()
            for i, (_, _, given) in enumerate(calls)
            for key, value in given.items()
        }
        plan = [(function, settings) for function, settings, _ in calls]
        with tempfile.TemporaryDirectory() as folder:
            sent, got = Path(folder, "in.npz"), Path(folder, "out.npz")
            np.savez(sent, plan=np.array(json.dumps(plan)), **arrays)
            side = Path(__file__).parent / "sides" / f"of_{self.name.replace('-', '_')}.py"
            environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            ran = subprocess.run(
                [self.python, side, sent, got],
                capture_output=True,
                text=True,
                env=environment,
                timeout=300,
                check=False,
            )
            assert ran.returncode == 0, f"{self.name}: {ran.stderr[-4000:]}"
            with np.load(got, allow_pickle=False) as found:
                held = {key: torch.from_numpy(found[key]) for key in found.files}
        return [
            {key.split("/", 1)[1]: value for key, value in held.items() if key.startswith(f"{i}/")}
            for i in range(len(calls))
        ]
