"""The trained networks: the same from the same seed, kept in the cache, and judged in an arena."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vantage.core.errors import UserError
from vantage.fields.compression.digits import digits
from vantage.fields.compression.network import flat_weights
from vantage.fields.compression.text import text
from vantage.study.arenas import arena
from vantage.study.jobs import Job, carry_out


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VANTAGE_CACHE", str(tmp_path))
    return tmp_path / "networks"


def test_digits_are_learnt_and_kept(cache: Path) -> None:
    pytest.importorskip("sklearn")
    network = digits("16")
    assert network.evaluate()["accuracy"] > 0.85
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    assert torch.equal(flat_weights(digits([16])), flat_weights(network))
    assert file.stat().st_mtime_ns == written
    # A file that cannot be read counts as not there, and training gives the same again.
    file.write_bytes(b"no tensors")
    assert torch.equal(flat_weights(digits((16,))), flat_weights(network))
    for hidden in ("", "8xa", [0]):
        with pytest.raises(UserError, match="hidden="):
            digits(hidden)


def test_the_users_text(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    file = tmp_path / "own.txt"
    file.write_text("the cat sat on the mat. " * 100)
    network = text(str(file), length=16, steps=2)
    tokens = network.train[0]
    assert tokens.shape[1] == 17
    # Neighbouring windows share one token, and the last ones judge.
    assert torch.equal(tokens[:-1, -1], tokens[1:, 0])
    assert torch.equal(network.held[0][0, 0], tokens[-1, -1])
    assert network.evaluate()["perplexity"] < 60
    with pytest.raises(UserError, match="cannot be read"):
        text(str(tmp_path / "none.txt"))
    file.write_text("short")
    with pytest.raises(UserError, match="tokens; at least"):
        text(str(file))


def test_the_arena_judges_a_pruner() -> None:
    pytest.importorskip("sklearn")
    place = arena("prune-digits")
    job = Job("magnitude", {"scope": "global"}, 0, place, place.function)
    record = carry_out(job, "magnitude")
    found = {name: points[-1][1] for name, points in record.run.diagnostics.items()}
    assert found["sparsity"] == pytest.approx(0.85, abs=1e-3)
    assert found["operations"] == pytest.approx(0.15, abs=1e-3)
    untrained, score = (point.score for point in record.run.curve)
    assert untrained < score < found["dense/accuracy"]
    with pytest.raises(UserError, match="does not prune by formula"):
        carry_out(Job("grpo", {}, 0, place, place.function), "grpo")
