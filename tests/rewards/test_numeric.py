"""The verifier `numeric`: which numbers are in a text, and which are the reference's."""

from __future__ import annotations

import time
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from vantage.core.errors import UserError
from vantage.rewards.numeric import Numeric, numbers


def asked(answer: str) -> Any:
    return SimpleNamespace(answer=answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", [12]),
        ("It costs $1,234.50.", ["1234.5"]),
        ("5-3=2", [5, 3, 2]),
        ("-4 and +4 and \u22124", [-4, 4, -4]),
        ("$-5 or -$5", [-5, -5]),
        ("1,2,3", [1, 2, 3]),
        ("1,0000", [1, 0]),
        (".5 and 0.25", ["1/2", "1/4"]),
        ("3/4 of 10/0", ["3/4"]),
        ("1e3 2.5E-2", [1000, "1/40"]),
        ("v2 a1b", []),
        ("72kg, 3rd", [72, 3]),
        ("9" * 500, []),
        ("", []),
        # Signs.
        ("x = - 5", [-5]),
        ("- 5", [-5]),
        ("the change is - $5.", [-5]),
        ("10 - 5", [10, 5]),
        ("- 5 apples\n- 3 pears", [5, 3]),
        ("\u20135\u00b0C, \uff0d7", [-5, -7]),
        ("3\u20135", [3, 5]),
        ("-\u20ac5 or \u00a3-7.50", [-5, "-7.5"]),
        # Thousands.
        ("1{,}234 1'234 1\u202f234\u202f567 12_000", [1234, 1234, 1234567, 12000]),
        ("1,00,000 rupees", [100000]),
        ("1 234", [1, 234]),
        ("5'10", [5, 10]),
        # Fractions and mixed numbers.
        ("1 1/2", ["3/2"]),
        ("-2 3/4 cups", ["-11/4"]),
        ("1\u00bd or \u2154", ["3/2", "2/3"]),
        ("\\frac{3}{4} and $-\\dfrac12$", ["3/4", "-1/2"]),
        ("1\\frac{1}{2}", ["3/2"]),
        ("5 3/2", [5, "3/2"]),
        ("1\u20442", ["1/2"]),
        # Powers.
        ("2e-7, 1.5E+3", ["1/5000000", 1500]),
        ("2 x 10^-7 and 2 \\times 10^{5}", ["1/5000000", 200000]),
        ("3\u00d710\u207b", [3, 10]),
        ("3\u00d710\u00b2\u2070", [3 * 10**20]),
        ("10^3", [1000]),
        ("2^-1", ["1/2"]),
        ("0.5^2", ["1/2", 2]),
        # Other scripts, punctuation, units.
        ("\uff11\uff12 and \u0664\u0662", [12, 42]),
        ("It is 5. (7); 8! **9**", [5, 7, 8, 9]),
        ("5kg, 10 km/h, 60\u00b0, 3rd, US$4", [5, 10, 60, 3, 4]),
        ("H2O, x1", []),
    ],
)
def test_numbers(text: str, expected: list[Any]) -> None:
    found = [value for value, _ in numbers(text)]
    assert found[: len(expected)] == [Fraction(each) for each in expected]
    assert len(found) >= len(expected)
    if not expected:
        assert found == []


def test_numbers_take_linear_time() -> None:
    started = time.process_time()
    for text in (
        "1" * 50_000,
        "1," * 25_000,
        "1,111" * 10_000,
        "$" * 50_000,
        "1/" * 25_000,
        "1 " * 25_000,
        "1 1/" * 12_000,
        "- " * 25_000,
        "1^" * 25_000,
    ):
        Numeric()(asked("1"), text)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("answer", "completion", "score"),
    [
        ("72", "She sold 48 + 24 = 72 clips.", 1.0),
        ("72", "72 or 73", 0.0),
        ("1,000", "1000", 1.0),
        ("1000000", "$1,000,000.00", 1.0),
        ("0.5", "1/2", 1.0),
        ("1/3", "0.3333333", 1.0),
        ("1/3", "0.33", 0.0),
        ("50%", "50", 1.0),
        ("50%", "0.5", 1.0),
        ("0.5", "50%", 1.0),
        ("50", "50 %", 1.0),
        ("50%", "0.5%", 0.0),
        ("123456789012345678901", "123456789012345678902", 0.0),
        ("123456789012345678901", "123,456,789,012,345,678,901", 1.0),
        ("1.5", "1 1/2", 1.0),
        ("1.5", "It is 1 1/2.", 1.0),
        ("-1.5", "- 1 1/2", 1.0),
        ("1.5", "1 1/2.5", 0.0),
        ("1 1/2", "x = 1.5 cups.", 1.0),
        ("-5", "x = - 5", 1.0),
        ("5", "x = - 5", 0.0),
        ("-5", "\u22125.", 1.0),
        ("2e-7", "1e-7", 0.0),
        ("1e-7", "0", 0.0),
        ("2e-7", "$2 \\times 10^{-7}$", 1.0),
        ("0", "0.0", 1.0),
        ("1/3", "0.333333", 1.0),
        ("1234567.25", "1234567.5", 0.0),
        ("50", "50 percent", 1.0),
        ("50", "\\boxed{50\\%}", 1.0),
        ("1234", "\u20ac1,234.00", 1.0),
        ("72", "The answer is 72 km/h!", 1.0),
        ("7", "no number", 0.0),
        ("7", "", 0.0),
    ],
)
def test_numeric(answer: str, completion: str, score: float) -> None:
    assert Numeric()(asked(answer), completion) == score


def test_numeric_settings() -> None:
    assert Numeric(tolerance=1e-6)(asked("1e-7"), "0") == 1.0
    assert Numeric(tolerance=0.0)(asked("1/3"), "0.33333333333") == 0.0
    assert Numeric(tolerance=2)(asked("100"), "98") == 1.0
    assert Numeric(tolerance=2)(asked("100"), "97.9") == 0.0
    assert Numeric(relative=0.1)(asked("-100"), "-91") == 1.0
    assert Numeric(relative=0.1)(asked("-100"), "-89") == 0.0
    marked = Numeric(after="####")
    assert marked(asked("5"), "1 + 4\n#### 5 dollars, not 6") == 1.0
    assert marked(asked("5"), "it is 5") == 0.0
    assert marked(asked("so\n#### 5"), "#### 5") == 1.0
    with pytest.raises(ValueError, match="'none' has no number"):
        Numeric()(asked("none"), "5")
    with pytest.raises(UserError, match=r"relative=2 is out of range"):
        Numeric(relative=2)
