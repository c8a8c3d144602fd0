"""Models that arenas make: a warm start that was cut short is not kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from vantage.core.trainer import Outcome, Trainer
from vantage.study import models
from vantage.study.arenas import arena


def test_half_a_warm_start_is_not_kept_as_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "run", lambda self: Outcome("interrupted", 3))
    folder = tmp_path / "models" / "key"
    with pytest.raises(InterruptedError, match="warm start"):
        models.make(arena("arithmetic"), folder, lambda message: None)
    assert not folder.exists()
