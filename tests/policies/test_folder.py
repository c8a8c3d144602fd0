"""The folder of a policy: what it holds, that an old one outlives a failed write, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from vantage.core import UserError
from vantage.policies import folder as folders
from vantage.policies.base_stock import BaseStockPolicy
from vantage.policies.folder import read_policy, write_policy
from vantage.policies.offline import OfflinePolicy

TENSORS = {"weight": torch.tensor([[1.0, -2.0]]), "count": torch.tensor(3)}


def test_round_trip(tmp_path: Path) -> None:
    there = tmp_path / "made" / "here"
    write_policy(there, "toy", TENSORS, {"width": 2})
    assert sorted(path.name for path in there.iterdir()) == ["config.json", "model.safetensors"]
    config, tensors = read_policy(there, "toy", "toy policy")
    assert config == {"width": 2}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_the_old_weights_outlive_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_policy(tmp_path, "toy", TENSORS, {})

    def half(state: Any, path: Path) -> None:
        path.write_bytes(b"half of")
        raise OSError("no space left")

    monkeypatch.setattr(folders, "save_tensors", half)
    with pytest.raises(OSError, match="no space"):
        write_policy(tmp_path, "toy", {"weight": torch.zeros(9)}, {"width": 9})
    config, tensors = read_policy(tmp_path, "toy", "toy policy")
    assert config == {}
    assert torch.equal(tensors["weight"], TENSORS["weight"])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda at: (at / "config.json").unlink(), "holds no toy policy: config.json is missing"),
        (lambda at: (at / "model.safetensors").unlink(), "holds no toy policy: model.safetensors is missing"),
        (lambda at: (at / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda at: (at / "config.json").write_text("[]"), "describes no toy policy: 'policy' is None, not 'toy'"),
        (
            lambda at: (at / "config.json").write_text(json.dumps({"policy": "flow"})),
            "describes no toy policy: 'policy' is 'flow', not 'toy'",
        ),
    ],
)
def test_what_is_no_such_policy_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    write_policy(tmp_path, "toy", TENSORS, {})
    spoil(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        read_policy(tmp_path, "toy", "toy policy")


def test_policies_name_themselves(tmp_path: Path) -> None:
    BaseStockPolicy(level=3.0, cap=2.0).save(tmp_path / "stock")
    OfflinePolicy(3, 1, [4]).save(tmp_path / "offline")
    assert float(BaseStockPolicy.load(tmp_path / "stock").level) == 3
    assert OfflinePolicy.load(tmp_path / "offline").shape == OfflinePolicy(3, 1, [4]).shape
    with pytest.raises(UserError, match="no base-stock policy: 'policy' is 'offline'"):
        BaseStockPolicy.load(tmp_path / "offline")
    with pytest.raises(UserError, match="no offline policy: 'policy' is 'base-stock'"):
        OfflinePolicy.load(tmp_path / "stock")
