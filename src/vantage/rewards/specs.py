"""Parser of specifications `name:setting=value,setting=value` into frozen dataclasses, for tasks and verifiers."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vantage.core.errors import UserError, nearest, unknown

_TRUE, _FALSE = ("true", "yes", "1", "on"), ("false", "no", "0", "off")


def parse(
    kind: str, text: str, known: Mapping[str, Callable[..., Any]], primary: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """Split `name:setting=value,...` into the name and the settings' texts.

    A comma separates settings where a setting's name and `=` follow it, so that a value may contain commas and colons. A
    text after the colon without a setting's name is the value of the name's `primary` setting.

    Raises:
        UserError: a name or setting is unknown (with the nearest ones), given twice, or without value.
    """
    name, _, rest = text.strip().partition(":")
    name = name.strip()
    if name not in known:
        raise unknown(kind, name, known)
    fields = [field.name for field in dataclasses.fields(known[name]) if field.init]  # type: ignore[arg-type]
    rest = rest.strip()
    if not rest:
        return name, {}
    if not re.match(r"\s*\w+\s*=", rest) or (name in primary and re.match(r"\s*(\w+)\s*=", rest)[1] not in fields):  # type: ignore[index]
        if name not in primary:
            raise UserError(
                f"{kind} {name!r}: cannot read {rest!r}; write {name}:setting=value (settings: {_listed(fields)})"
            )
        rest = f"{primary[name]}={rest}"
    settings: dict[str, str] = {}
    anywhere = "|".join(map(re.escape, fields)) or "(?!)"
    separator = rf",\s*(?=(?:{anywhere})\s*=)" if name in primary else r",(?=\s*\w+\s*=|\s*$)"
    for part in re.split(separator, rest):
        setting, equals, value = part.partition("=")
        setting = setting.strip()
        if setting not in fields:
            raise UserError(
                f"{kind} {name!r} has no setting {setting!r}{nearest(setting, fields)} (settings: {_listed(fields)})"
            )
        if not equals or setting in settings:
            raise UserError(f"{kind} {name!r}: setting {setting!r} {'is given twice' if equals else 'has no value'}")
        settings[setting] = value.strip()
    return name, settings


def build(kind: str, name: str, maker: Callable[..., Any], settings: Mapping[str, str]) -> Any:
    """Convert each setting's text to the type of the dataclass field and make the dataclass.

    Raises:
        UserError: a value does not have its type or is out of range, or a setting without default is missing.
    """
    hints = typing.get_type_hints(maker)
    missing = [
        field.name
        for field in dataclasses.fields(maker)  # type: ignore[arg-type]
        if field.init
        and field.name not in settings
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{kind} {name!r} needs {_listed(missing)}: write {name}:{missing[0]}=...")
    return maker(**{key: _convert(kind, name, key, value, hints[key]) for key, value in settings.items()})


def _convert(kind: str, name: str, key: str, text: str, hint: Any) -> Any:
    options = [option for option in typing.get_args(hint) if option is not type(None)] or [hint]
    if bool in options:
        if text.lower() not in _TRUE + _FALSE:
            raise UserError(f"{kind} {name!r}: {key}={text!r} is not a boolean: write true or false")
        return text.lower() in _TRUE
    for option in options:
        if option in (int, float):
            try:
                return option(text)
            except ValueError:
                article = "an integer" if option is int else "a number"
                raise UserError(f"{kind} {name!r}: {key}={text!r} is not {article}") from None
    return text


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
