"""Verifier `math`: equality of mathematical expressions."""

from __future__ import annotations

import functools
import re
import threading
from typing import Annotated, Any, ClassVar

from vantage.core import between, component
from vantage.core.errors import require
from vantage.rewards import equality
from vantage.rewards.textual import Graded


@component(label="verifier math")
class Math:
    """Verifier that scores 1 where the completion's expression equals the reference's: math-verify parses, `equality` compares.

    Expressions are in `$...$`, other marks of LaTeX or a box; outside of them plain mathematics is read too:
    "x = -5", "3x+4y+14=0", "2e-7", "1 1/2" (a mixed number).

    Attributes:
        seconds: time allowed for parsing and for comparing, each; in a thread that is not the main one the caller must
            end it.

    Raises (when called):
        ImportError: math-verify is not installed.
        ValueError: the reference answer cannot be read as mathematics.
    """

    seconds: Annotated[int, between(1, 3600)] = 5
    isolated: ClassVar[bool] = True

    def prepare(self) -> None:
        """Import the library ahead of the first call."""
        _math_verify()

    def row_seconds(self, problem: Graded) -> float:
        """Return the time that a completion may take: reading it and comparing."""
        return 2.0 * self.seconds

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when the expressions are equal, else 0.0 (also when the time was not enough)."""
        library = _math_verify()
        # The library's timeout uses SIGALRM, which Python allows in the main thread alone.
        seconds = self.seconds if threading.current_thread() is threading.main_thread() else 0
        read = functools.partial(library.parse, parsing_timeout=seconds)
        latex, plain = library.LatexExtractionConfig(boxed_match_priority=0), library.ExprExtractionConfig()
        reference = read(in_latex(problem.answer, whole=True), extraction_config=[latex])
        if not reference:
            raise ValueError(f"the reference answer {problem.answer[:80]!r} cannot be read as mathematics")
        found = read(in_latex(completion), extraction_config=[latex]) or read(
            completion, extraction_config=[latex, plain]
        )
        return float(any(_same(one, other, seconds) for one in reference for other in found))


def _same(gold: Any, found: Any, seconds: int) -> bool:
    """Return whether two parsed answers are equal, False where the time is not enough."""
    if isinstance(gold, str) or isinstance(found, str):
        return isinstance(gold, str) and isinstance(found, str) and gold.strip() == found.strip()
    library = _math_verify()
    try:
        same = library.utils.timeout(timeout_seconds=seconds)(equality.equal)(gold, found)
        # The library converts numbers to text, however large.
        known = same is not None or any(equality.size(each) > equality.LARGEST for each in (gold, found))
    except library.errors.TimeoutException:
        return False
    except Exception:  # sympy raises exceptions of many types
        known = False
    return bool(same) if known else bool(library.verify([gold], [found], timeout_seconds=seconds))


@functools.cache
def _math_verify() -> Any:
    import logging

    library = require("math_verify", "language")
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return library


# text to LaTeX ---------------------------------------------------------------------------------------------------------

_MATHS = re.compile(
    r"\$\$.+?\$\$|\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\]|\\f?boxed\s*\{(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*\}",
    re.DOTALL,
)
_LONGEST = 500
"""Largest number of characters of plain text that are tried as one expression."""
_FUNCTION = r"(?:sqrt|sin|cos|tan|log|ln|exp|pi)"
# A number, a single letter, an operator, a command of LaTeX.
_ATOM = (
    r"(?:[\d+\-*/^=()\[\]{}<>|%√π∞≤≥≠°×·÷−½¼¾²³∪]|[.,:](?=\d)|(?<=[\d)])!(?![\s!]*$)|\\[A-Za-z]+|\\[{}%,;!]|"
    rf"(?<![A-Za-z'’\\])(?:{_FUNCTION}|[A-Za-z])(?![A-Za-z'’]))"
)
_LIST = re.compile(rf"{_ATOM}(?:,?[ \t]?{_ATOM})*")
_ASKED = re.compile(r"\b(?:answers?|solutions?|roots?|values?|zeros?|are)\b[^.\n]{0,30}$", re.IGNORECASE)
_SYMBOLS = str.maketrans(
    {
        "−": "-", "÷": "/", "²": "^{2}", "³": "^{3}", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "√": r"\sqrt",
        "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ",
        "°": r"^\circ ",
    }
)  # fmt: skip


def in_latex(text: str, whole: bool = False) -> str:
    """Return the text with every expression in `$...$`, those in plain text included.

    Args:
        text: a completion or a reference answer.
        whole: take the whole text for one expression where nothing in it is marked as one.
    """
    text = _without_currency(text.strip())
    if not whole:
        # Python's powers, then Markdown.
        text = re.sub(r"(?<=[\w)])\*\*(?=[\w(-])", "^", text).replace("**", "").removesuffix(".")
    if (whole or _LIST.fullmatch(text)) and not _MATHS.search(text):
        return f"${_latex(text, plain=True)}$"
    parts, at = [], 0
    for match in _MATHS.finditer(text):
        parts += [_LIST.sub(_wrapped, text[at : match.start()]), _latex(match[0])]
        at = match.end()
    return "".join([*parts, _LIST.sub(_wrapped, text[at:])])


def _wrapped(match: re.Match[str]) -> str:
    """Put a list of plain expressions into `$...$`: each of them, or all in one where several answers are announced."""
    if len(match[0]) > _LONGEST:
        return match[0]
    before = match.string[max(0, match.start() - 60) : match.start()]
    if _ASKED.search(before):
        return _one(match[0], before)
    pieces = re.split(r"(,[ \t])", match[0])
    return "".join(
        piece if place % 2 else _one(piece, "".join([before, *pieces[:place]])) for place, piece in enumerate(pieces)
    )


def _one(run: str, before: str) -> str:
    """Put an expression into `$...$`, without characters that belong to the words around it."""
    first, last = 0, len(run)
    if re.search(r"(?:^|\n)[ \t]*$", before):
        first = re.match(r"(?:[-*+] )?", run).end()  # type: ignore[union-attr]  # a list's bullet
    elif before[-1:].isalnum() and run[:1] in "-+":
        first = 1  # a hyphen
    while first < last:
        text = run[first:last]
        open_, close = sum(map(text.count, "([{")), sum(map(text.count, ")]}"))
        if text[0] in " */^=|,<>%)]}" or (text[0] in "([{" and open_ > close) or re.match(r"[aAI] ", text):
            first += 1
        elif text[-1] in " +-*/^=|,<>!([{" or (text[-1] in ")]}" and close > open_) or re.search(r" [aAI]$", text):
            last -= 1
        else:
            break
    text = run[first:last]
    if not re.search(r"\d|\\[A-Za-z]|[A-Za-z)] ?[-+*/^=<>]|[-+*/^=<>] ?[A-Za-z(]", text):
        return run
    return f"{run[:first]}${_latex(text, plain=True)}${run[last:]}"


def _latex(text: str, plain: bool = False) -> str:
    """Convert other notation to LaTeX: symbols, 2e-7, 1 1/2, repeating decimals, and in plain text functions and exponents."""
    text = text.translate(_SYMBOLS)
    text = re.sub(r"(?<![\w.\\])(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d+)(?![\w.])", r"\1\\times 10^{\2}", text)
    text = re.sub(r"(?<![\w.,^{/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w./^])", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<!\d)(\d{0,50})\.(\d{0,50})\\overline\{(\d{1,50})\}", _repeating, text)
    if plain:
        text = re.sub(r"(?<!\\)%", r"\\%", text)
        text = re.sub(r"\^\s*(?:\(([^()]*)\)|([+-]?\d+))", lambda match: f"^{{{match[1] or match[2]}}}", text)
        if "\\" not in text:
            text = re.sub(r"sqrt\s*(?:\(([^()]*)\)|(\d+))", lambda match: rf"\sqrt{{{match[1] or match[2]}}}", text)
            text = re.sub(r"(?<![A-Za-z\\])(sin|cos|tan|log|ln|exp|pi)(?![A-Za-z])", r"\\\1 ", text)
    return text


def _repeating(match: re.Match[str]) -> str:
    whole, still, repeated = match.groups()
    below = (10 ** len(repeated) - 1) * 10 ** len(still)
    above = int(f"{whole or 0}{still}{repeated}") - int(f"{whole or 0}{still}")
    return rf"\frac{{{above}}}{{{below}}}"


def _without_currency(text: str) -> str:
    """Remove dollar signs of amounts: escaped ones, and those before numbers that do not enclose mathematics."""
    text = re.sub(r"\\\$(?=\s?[\d.])", "", text)
    amounts = re.compile(r"\$(?=\s?\d[\d,]*(?:\.\d+)?(?:[\s,;:!?)\-]|\.(?:\s|$)|$))")
    if not amounts.search(text):
        return text
    insides = re.findall(r"\$([^$]*)\$", text.replace("$$", ""))
    worded = any(
        re.search(r"(?<![\\A-Za-z{])[A-Za-z]{3,}", re.sub(r"\\\w+\s*(?:\{[^{}]*\})?", "", inside)) for inside in insides
    )
    return amounts.sub("", text) if text.count("$") % 2 or worded else text
