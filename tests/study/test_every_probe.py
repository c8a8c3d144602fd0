"""What each page computes is what its probe says. `tools/impact.py` selects single probes of this file by their names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vantage.methods import registry
from vantage.study.probes import Probe, differences, sides_of

pytest.importorskip("scipy.stats", reason="the study extra is not installed")

ROOT = Path(__file__).parents[2]
CLAIMS = ROOT / "claims"
PROBED = [page.name for page in registry.pages() if sides_of(page)]


@pytest.mark.parametrize("name", PROBED)
def test_probe(name: str) -> None:
    page = registry.page(name)
    found = differences(CLAIMS, page)
    assert not found, (
        f"{name} no longer computes what {Probe.path(CLAIMS, page).relative_to(ROOT)} says:\n  "
        + "\n  ".join(found)
        + f'\nMend the code; or, where the change is meant, run `vantage claims bless {name} --because "what changed"`,'
        " which stores the new probe and notes in the results that they were measured before it."
    )


@pytest.mark.slow
def test_probes_pass_on_an_older_processor() -> None:
    """All of them with the instructions of a processor of 2008: other kernels, sums in another order."""
    older = {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n0", f"{__file__}::test_probe"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | older, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
