"""The verifier `math`: what is read as an expression, and which expressions are equal."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from vantage.core.errors import UserError
from vantage.rewards.mathematics import Math, in_latex


@pytest.mark.parametrize(
    ("answer", "completion", "score"),
    [
        # Exact values and decimals, however small.
        ("1/2^{98}", "$1/2^{99}$", 0.0),
        ("1/2^{98}", "$\\frac{1}{2^{98}}$", 1.0),
        ("\\frac{1}{2^{98}}", "1/2^98", 1.0),
        ("2e-7", "1e-7", 0.0),
        ("2e-7", "2e-7", 1.0),
        ("2e-7", "$2\\times 10^{-7}$", 1.0),
        ("0.0000002", "$0.0000001$", 0.0),
        ("2\\times 10^{-7}", "0.0000002", 1.0),
        # An equation is a value where it gives one, and none where it describes a line.
        ("0", "3x+4y+14=0", 0.0),
        ("0", "$3x+4y+14=0$", 0.0),
        ("0", "The line is 3x+4y+14=0.", 0.0),
        ("3x+4y+14=0", "0", 0.0),
        ("3x+4y+14=0", "$3x+4y+14=0$", 1.0),
        ("3x+4y+14=0", "$6x+8y+28=0$", 1.0),
        ("3x+4y+14=0", "3x + 4y = -14", 1.0),
        ("3x+4y+14=0", "$3x+4y-14=0$", 0.0),
        ("14", "$3x+4y=14$", 1.0),
        ("3x+4y=14", "$14$", 0.0),
        ("7", "$x+3=7$", 0.0),
        ("17", "$m+n=17$", 1.0),
        ("5", "$x=5$", 1.0),
        ("x=5", "5", 1.0),
        ("x=5", "$y=5$", 0.0),
        ("5", "$x=2+3=5$", 1.0),
        ("5", "$2+3=5$", 1.0),
        ("2x+1", "$y=2x+1$", 1.0),
        ("y=2x+1", "$2x-y+1=0$", 1.0),
        ("0", "$x^2-4=0$", 0.0),
        ("\\frac12", "$P(A)=\\frac12$", 1.0),
        ("5x", "$2x+3x=5x$", 1.0),
        # A decimal is right within 1e-6, times the reference below 1.
        ("1/3", "0.333333", 1.0),
        ("1/3", "0.333", 0.0),
        ("0.333", "1/3", 0.0),
        ("1/7", "0.142857", 1.0),
        ("\\pi", "3.14159", 0.0),
        ("\\pi", "$3.141593$", 1.0),
        ("1234567.25", "1234567.5", 0.0),
        ("1e-7", "0", 0.0),
        ("0", "1e-9", 0.0),
        ("0.1", "$\\frac{1}{10}$", 1.0),
        ("72", "72.0", 1.0),
        # Mixed numbers and signs.
        ("1 1/2", "1.5", 1.0),
        ("1 1/2", "$\\frac32$", 1.0),
        ("1 1/2", "1 1/2 cups", 1.0),
        ("3/2", "$1\\frac{1}{2}$", 1.0),
        ("1.5", "1", 0.0),
        ("-5", "x = - 5", 1.0),
        ("-5", "\u22125", 1.0),
        ("-5", "5", 0.0),
        ("5", "- 5 apples are there\n- 3 pears, so 5", 1.0),
        # Sets, intervals, tuples.
        ("\\{1,2\\}", "$\\{2,1\\}$", 1.0),
        ("\\{1,2\\}", "$\\{1,3\\}$", 0.0),
        ("\\{1/2^{98},2\\}", "$\\{2,1/2^{99}\\}$", 0.0),
        ("1,2", "The solutions are 1, 2.", 1.0),
        ("1,2", "$x=1$ or $x=2$", 1.0),
        ("(1,2)", "$(2,1)$", 0.0),
        ("(1,2)", "(1, 2)", 1.0),
        ("[1,2)", "$[1,2)$", 1.0),
        ("[1,2)", "$[1,2]$", 0.0),
        ("(-\\infty,3)", "$(-\\infty,3)$", 1.0),
        ("(0,1/2^{98})", "$(0,1/2^{99})$", 0.0),
        # Percentages, units, currency.
        ("50\\%", "50", 1.0),
        ("50%", "0.5", 1.0),
        ("0.5", "50%", 1.0),
        ("50%", "0.5%", 0.0),
        ("50\\%", "$50\\%$", 1.0),
        ("5 \\text{ cm}", "5 cm", 1.0),
        ("5", "5 hours", 1.0),
        ("60^\\circ", "60°", 1.0),
        ("$5", "It costs $5.", 1.0),
        ("5", "It costs $5 and not $6, so $5.", 1.0),
        ("1,234", "1234", 1.0),
        ("1{,}234", "$1,234$", 1.0),
        # Expressions in letters, inequalities, matrices.
        ("x^2+1", "$(x+1)^2-2x$", 1.0),
        ("x/2^{98}", "$x/2^{99}$", 0.0),
        ("x^2", "x^3", 0.0),
        ("\\sqrt{x^2}", "$x$", 0.0),
        ("\\frac{\\sqrt2}{2}", "$1/\\sqrt{2}$", 1.0),
        ("\\sqrt2", "1.41421", 0.0),
        ("\\sqrt2", "1.414214", 1.0),
        ("x<3", "$3>x$", 1.0),
        ("x<3", "$x\\le 3$", 0.0),
        ("1<x<3", "$1<x<3$", 1.0),
        ("1<x<3", "$1<x<4$", 0.0),
        ("x<1/2^{98}", "$x<1/2^{99}$", 0.0),
        ("x<3", "$(-\\infty,3)$", 1.0),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "$\\begin{pmatrix}1\\\\2\\end{pmatrix}$", 1.0),
        ("\\begin{pmatrix}1\\\\2e-7\\end{pmatrix}", "$\\begin{pmatrix}1\\\\1e-7\\end{pmatrix}$", 0.0),
        # Numbers too large to write out.
        ("2^{1000000000}", "$2^{1000000000}$", 1.0),
        ("2^{1000000000}", "$2^{1000000001}$", 0.0),
        ("2^{1000000000}", "$4^{500000000}$", 1.0),
        ("9^{9^{9^9}}", "$9^{9^{9^9}}$", 1.0),
        ("9^{9^{9^9}}", "$9^{9^{9^8}}$", 0.0),
        ("3", "$9^{9^{9^9}}$", 0.0),
        ("(10^9)!", "$(10^9)!+1$", 0.0),
        ("3", "$(10^{9})!$", 0.0),
        ("120", "$5!$", 1.0),
        ("5", "It is 5!", 1.0),
        ("2^{1000000000}", "1", 0.0),
        ("5", "$\\sum_{i=1}^{10^{12}} i$", 0.0),
        ("5050", "$\\sum_{i=1}^{100} i$", 1.0),
        # Words around.
        ("0.\\overline{3}", "$\\frac13$", 1.0),
        ("72", "The answer is 72.", 1.0),
        ("72", "72", 1.0),
        ("72", "no idea", 0.0),
        ("\\frac{1}{2}", "so we get 0.5", 1.0),
        ("\\text{B}", "$\\text{B}$", 1.0),
        ("\\boxed{3}", "3", 1.0),
        ("3:4", "3:4", 1.0),
        ("x^2+y^2=25", "$x^2+y^2=25$", 1.0),
        ("4", "Step 1. add 2. Step 2: 2+2=4", 1.0),
        ("4", "**4**", 1.0),
        ("4", "I get 4 a day", 1.0),
        ("3", "GPT-3 gives 3", 1.0),
        ("10", "a 10-year plan", 1.0),
        ("6", "$2x=12$ so x is 6", 1.0),
        ("(x+1)(x-1)", "x^2 - 1", 1.0),
        ("sin(x)", "$\\sin x$", 1.0),
        ("\\sqrt{2}", "sqrt(2)", 1.0),
        ("no solution", "$\\text{no solution}$", 1.0),
        ("1", "2e-7", 0.0),
    ],
)  # fmt: skip
def test_math(answer: str, completion: str, score: float) -> None:
    pytest.importorskip("math_verify")
    assert Math()(SimpleNamespace(answer=answer), completion) == score


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("x = - 5", "$x = - 5$"),
        ("so 1 1/2 cups", r"so $1\frac{1}{2}$ cups"),
        ("It is 2.5E-3.", r"It is $2.5\times 10^{-3}$"),
        ("10^-7 or 2**10", "$10^{-7}$ or $2^{10}$"),
        ("50% of $3", r"$50\%$ of $3$"),
        (r"$3/4$ and 2", "$3/4$ and $2$"),
        ("a 10-year plan (see [3])", "a $10$-year plan (see $[3]$)"),
        ("- 5 apples\n- 3 pears", "- $5$ apples\n- $3$ pears"),
        ("roots are 1, 2", "roots are $1, 2$"),
        ("7 (seven) or 8) then", "$7$ (seven) or $8$) then"),
        ("no idea", "no idea"),
    ],
)
def test_plain_text_becomes_latex(text: str, latex: str) -> None:
    assert in_latex(text) == latex


def test_math_ends() -> None:
    pytest.importorskip("math_verify")
    started = time.process_time()
    for text in ("9^{9^{9^{9}}}", "(9^9)!", "2^{10^{12}} + 1", r"\prod_{i=1}^{10^9} i", r"\binom{10^9}{10^8}"):
        assert Math(seconds=1)(SimpleNamespace(answer="7"), f"${text}$") == 0.0
    for text in ("$", "1 ", "1/", "(", "**", "a ", r"\boxed{", "- ", "1, "):
        in_latex(text * (20_000 // len(text)))
    assert time.process_time() - started < 5
    with pytest.raises(UserError, match="seconds=0"):
        Math(seconds=0)
