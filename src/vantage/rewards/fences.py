"""Fenced blocks of Markdown in a completion, and the one that holds its answer."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

_PLAIN = ("", "text", "txt", "plaintext", "plain", "code")


class Block(NamedTuple):
    """Fenced block: the language in lower case ("" for none), the text, and whether it has a closing fence."""

    language: str
    text: str
    closed: bool


def fenced_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a text in order.

    As in CommonMark, a fence is three or more backticks or tildes, and ends at as many or more of them alone in a line; the
    fence's indentation is removed from the block. As in completions of models, an opening fence may follow other words in its
    line, a closing one may end the block's last line, and a fence with a language within a block means that the block was left
    open. A block that is never closed extends to the end of the text.
    """
    blocks: list[Block] = []
    inside: list[str] = []
    opened: _Opening | None = None
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        opening = _opening(line)
        bare = line.strip()
        if opened is None:
            opened = opening
        elif len(bare) >= len(opened.fence) and set(bare) == {opened.fence[0]}:
            blocks.append(_block(opened, inside, True))
            inside, opened = [], None
        elif opening is not None and opening.own and opening.language and opening.fence.startswith(opened.fence):
            blocks.append(_block(opened, inside, False))
            inside, opened = [], opening
        else:
            inside.append(line)
    if opened is not None:
        blocks.append(_block(opened, inside, False))
    return blocks


class _Opening(NamedTuple):
    fence: str
    language: str
    indent: int
    own: bool  # whether it begins its line


def _opening(line: str) -> _Opening | None:
    bare = line.lstrip(" \t")
    own = bare.startswith(("```", "~~~"))
    kind = bare[0] if own else "`"
    _, mark, rest = (bare if own else line).partition(kind * 3)
    info = rest.lstrip(kind)
    # In the middle of a line, "```" is taken for a fence where at most one word follows it.
    if not mark or "`" in info or (not own and len(info.split()) > 1):
        return None
    words = re.findall(r"[\w+#-]+", info[:100])
    fence = kind * (3 + len(rest) - len(info))
    return _Opening(fence, words[0].lower() if words else "", len(line) - len(bare) if own else 0, own)


def _block(opened: _Opening, lines: Sequence[str], closed: bool) -> Block:
    ends = [place for place, line in enumerate(lines) if not closed and line.rstrip().endswith(opened.fence)]
    if ends:
        lines = [*lines[: ends[0]], lines[ends[0]].rstrip().rstrip(opened.fence[0])]
    elif not closed and lines and set(lines[-1].strip()) == {opened.fence[0]}:
        lines = lines[:-1]  # start of a closing fence
    text = "\n".join(line[min(opened.indent, len(line) - len(line.lstrip())) :] for line in lines)
    first = next((line for line in text.split("\n") if line.strip()), "")
    return Block(opened.language, textwrap.dedent(text) if first[:1].isspace() else text, closed or bool(ends))


def answer_block(text: str, languages: Collection[str], reads: Callable[[str], bool]) -> str:
    """Return the block of a completion that holds its answer; the whole completion where there is none.

    It is the last closed block of the languages, as Open-R1 (`extract_code` of rewards.py, 0056faa) and verl
    (`prime_code`, 1acb854) take it; LiveCodeBench (`extract_code` of extraction_utils.py, 2328565) takes the first.
    Otherwise it is the last closed one without a language that `reads`, otherwise the last without a language; open blocks
    count only where there is no closed one of their kind. Blocks in other languages (a shell command, an output) are ignored.

    Args:
        text: the completion.
        languages: names of the language, in lower case.
        reads: whether a block without a language can be in the language.
    """
    blocks = fenced_blocks(text)
    named = [block for block in blocks if block.language in languages]
    plain = [block for block in blocks if block.language in _PLAIN]
    if len(blocks) == 1 and plain and not plain[0].closed:
        # Closing fence of a block that the prompt opened.
        before = text[: min(place for mark in ("```", "~~~") if (place := text.find(mark)) >= 0)]
        if reads(before) and not reads(plain[0].text):
            return before
    for kind in (named, [block for block in plain if reads(block.text)], plain):
        for closed in (True, False):
            found = [block.text for block in kind if block.closed is closed]
            if found:
                return found[-1]
    return text
