"""What each page was compared with, and its defaults beside theirs."""

from __future__ import annotations

import json
import re

import pytest

from tests.reference import HERE, read
from vantage.methods import registry

NAMES = registry.names()
TABLES = sorted(path.stem for path in HERE.glob("*.json"))
KEYS = {"sources", "defaults", "cases", "without_cases"}


def test_every_table_is_of_a_page() -> None:
    assert set(TABLES) <= set(NAMES)


@pytest.mark.parametrize("name", TABLES)
def test_table(name: str) -> None:
    """The page names the sources of its table, its defaults are the table's, and each says where it is from."""
    page, table = registry.page(name), read(name)
    assert set(table) <= KEYS
    for source in table["sources"].values():
        assert set(source) == {"repository", "commit", "script"}
        assert f"{source['repository']}@{source['commit']} {source['script']}" in page.source.split("; ")
    settings, defaults = page.settings(), table["defaults"]
    assert list(defaults) == list(settings)
    assert {key: one["value"] for key, one in defaults.items()} == json.loads(json.dumps(settings, default=repr))
    for key, one in defaults.items():
        assert set(one) <= {"value", "theirs", "at", "why"}, key
        if "at" in one:
            source, where = one["at"].split(" ", 1)
            assert source in table["sources"], key
            assert re.fullmatch(r"\S+:\d+(-\d+)?( .+)?", where), key
        assert "why" in one or ("at" in one and "theirs" not in one), f"{key}: no source and no reason"


@pytest.mark.parametrize("name", TABLES)
def test_cases(name: str) -> None:
    """Each case names its function; a page without cases says why."""
    table = read(name)
    cases = table.get("cases", [])
    assert bool(cases) != bool(table.get("without_cases"))
    assert len({one["name"] for one in cases}) == len(cases)
    for one in cases:
        source, where = one["at"].split(" ", 1)
        assert source in table["sources"]
        assert re.fullmatch(r"\S+:\d+(-\d+)? [\w.]+.*", where), one["name"]
        assert one["outputs"]
