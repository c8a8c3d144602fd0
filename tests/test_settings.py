"""The one parser of values that stand on a command line, in a task's name or in an entry of a comparison."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from vantage.core.errors import UserError
from vantage.settings import parse_settings, parse_value, read_settings, split, tuples

VALUES: dict[str, Any] = {
    "3": 3,
    "-2": -2,
    "1e-4": 1e-4,
    "3.0": 3.0,
    " 7 ": 7,
    "inf": math.inf,
    "true": True,
    "False": False,
    "none": None,
    "NULL": None,
    "": "",
    "math": "math",
    "64x64": "64x64",
    "1..3": "1..3",
    "a,b": "a,b",
    "it's": "it's",
    '"1"': "1",
    "'none'": "none",
    '"a, \\"b\\""': 'a, "b"',
    '"a" and "b"': '"a" and "b"',
    "[]": [],
    "[1, 2.5, true, none]": [1, 2.5, True, None],
    "[a, \"b, c\", '3']": ["a", "b, c", "3"],
    "[[8, 8], [4], []]": [[8, 8], [4], []],
    "{}": {},
    "{correct: 1, 'length': 0.5}": {"correct": 1, "length": 0.5},
    '{"a:b": [1, {"c": null}]}': {"a:b": [1, {"c": None}]},
    "{at: 10:30}": {"at": "10:30"},
}


@pytest.mark.parametrize("text", VALUES)
def test_a_value(text: str) -> None:
    found = parse_value(text)
    assert found == VALUES[text]
    assert type(found) is type(VALUES[text])


def test_json_is_read_as_json_has_it() -> None:
    value = {"a": [1, 2.5, -3e-7, True, False, None, "", "x, y: [z]", 'tab\t"quote"'], "b": {"c": [[], {}]}}
    assert parse_value(json.dumps(value)) == value


@pytest.mark.parametrize("text", ["[1, 2", "[1, [2]", "{a: 1", "{a}", "[1}", "[1]]", "["])
def test_what_is_not_complete_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_value(text)
    assert text.strip("[{}]") in str(caught.value)


def test_settings_between_commas_keep_the_commas_of_lists_and_quotes() -> None:
    assert read_settings('sizes=[8,[4,2]],name="a,b", rate = 1e-3,,') == {
        "sizes": [8, [4, 2]],
        "name": "a,b",
        "rate": 1e-3,
    }
    assert read_settings("") == {}
    assert split("a,b[c,d],e") == ["a", "b[c,d]", "e"]
    assert parse_settings(["rule=x=y"]) == {"rule": "x=y"}
    for wrong in ("steps", "=3"):
        with pytest.raises(UserError, match=rf"task cartpole: '{wrong}' must be written name=value"):
            parse_settings([wrong], "task cartpole")


def test_lists_are_tuples_all_the_way_down_where_a_tuple_is_asked_for() -> None:
    assert tuples([[1, 2], [3, [4]], "a"]) == ((1, 2), (3, (4,)), "a")
    assert tuples("ab") == "ab"
