"""Recipes that start from another recipe, and the explanations of settings in their docstrings."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from vantage.core.component import check_value
from vantage.core.errors import UserError, nearest
from vantage.settings import tuples
from vantage.userfile import called

M = TypeVar("M")


def inherit(
    recipe: Callable[..., M], base: Callable[..., Any], without: Iterable[str], changed: Mapping[str, Any]
) -> Callable[..., M]:
    """Return `recipe` with the settings of `base` before its own; its first argument becomes what `base` made.

    Args:
        recipe: has `base` as its first parameter, then its own settings. One of the base's name is given to both, with the
            recipe's default and range, unless `without` hides the base's.
        base: the recipe that it starts from.
        without: settings of the base that callers cannot give.
        changed: defaults that replace those of the base; of a hidden setting, its fixed value.

    Raises:
        UserError: a name in `without` or `changed` is none of the base's settings, or a default is given twice.
    """
    who = called(recipe)
    if not callable(base) or not hasattr(base, "page"):
        raise UserError(f"{who}: base={getattr(base, '__name__', base)!r} is no recipe that @method marks")
    theirs, hidden = inspect.signature(base).parameters, frozenset(without)
    names = list(inspect.signature(recipe).parameters.values())
    own = names[1:]
    if not names or names[0].name != "base":
        raise UserError(f"{who}: a recipe with base= takes what its base made as first argument, `base`")
    for argument, given in (("without", hidden), ("a changed default", changed)):
        for name in given:
            if name not in theirs:
                raise UserError(
                    f"{who}: {argument} names {name!r}, which {base.__name__} does not have{nearest(name, theirs)}"
                    f" (its settings: {', '.join(theirs)})"
                )
    mine = {p.name: p for p in own}
    twice = sorted(set(mine) & set(changed) - hidden)
    if twice:
        raise UserError(f"{who}: the default of {twice[0]!r} is in the signature and in @method; give it once")
    fixed = {name: changed[name] for name in hidden if name in changed}
    passed = [name for name in theirs if name not in hidden]
    shown = [mine.get(name, theirs[name].replace(default=changed.get(name, theirs[name].default))) for name in passed]
    new = [p for p in own if p.name not in passed]
    hints, inherited = hints_of(recipe), hints_of(base)
    signature = inspect.Signature(
        [p.replace(annotation=hints.get(p.name, inherited.get(p.name, Any))) for p in (*shown, *new)],
        return_annotation=hints.get("return", Any),
    )

    @functools.wraps(recipe)
    def whole(*args: Any, **kwargs: Any) -> M:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        settings = bound.arguments
        made = base(**fixed, **{name: settings[name] for name in passed})
        return recipe(made, **{name: settings[name] for name in mine})

    whole.__signature__ = signature  # type: ignore[attr-defined]
    whole.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()} | {
        "return": signature.return_annotation
    }
    return whole


def checked(recipe: Callable[..., M], name: str) -> Callable[..., M]:
    """Return the recipe with each setting that it is given checked against its annotation, as a component's fields are.

    A whole number is accepted as a real one, a real one without fraction as a whole one, and a list as a tuple.

    Args:
        recipe: with settings that can be given by name.
        name: of the method, for errors.
    """

    @functools.cache
    def known() -> tuple[inspect.Signature, dict[str, Any]]:
        return inspect.signature(recipe), hints_of(recipe)

    @functools.wraps(recipe)
    def whole(*args: Any, **kwargs: Any) -> M:
        signature, hints = known()
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{recipe.__name__}(): {error}") from None
        for setting, value in given.items():
            if setting in hints:
                given[setting] = _fitting(value, hints[setting])
                check_value(f"{name}.{setting}", given[setting], hints[setting])
        return recipe(**given)

    return whole


def hints_of(recipe: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a recipe's settings, ranges included.

    Raises:
        UserError: one cannot be read, such as a name that the file does not define.
    """
    try:
        return get_type_hints(recipe, include_extras=True)
    except Exception as error:
        raise UserError(f"{called(recipe)}: an annotation cannot be read: {error}") from error


def _fitting(value: Any, hint: Any) -> Any:
    """Return the value in the type of an annotation, where the conversion loses nothing."""
    kinds = _kinds(hint)
    if isinstance(value, list) and tuple in kinds:
        return tuples(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value)
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    return value


def _kinds(hint: Any) -> set[Any]:
    origin = get_origin(hint)
    if origin is Annotated:
        return _kinds(get_args(hint)[0])
    if origin in (Union, UnionType):
        return set().union(*map(_kinds, get_args(hint)))
    return {origin or hint}


def explained(doc: str, names: Iterable[str]) -> dict[str, str]:
    """Return the explanations of settings in a recipe's docstring, by name.

    They are written `name: text; other, third: text.`, and may go over several lines. A text ends before `; name:`, at the
    end of its paragraph, or at the end.
    """
    known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    found: dict[str, str] = {}
    if not known:
        return found
    start = re.compile(rf"(?:^|[;.]\s+)((?:{known})(?:, (?:{known}))*): ")
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(doc)):
        text = " ".join(paragraph.split())
        heads = list(start.finditer(text))
        ends = [*(head.start() for head in heads[1:]), len(text)]
        for head, end in zip(heads, ends):
            body = text[head.end() : end].rstrip(".; ")
            found.update(dict.fromkeys(head[1].split(", "), body))
    return found
