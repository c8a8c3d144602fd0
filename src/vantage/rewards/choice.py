r"""Verifier `choice`: the option of a multiple-choice question that a completion states as its answer.

The text is normalised (Unicode NFKC, LaTeX and Markdown marks removed, reasoning before `</think>` left out), and every mention of
an option becomes one character: a capital letter that stands alone, a letter in brackets or quotes, or the text of an option where
the problem has its options. "A" before an ordinary word is the article, "I" before one the pronoun; a bare small letter counts at
the end of a clause where an answer is expected. Options that are denied ("not A", "A and C are wrong", "rule out A") are dropped.

The first of these forms that occurs decides, and of several statements of one form the last:

1. `\boxed{...}`;
2. a statement that names the answer: "the answer is B", "Answer: b", "B is the correct answer", "the correct option is B";
3. an option that the completion begins with, unless a list of the options follows;
4. an option that is called right or chosen: "C is right", "I choose B", "B: correct";
5. "I think it is B", "so B.", "... is Paris." where Paris is an option;
6. a line that is, or begins with, an option, unless the lines list them;
7. the only option that is mentioned at all.

A question ("is it A?") is no statement, and a statement of several options ("A or B") is no answer.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from vantage.annotations import at_least, at_most
from vantage.core.component import component
from vantage.rewards.textual import Graded

# Private-use characters that replace mentions: an option's text, a letter in brackets, a capital, a small letter; + its index.
_TEXT, _MARKED, _CAPITAL, _SMALL = 0xE000, 0xE020, 0xE040, 0xE060
_DENIED = "\ue080"
X = f"[{chr(_TEXT)}-{chr(_SMALL - 1)}]"
ANY = f"[{chr(_TEXT)}-{chr(_SMALL + 31)}]"
_FIRM = f"[{chr(_TEXT)}-{chr(_CAPITAL - 1)}]"
_BRACKET = f"[{chr(_MARKED)}-{chr(_CAPITAL - 1)}]"

_VERB = (
    r"(?:is|isn|are|aren|was|wasn|were|be|being|seems?|looks?|appears?|must|can|cannot|could|would|should|will|won|has|have|does|do|doesn|"
    r"because|since|and|or|but|nor|as|for|not|fits?|works?|says?|states?|makes?|gives?|match|matches|describes|due|which|over|instead|it|satisf(?:y|ies)|"
    r"holds?|remains?|meets?|applies|follows|est|es|ist)"
)
_ADVERB = (
    r"(?:the|only|most|also|both|all|clearly|definitely|obviously|simply|just|therefore|thus|then|indeed|really|actually|probably|likely|"
    r"certainly|surely|still|again|always|in|fact|my|our|final|single|so|entirely|completely|equally|absolutely)"
)
_NOUN = r"(?:options?|choices?|letters?|answers?|alternatives?|statements?|items?|number|opci[oó]n|la|el|le|die|選項|选项|项|項)"
_GOOD = r"(?:correct|right|best|proper|appropriate|accurate|true)"
_IS = r"(?:is|are|was|were|seems?|looks?|appears?|must\s+be|would\s+be|should\s+be|has\s+to\s+be|being|est|es|ist|sont|sind)"
_RIGHT = (
    r"(?:(?:correct|right|best|appropriate|accurate|solution|richtig|korrekt|correcte|correcta|correto|correta|juste)(?![\w-])|"
    r"[✓✔✅☑]|正确|正確|对|對)"
)
_WRONG = (
    r"(?:(?:wrong|incorrect|false|invalid|impossible|untrue|inaccurate|mistaken|eliminated|excluded|unlikely|ruled\s+out|out|falsch|faux|"
    r"fausse|falso|falsa|incorrecta|incorrecto|неверно)\b|[✗✘❌×]|不对|不對|不正确|错|錯|不是)"
)
_NOT = (
    r"(?:\b(?:not|cannot|never|neither|nor|unlike|rather\s+than|instead\s+of|except(?:\s+for)?|rul(?:e|ed|es|ing)\s+out|eliminat(?:e|ed|es|ing)|"
    r"exclud(?:e|ed|es|ing)|reject(?:ed|s|ing)?|discard(?:ed|s|ing)?|nicht|kein|pas|no\s+es|não\s+é|non\s+è|не)\b|n['’]t\b|不是|不选|不選|不会是|排除)"
)
_NEITHER = r"(?:not\s+(?!wrong|incorrect|false|bad|ruled)|" + _WRONG + ")"
_AND = r"(?:and|or|nor|und|oder|et|ou|y|o|e|ni|&|/|和|或|与|與|、)"
_ITEMS = rf"{X}(?:\s*,\s*{X}){{0,25}}\s*,?\s*{_AND}\s*{X}"
_CLOSE = rf"\s*{_FIRM}?\s*"  # "B) Paris" is two mentions, of which the letter counts
_LATIN = "A-Za-z0-9\u00c0-\u024f\u0400-\u04ff_"
_ALONE_BEFORE = rf"(?<![{_LATIN}'’\\^+\-])(?<![A-Za-z]\.)(?<![{_LATIN}]\()"
_ALONE_AFTER = rf"(?![{_LATIN}'’^+#]|-\w|\.[A-Za-z]\b)"
_END = r"(?=\s*(?:$|[\n.,;:!?)\]}>|/<。、]|(?:because|since|as|for|and|or|but|due|which|where|given|not|with)\b))"
_LINK = (
    rf"(?:\s|[:=>\"“'#\-–—,~]|→|⇒|\b(?:is|was|be|are|would|should|must|has|to|that|it|here|now|{_ADVERB}|{_NOUN}|est|es|ist|seria|sería|"
    r"(?:I|we)\s+(?:think|believe|guess|say|get|have))\b|[èé](?=\s)|是|は|为|為|应该|應該|应|應|选|選|은|는)"
)
_SAYS = r"(?:[:=>→⇒#\n–—-]|\b(?:is|was|be|are|est|es|ist)\b|[èé](?=\s)|是|は|为|為|选|選|은|는)"
_ANSWER = (
    rf"(?:\b(?:answers?|ans|réponse|respuesta|resposta|antwort|risposta)\b|ответ|答案|正解|答え|정답|답|####|"
    rf"\bfinal\s+(?:choice|option|decision)\b|\b{_GOOD}\s+(?:answer\s+)?(?:option|choice|one|letter|statement|response|alternative)\b)"
)
_MARKS_AHEAD = r"(?:[^\S\n]|[#>\-])*"  # of one line: over several it would be tried again from each of them
_STOP = r"(?=\s*(?:$|[\n.!;,。)]))"


def _forms(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE | re.MULTILINE) for pattern in patterns)


_DENIALS = _forms(
    rf"{_NOT}(?:\s|\b(?:be|is|it|this|that|could|can|would|think|believe|say|necessarily|possibly|either|choose|pick|select|{_ADVERB}|"
    rf"{_NOUN})\b){{0,12}}(?P<x>{_ITEMS}|{ANY})",
    rf"(?P<x>{_ITEMS})\s*(?:are|were|both|sont|sind)\s+(?:{_ADVERB}\s+){{0,3}}{_NEITHER}",
    rf"(?P<x>{_ITEMS}|{X})[)\s]{{0,3}}\?",
    rf"(?P<x>{_BRACKET})\s*{_WRONG}{_END}",
    rf"(?P<x>{X}\s*{_FIRM}?)\s*(?:{_IS}\s+(?:{_ADVERB}\s+){{0,3}}{_NEITHER}|(?:is|was|does|do|could|would|must|will|wo|ca)(?:n['’]t|\s+not)\b|"
    rf"(?:cannot|can\s+not)\b(?!\s+be\s+(?:wrong|ruled|false|excluded))|[:\-–—=(→]\s*(?:not\b|{_WRONG})|不|错|錯|n['’]est\s+pas)",
)
_ANSWERS = _forms(
    rf"{_ANSWER}(?={_LINK}{{0,40}}?{_SAYS}){_LINK}{{0,40}}(?P<x>{ANY})",
    rf"{_ANSWER}\s+(?:{_NOUN}\s+)?(?P<x>{ANY}){_STOP}",
    rf"\banswers?\s+(?:to|for|of|that|given|based|as|here|,)[^.!?\n。{X[1:-1]}]{{0,80}}\b(?:is|be)\s*:?\s*(?:{_NOUN}\s+)?(?P<x>{ANY})",
    rf"(?P<x>{X}){_CLOSE}{_IS}\s+(?:{_ADVERB}\s+){{0,4}}(?:{_GOOD}\s+)?(?:answer|choice|option)\b",
)
_LEAD = re.compile(
    rf"[\s#>\"]*(?:{_NOUN}\s*)?(?P<x>{_BRACKET}|{ANY}(?=\s*(?:$|[\n.:,;!(\-–—。]|{_FIRM}|because\b|since\b)))",
    re.IGNORECASE,
)
_VERDICTS = _forms(
    rf"(?P<x>{_ITEMS})\s*(?:are|were|both|sont|sind)\s+(?:{_ADVERB}\s+){{0,4}}{_RIGHT}",
    rf"(?P<x>{_BRACKET})\s*{_RIGHT}{_END}",
    rf"(?P<x>{X}){_CLOSE}(?:(?:{_IS}\s+(?:{_ADVERB}\s+){{0,4}}|是|(?=[正对對])){_RIGHT}|[:\-–—=(→]\s*(?:{_IS}\s+)?{_RIGHT}{_END})",
    r"(?:\b(?:choose|chose|choosing|pick|picked|select|selected|go(?:ing)?\s+(?:with|for)|went\s+with|opt(?:ed|ing)?\s+for|settle\s+on|"
    rf"vote\s+for|conclude|choisis|elijo|wähle|выбираю)\b|选择|選擇|选|選)(?:\s|:|\b(?:that|it|is|{_NOUN}|{_ADVERB})\b){{0,12}}(?P<x>{ANY})",
)
_WEAK = _forms(
    r"\b(?:it|this|that|which|solution|result|guess|bet|vote|pick|choice|option|correct|right|best|one|richtig|c)"
    rf"(?:['’]s|['’]est|\s+(?:is|was|must\s+be|should\s+be|has\s+to\s+be|would\s+be|est|es|ist))\s+(?:{_ADVERB}\s+){{0,4}}(?:{_NOUN}\s+)?"
    rf"(?P<x>{ANY})",
    r"(?:\b(?:so|thus|therefore|hence|donc|also|luego)\b|[∴⇒→]|=>|所以|因此|故)[,:]?\s*(?:it\s+is\s+|it['’]s\s+|the\s+)?"
    rf"(?:{_NOUN}\s+)?(?P<x>{X}){_STOP}",
    rf"\bI\s+(?:think|believe|say|guess|would\s+say)\s+(?:that\s+)?(?:{_NOUN}\s+)?(?P<x>{X}){_END}",
    rf"(?P<x>{X}){_CLOSE}{_IS}\s+(?:{_ADVERB}\s+){{0,4}}true\b",
    rf"\b(?:is|are|was|were|be|equals?)\s+(?:{_ADVERB}\s+){{0,2}}(?P<x>{_FIRM})(?=\s*(?:$|[\n.!。]))",
    rf"[=:] ?(?P<x>[{chr(_TEXT)}-{chr(_MARKED - 1)}])(?= ?(?:$|[\n.!。]))",
)
_ALONE, _LINE, _LISTED, _PLAIN = _forms(
    rf"^{_MARKS_AHEAD}(?:{_NOUN}\s*)?(?P<x>{ANY})[.:]?{_CLOSE}[.!]?\s*$",
    rf"^{_MARKS_AHEAD}(?:{_NOUN}\s*)?(?P<x>{_BRACKET}|{X}(?=\s*(?:[.:,\-–—]|{_FIRM})))",
    rf"(?:^|[.;,\n])\s*(?P<x>{_BRACKET}|{X}(?=\s*(?:[.:\n]|{_FIRM}|$)))",
    # In running text, after the edge of a clause or a word that introduces an answer: "vitamin C" is none.
    rf"(?:^|[.,;:!?(。、]|\b(?:{_NOUN}|{_ADVERB}|think|say|maybe|perhaps|it|is|be|but|and|or|with|of|out|for)\s|[\u3000-\u9fff])"
    rf"\s*(?P<x>[{chr(_CAPITAL)}-{chr(_SMALL - 1)}])(?=\s*(?:$|[\n.,;:!?()。、]|{_VERB}\b|[\u3000-\u9fff]))",
)
_SEVERAL = re.compile(
    rf"{_CLOSE}((?:\s*(?:,|;|{_AND})\s*(?:either\s+|both\s+|{_NOUN}\s+)?{X})+)(?!\s*{_VERB}\b)", re.IGNORECASE
)


def _letter(mention: str) -> str:
    return chr(65 + ord(mention) % 32)


def stated(completion: str, count: int, texts: Sequence[str] = ()) -> str:
    """Return the letter of the option that a completion states as its answer, '' where it states none or several.

    Args:
        completion: the text.
        count: number of options, 2 to 26; later letters are ordinary words.
        texts: the options' texts, if known.
    """
    plain = _clean(completion.rpartition("</think>")[2])
    for box in _boxed(plain):
        inside = _mentions(box, count, texts)
        match = re.match(rf"\W*?(?:{_NOUN}\s*)?(?P<x>{ANY})(?=\W|$)", inside, re.IGNORECASE)
        if match is not None:
            return _read(inside, match) or ""
    text = _mentions(plain, count, texts)
    for form in _DENIALS:
        text = form.sub(_deny, text)
    answer = _last(text, _ANSWERS)
    if answer is None and (lead := _LEAD.match(text)) and not _lists(text):
        answer = _read(text, lead)
    for forms in (_VERDICTS, _WEAK):
        if answer is None:
            answer = _last(text, forms)
    if answer is None:
        answer = _of_lines(text)
    if answer is None:
        mentioned = {_letter(each) for each in re.findall(_BRACKET, text)}
        mentioned |= {_letter(match["x"]) for match in _PLAIN.finditer(text)}
        answer = mentioned.pop() if len(mentioned) == 1 else ""
    return answer


_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|operatorname|bf|rm)\s*\{([^{}]*)\}")
_MARKS = re.compile(r"\\(?:left|right|displaystyle|quad|,|;|!|:|\(|\)|\[|\]| )|\$|~|(?<!\w)_+|_+(?!\w)")
_BOLD = re.compile(r"(\*{1,3}|`{1,3})([^*`\n]{1,200}?)\1")


_STYLED = re.compile("[\u3000\uff01-\uff5e\u24b6-\u24e9\U0001d400-\U0001d7ff]+")


def _clean(text: str) -> str:
    """Remove marks of LaTeX, Markdown and Unicode around words and letters; a single letter in bold gets brackets."""
    text = _STYLED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), re.sub("[\ue000-\uf8ff]", " ", text))
    for _ in range(2):
        text = _WRAPPED.sub(r"\1", text)
    text = _MARKS.sub(" ", text)
    text = _BOLD.sub(lambda match: f"({match[2]})" if len(match[2]) == 1 else match[2], text).replace("*", " ")
    return re.sub(r"\n ?(?:\n ?)+", "\n\n", re.sub(r"[^\S\n]+", " ", text.replace("\r", "\n")))


def _boxed(text: str) -> Iterator[str]:
    """Yield the content of each `\\boxed{...}`, the last one first, inner braces included."""
    for start in [match.end() for match in re.finditer(r"\\f?boxed ?\{", text)][-10:][::-1]:
        depth = 1
        for place in range(start, min(len(text), start + 500)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                yield text[start:place]
                break


def _mentions(text: str, count: int, texts: Sequence[str]) -> str:
    """Replace each mention of an option by its character."""
    last = chr(64 + count)
    options = {_key(each): index for index, each in enumerate(texts)}
    # An option whose text is the letter of one is taken for the letter.
    options = {
        key: index for key, index in options.items() if key and not (len(key) == 1 and "A" <= key.upper() <= last)
    }
    if options:
        longest = "|".join(re.escape(key).replace(r"\ ", r"\s+") for key in sorted(options, key=len, reverse=True))

        def by_text(match: re.Match[str]) -> str:
            index = options.get(" ".join(match[0].split()).casefold())
            return match[0] if index is None else chr(_TEXT + index)

        text = re.sub(rf"(?<![\w.+^/\-])(?:{longest})(?![\w^/]|[.,]\d)", by_text, text, flags=re.IGNORECASE)
    inside = f"[A-{last}a-{last.lower()}]"
    text = re.sub(
        rf"(?<![{_LATIN}\\])(?:\(\s?({inside})\s?\)|\[\s?({inside})\s?\]|[\"“「『'‘«]\s?({inside})\.?\s?[\"”」』'’»]|【\s?({inside})\s?】|<({inside})>)",
        lambda match: chr(_MARKED + ord(match[match.lastindex or 1].upper()) - 65),
        text,
    )
    text = re.sub(
        rf"{_ALONE_BEFORE}(?:A(?!\s+(?!{_VERB}\b)[a-z\u00df-\u00ff])|[B-HJ-Z]|I(?=\s*(?:$|[\n.,;:!?)]|is\b))){_ALONE_AFTER}\)?",
        lambda match: (
            chr((_CAPITAL if len(match[0]) == 1 else _MARKED) + ord(match[0][0]) - 65)
            if match[0][0] <= last
            else match[0]
        ),
        text,
    )
    return re.sub(
        rf"{_ALONE_BEFORE}(a(?!\n[a-z])|[b-{last.lower()}])(?:\)|{_ALONE_AFTER}{_END})",
        lambda match: chr((_SMALL if len(match[0]) == 1 else _MARKED) + ord(match[1]) - 97),
        text,
    )


def _deny(match: re.Match[str]) -> str:
    start, end = (place - match.start() for place in match.span("x"))
    whole = match[0]
    return whole[:start] + re.sub(ANY, _DENIED, whole[start:end]) + whole[end:]


def _read(text: str, match: re.Match[str]) -> str | None:
    """Return the letter that a match states, '' where it states two; None for more: "Possible answers: A, B, C" states nothing."""
    more = _SEVERAL.match(text, match.end("x"))
    letters = {_letter(each) for each in re.findall(ANY, match["x"] + (more[1] if more else ""))}
    return letters.pop() if len(letters) == 1 else "" if len(letters) == 2 else None


def _last(text: str, forms: Sequence[re.Pattern[str]]) -> str | None:
    """Return the option of the last statement of these forms, None where there is none."""
    found = sorted(
        (match for form in forms for match in form.finditer(text)),
        key=lambda match: (match.end("x"), -match.start("x")),
    )
    return next((read for match in reversed(found) if (read := _read(text, match)) is not None), None)


def _lists(text: str) -> bool:
    """Return whether the text lists the options: A, then B."""
    return [_letter(match["x"]) for match in _LISTED.finditer(text)][:2] == ["A", "B"]


def _of_lines(text: str) -> str | None:
    """Return the option that a line states, '' where lines state several in order, None where no line does."""
    for form in (_ALONE, _LINE):
        found = [_letter(match["x"]) for match in form.finditer(text)]
        while found[:2] == ["A", "B"]:
            size = next((place for place, each in enumerate(found) if each != chr(65 + place)), len(found))
            found = found[size:]
            if not found:
                return ""
        if found:
            return found[-1]
    return None


@component(label="verifier choice")
class MultipleChoice:
    r"""Verifier that scores 1 where the completion states the reference's option; the module's docstring defines a statement.

    The options are the problem's field `choices`, `options` or `endings`: a list of texts, their JSON text, `{"text": [...],
    "label": [...]}`, or an object of texts by letter. Without them an option is a letter. The reference answer is a label, a
    letter, a whole number that counts the options from 0, or the text of one. A whole number below the number of options is
    taken for an index even where it is also an option's text (options 4, 2, 0, 1 and the answer 0: A); for data that gives the
    text set `reference=text`.

    Attributes:
        letters: number of options of a problem that does not list its own, 2 to 26; a later letter is no answer.
        reference: kind of the reference answer: "auto" as above, "index" (from 0) or "text".

    Raises (when called):
        ValueError: the reference answer is none of the options.
    """

    letters: Annotated[int, at_least(2), at_most(26)] = 10
    reference: Literal["auto", "index", "text"] = "auto"
    isolated: ClassVar[bool] = False

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when the options agree, else 0.0."""
        labels, texts = _options(problem.fields)
        count = len(texts) if 2 <= len(texts) <= 26 else self.letters
        reference = self._index(problem.answer, labels, texts, count)
        return float(stated(completion, count, texts) == chr(65 + reference))

    def _index(self, answer: str, labels: Sequence[str], texts: Sequence[str], count: int) -> int:
        bare = answer.strip().strip("()[]. ")
        keys = [_key(text) for text in texts]
        if self.reference != "text":
            if self.reference == "auto" and bare.upper() in labels:
                return labels.index(bare.upper())
            if self.reference == "auto" and len(bare) == 1 and 0 <= ord(bare.upper()) - 65 < count:
                return ord(bare.upper()) - 65
            if bare.isdecimal() and int(bare) < count:
                return int(bare)
        if self.reference != "index" and _key(answer) in keys:
            return keys.index(_key(answer))
        raise ValueError(f"the reference answer {answer[:80]!r} is neither a letter, a number nor one of the choices")


def _key(text: str) -> str:
    return " ".join(_clean(text).split()).casefold()


def _options(fields: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the labels (none: A, B, ...) and the texts of a problem's options."""
    given = next((fields[name] for name in ("choices", "options", "endings") if fields.get(name)), ())
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            given = ()
    labels: list[str] = []
    if isinstance(given, Mapping):
        held = given.get("text", given.get("texts"))
        labels = [
            str(label).strip().upper() for label in (given.get("label", ()) if isinstance(held, Sequence) else given)
        ]
        given = held if isinstance(held, Sequence) else list(given.values())
    if not isinstance(given, Sequence) or isinstance(given, str):
        given = ()
    texts = [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False, default=str) for each in given]
    # "A) Rome", "B) Paris": every text begins with its own letter.
    own = [re.match(r"\s*\(?([A-Za-z])[).:]\s*(.+)", text, re.DOTALL) for text in texts]
    if texts and all(match and match[1].upper() == chr(65 + place) for place, match in enumerate(own)):
        texts = [match[2] for match in own if match]
    return labels, texts
