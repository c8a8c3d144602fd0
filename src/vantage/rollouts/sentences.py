"""Division of a written solution into sentences, as VinePPO divides answers to MATH."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

SHORT = 20
"""Characters below which a sentence is joined to the next."""
LONG = 100
"""Characters above which a sentence is cut near its middle."""
_FORMULA = re.compile(
    r"\[asy\].*?\[/asy\]|\\\(.*?\\\)|\\\[.*?\\\]|\$\$.*?\$\$|(?<!\\)\$.+?(?<!\\)\$(?!\$)|\\begin\{([^}]*)\}.*?\\end\{\1\}",
    re.DOTALL,
)
# A period before white space and a capital, unless the word before it has a letter or two (initials, titles); or a line break.
_SENTENCE = re.compile(r"(?<!\b[A-Za-z]\.)(?<!\s[A-Za-z]{2}\.)(?<=\.)(?=\s+[A-Z])|(?=\n)")
_CLOSED = (".$", ".$$", ".\\)", ".\\]")
"""Ends of a formula that ends a sentence."""
_OPENING = re.compile(r"\s*(\$|\$\$|\\\(|\\\[|\\begin\{[^}]*\}|\[asy\])\s*")
_HIDDEN, _WIDTH = "\0", 60
"""In the search for the middle of a sentence each formula counts 60 characters, whatever its length."""

_Marks = Sequence[tuple[re.Pattern[str], int]]
# Where a long piece may be cut: so many characters behind the start of a mark, the first kind that serves.
_IN_TEXT: _Marks = [(re.compile(mark), size) for mark, size in ((",", 1), (r"\sand\s", 4), (":", 1), (r"\sto\s", 3))]
_IN_FORMULA: _Marks = [
    (re.compile(re.escape(mark)), len(mark)) for mark in (",$", ",\\)", ",\\]", "=", "\\equiv", "+", "\\cancelto")
]


def sentence_starts(text: str) -> list[int]:
    r"""Return where sentences of a solution begin, in characters, 0 first.

    A sentence ends at a period before white space and a capital, at a line break, or with a formula that ends with a period;
    white space is at the front of the next. One below 20 characters is joined to the next, the last to the one before, unless
    it is closed by such a formula. Inside a formula (between $, \( \), \[ \], in an environment) only line breaks divide.
    Sentences above 100 characters are cut near their middle, at a comma, " and", a colon or " to", or else in a formula at
    a comma, "=" or "+", as long as that is possible.

    Source: VinePPO, `split_solution_inplace` of tasks/math_extract_steps_inplace.py, where of two equal formulas in a sentence only
    the first is divided at its line breaks.
    """
    hidden = _FORMULA.sub(lambda formula: _HIDDEN * len(formula[0]), text)
    ends = [match.start() for match in _SENTENCE.finditer(hidden)]
    starts = _joined(hidden, ends, SHORT, lambda piece: piece.endswith(".") or _HIDDEN in piece)
    formulas = list(_FORMULA.finditer(text))
    closed = [match.end() for match in formulas if match[0].endswith(_CLOSED)]
    starts = _joined(text, [*starts, *closed], SHORT, lambda piece: piece.endswith(_CLOSED), last=True)
    breaks = [match.start() + place.start() for match in formulas for place in re.finditer("\n", match[0])]
    starts = _joined(text, [*starts, *breaks], 3, lambda _: False, lambda piece: bool(_OPENING.fullmatch(piece)), True)
    pieces = zip(starts, [*starts[1:], len(text)], strict=True)
    return [start + place for start, end in pieces for place in _cut(text[start:end])]


def _joined(
    text: str,
    ends: Sequence[int],
    least: int,
    closed: Callable[[str], bool],
    opening: Callable[[str], bool] = lambda _: False,
    last: bool = False,
) -> list[int]:
    """Return the starts of pieces of a text, 0 first, that end at some of these places.

    A piece of fewer than `least` characters that is not `closed`, and one that is `opening`, goes on to the next place; with
    `last`, such a piece at the end of the text belongs to the one before.
    """

    def whole(piece: str) -> bool:
        return (len(piece) >= least or closed(piece)) and not opening(piece)

    starts = [0]
    for end in sorted({*ends}):
        if 0 < end < len(text) and whole(text[starts[-1] : end]):
            starts.append(end)
    return starts[:-1] if last and len(starts) > 1 and not whole(text[starts[-1] :]) else starts


def _cut(piece: str) -> list[int]:
    """Return the starts of the parts of a sentence, 0 first."""
    starts, at = [0], 0
    # Where parts are formulas, so that no words are sought. As in the authors' code its bounds are counted from the part that was
    # cut, and compared with places in the whole.
    low, high = -1, 0
    while at < len(starts):
        start = starts[at]
        part = piece[start : starts[at + 1] if at + 1 < len(starts) else len(piece)]
        place = None
        if len(part) > LONG:
            if not low <= start < high:
                place = _middle(part, _IN_TEXT, 2 * SHORT, True)
            if place is None:
                place = _middle(part, _IN_FORMULA, SHORT, False)
                if place is not None:
                    low, high = place if low < 0 else min(low, place), max(high, len(part))
        if place is None:
            at += 1
        else:
            starts.insert(at + 1, start + place)
    return starts


def _middle(part: str, marks: _Marks, least: int, hide: bool) -> int | None:
    """Return the place behind a mark that is nearest to the middle, None where it leaves fewer than `least` characters beside it.

    With `hide`, formulas count 60 characters, and marks in them do not count.
    """
    sizes = [len(match[0]) for match in _FORMULA.finditer(part)] if hide else []
    seen = _FORMULA.sub(_HIDDEN * _WIDTH, part) if hide else part
    for mark, width in marks:
        places = [match.start() + width for match in mark.finditer(seen)]
        if places:
            place = min(places, key=lambda one: abs(2 * one - len(seen)))
            count = seen[:place].count(_HIDDEN) // _WIDTH
            place += sum(sizes[:count]) - count * _WIDTH
            if min(place, len(part) - place) >= least:
                return place
    return None
