"""Conversion of the settings of runs that older versions made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SPLIT = {
    "brrl": ("form", {"bpo": "brrl", "gbpo": "brrl-group"}),
    "otc": ("form", {"grpo": "otc", "ppo": "otc-ppo"}),
}
"""Pages that had two methods: page -> (setting that selected one, its value -> the method's present name)."""
_FORM = {"brrl": "bpo", "otc": "grpo"}
"""Default values of the settings above."""


def upgraded(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored settings of a run, `RunConfig`'s fields, with methods that were split under their present names.

    A setting that was None where each form had a default of its own is left out. Current settings are unchanged.
    """
    made = dict(run)
    if made.get("method") in _SPLIT and "form" in made.get("settings", {}):
        setting, names = _SPLIT[made["method"]]
        settings = {name: value for name, value in made["settings"].items() if value is not None}
        form = settings.pop(setting, _FORM[made["method"]])
        if form == "gbpo" and "eps" in settings:
            settings["eps_low"] = settings.pop("eps")
        made |= {"method": names.get(form, made["method"]), "settings": settings}
    return made
