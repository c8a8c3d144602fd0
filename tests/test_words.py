"""Texts in the field's plain terms: first lines that name the thing, and none of the private idioms that the library had."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "vantage"
QUESTION = re.compile(r"(How|What|Where|Who|Why)\b")
IDIOM = re.compile(
    r"\bthe road\b|\btak(?:e|es|en|ing) (?:it|them) back\b|\bjudg(?:e|es|ed|ing)\b|\bgrows? (?:a|an|the|values|one)\b"
    r"|\bcrash would cost\b|\bparts? of (?:a|the) method\b|\bthere is none of\b|\bnever learns?\b|\bnobody\b|\bwhoever\b"
    r"|\bwho sees whom\b|\bread off\b|\b(?:means?|says?) nothing\b|\bat the door\b|\bone behind the other\b"
    r"|\bstands? beside\b|\bwhole or not at all\b|\bwhat (?:came|became) of\b|\btruth values?\b|\bin lockstep\b|\bpunish"
    r"|\bfeeds on\b|\bcomes? again\b|\bswitched off\b",
    re.IGNORECASE,
)


def docstrings(path: Path) -> list[tuple[int, str]]:
    """Return (line, text) of the docstrings of a module: its own, those of classes, functions and documented constants."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        for one in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str):
                found.append((one.lineno, one.value.value))
    return found


def other_texts(path: Path) -> list[tuple[int, str]]:
    """Return (line, text) of the comments of a module and of its strings, messages among them."""
    source = path.read_text()
    strings = [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return strings + [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


@pytest.mark.parametrize(
    "part", sorted(path.name for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
)
def test_texts_are_plain(part: str) -> None:
    """Docstrings, comments and messages of a package, or of a module beside the packages."""
    place = ROOT / part
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text.strip().splitlines()[0]}"
        for path in (sorted(place.rglob("*.py")) if place.is_dir() else [place])
        for question, texts in ((QUESTION, docstrings(path)), (None, other_texts(path)))
        for line, text in texts
        if IDIOM.search(text) or (question and question.match(text.strip()))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "question", "idiom"),
    [
        ("How a step is taken.", True, False),
        ("Whether a step is taken.", False, False),
        ("Take them back.", False, True),
        ("Policy that is judged.", False, True),
        ("Carries a batch along the road.", False, True),
        ("The policy grows a critic.", False, True),
        ("Return a copy that never learns.", False, True),
        ("Attention structure: who sees whom.", False, True),
        ("Soft punishment of long rows.", False, True),
        ("Memory grows with the number of rows.", False, False),
        ("Restore from `state_dict()`.", False, False),
    ],
)
def test_what_counts_as_idiom(text: str, question: bool, idiom: bool) -> None:
    assert (bool(QUESTION.match(text)), bool(IDIOM.search(text))) == (question, idiom)
