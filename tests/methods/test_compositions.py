"""What each page composes: its settings, its components at the defaults, and which of them each setting reaches.

The tables `compositions.json`, one a family, say what was meant. A change of a default or of a composition that is meant is
written by `python -m tests.methods.test_compositions`, and is then seen in the table's diff; one that is not fails here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from vantage.core.errors import UserError
from vantage.methods import registry

HERE = Path(__file__).parent
VARIED: dict[str, dict[str, Any]] = json.loads((HERE / "varied.json").read_text(encoding="utf-8"))
"""Settings that act only beside others (`with`), or whose other values no type names (`value`)."""


def others(value: Any, hint: Any) -> list[Any]:
    """Values that a setting may take beside its default: the other choices, the opposite, one more, another share."""
    choices = [choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)]
    if choices:
        return [choice for choice in choices if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value]
    if isinstance(value, float):
        return [0.75 * value if value else 0.25]
    if isinstance(value, tuple) and value and all(isinstance(one, float) for one in value):
        return [tuple(0.75 * one for one in value)]
    if value is None:
        return [1, 0.5, 2.0]
    return []


def reached(page: registry.Page, setting: str, default: Any, hint: Any) -> dict[str, str]:
    """What the components become, by their places, that differ when a setting takes another value, the first that is accepted.

    The text and not the place alone: a component that is there only where its setting is not 0 could lose the value unseen.
    """
    given = VARIED.get(f"{page.name}.{setting}", {})
    beside = given.get("with", {})
    for value in [given["value"]] if "value" in given else others(default, hint):
        try:
            varied = registry.parts_of(page.make({**beside, setting: value}))
            plain = registry.parts_of(page.make(beside)) if complete(page, beside) else {}
        except UserError:
            continue
        return {place: varied.get(place, "") for place in {*plain, *varied} if plain.get(place) != varied.get(place)}
    return {}


def complete(page: registry.Page, settings: dict[str, Any]) -> bool:
    """Whether settings go without those that they are given beside."""
    try:
        page.make(settings)
    except UserError:
        return False
    return True


def composition(page: registry.Page) -> dict[str, Any]:
    plain = registry.parts_of(page.make())
    hints = get_type_hints(page.recipe)
    settings = page.settings()
    return {
        "base": page.base.name if page.base is not None else "",
        "settings": {name: repr(value) for name, value in settings.items()},
        "components": plain,
        "reaches": {name: reached(page, name, value, hints.get(name)) for name, value in settings.items()},
    }


def table(family: str) -> Path:
    return HERE / family / "compositions.json"


@pytest.mark.parametrize("name", registry.names())
def test_a_page_composes_what_was_meant(name: str) -> None:
    page = registry.page(name)
    meant = json.loads(table(page.family).read_text(encoding="utf-8"))
    assert name in meant, f"{name} is new: python -m tests.methods.test_compositions writes what it composes"
    found = composition(page)
    for part, held in meant[name].items():
        assert found[part] == held, (
            f"{name}: {part} differ; if that is meant, python -m tests.methods.test_compositions"
        )


@pytest.mark.parametrize("name", registry.names())
def test_every_setting_reaches_a_component(name: str) -> None:
    reaches = json.loads(table(registry.page(name).family).read_text(encoding="utf-8"))[name]["reaches"]
    assert [setting for setting, places in reaches.items() if not places] == []


def write() -> None:
    families: dict[str, dict[str, Any]] = {}
    for name in registry.names():
        page = registry.page(name)
        families.setdefault(page.family, {})[name] = composition(page)
    for family, pages in families.items():
        table(family).write_text(json.dumps(pages, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
