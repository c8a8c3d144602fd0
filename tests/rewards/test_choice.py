"""What the verifier `choice` reads as a stated answer, and what it takes for the reference."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from vantage.core.errors import UserError
from vantage.rewards.choice import MultipleChoice, stated

CITIES = ("Rome", "Paris", "Berlin", "Paris, Texas")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        # The article and the pronoun.
        ("A careful look shows that C is right.", "C"),
        ("A bird is not it", ""),
        ("A is right.", "A"),
        ("A", "A"),
        ("The answer is A because a river is long.", "A"),
        ("The answer is a bit tricky, so I choose B.", "B"),
        ("The answer is a.", "A"),
        ("Answer: a\nBecause it rains.", "A"),
        ("The answer: it is a\npower that we have", ""),
        ("I think it is B.", "B"),
        ("I think B, as I said.", "B"),
        ("I would say that I am unsure.", ""),
        ("I", "I"),
        ("The answer is I.", "I"),
        ("The answer is I think D.", "D"),
        ("A quick check: A, I believe, fails. So D.", "D"),
        # A later mention of a distractor.
        ("The answer is B. Many students choose A here.", "B"),
        ("The answer is B. Option A says that water boils at 50 degrees.", "B"),
        ("The correct answer is B, since option C ignores friction.", "B"),
        ("Answer: B\n\nExplanation: A is true only at sea level.", "B"),
        ("B is correct. A is true only for gases.", "B"),
        ("B\n\nIt is A that many people choose.", "B"),
        ("B. This is because A needs more heat, and C is a gas.", "B"),
        ("(B) because (A) needs more heat.", "B"),
        ("B, because A needs more heat", "B"),
        ("**B**\nA would need more heat.", "B"),
        ("Answer: (C)\nThis rules out (D).", "C"),
        # The last statement of a kind.
        ("The answer is C. No: the answer is B", "B"),
        ("The answer is A? No, B is the correct answer.", "B"),
        ("C is right. Wait, no. D is right.", "D"),
        (r"First \boxed{A}, but then \boxed{B}. A is out.", "B"),
        ("<think>The answer is A. Hmm, C is right.</think>\nB", "B"),
        # Forms of the letter.
        ("ANSWER: b", "B"),
        ("answer:b", "B"),
        ("Answer: (b)", "B"),
        ("Answer - B", "B"),
        ("Answer:\n\nB", "B"),
        ("### Answer\n**B**", "B"),
        ("**Answer: B**", "B"),
        ("**Answer:** B. Paris", "B"),
        ("The answer is: **B**", "B"),
        ("The answer is **(B)**.", "B"),
        ("the final answer is option B", "B"),
        ("The correct option is [B].", "B"),
        ("Correct choice: B", "B"),
        ("The answer to this question, as shown above, is (B).", "B"),
        ("The best answer here would be choice B.", "B"),
        ('{"answer": "B"}', "B"),
        ("<answer>B</answer>", "B"),
        ("<answer> b </answer>", "B"),
        ("#### B", "B"),
        (r"$\text{B}$", "B"),
        (r"$\mathrm{(B)}$", "B"),
        (r"\boxed{B}", "B"),
        (r"so $\boxed{\text{(B)}}$ holds", "B"),
        (r"\boxed{\textbf{B}}", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{B. 42}", "B"),
        (r"\(\boxed{\text{B}}\)", "B"),
        (r"\boxed{17}, so the answer is D", "D"),
        ("(b)", "B"),
        ("b", "B"),
        ("b)", "B"),
        ("B.", "B"),
        ("B:", "B"),
        ("`B`", "B"),
        ("*B*", "B"),
        ("'B'", "B"),
        ("option B", "B"),
        ("Option B", "B"),
        ("Definitely B!", "B"),
        ("It's B", "B"),
        ("It must be B.", "B"),
        ("I'd go with B", "B"),
        ("I choose option (B).", "B"),
        ("My guess is B.", "B"),
        ("So, B.", "B"),
        ("B is the answer.", "B"),
        ("I would choose A over B", "A"),
        ("After considering A, B, C and D, the best is C", "C"),
        ("D (all of the above)", "D"),
        ("Only C satisfies both conditions.", "C"),
        ("Final Answer: The final answer is $\\boxed{D}$. I hope it is correct.", "D"),
        ("Statement B is the only correct one.", "B"),
        ("Reasoning.\nB) Paris", "B"),
        ("Some thoughts first.\n\nB", "B"),
        ("Answer: \uff22", "B"),
        ("Answer: \U0001d401", "B"),
        # Denied options.
        ("not A", ""),
        ("It is not A but B.", "B"),
        ("The answer is not A.", ""),
        ("The answer is not A, it is D.", "D"),
        ("The answer isn't A or B; the answer is C.", "C"),
        ("The answer cannot be A, so it is B", "B"),
        ("A is wrong, B", "B"),
        ("A is wrong. C and D are false. B", "B"),
        ("Neither A nor C nor D, but B.", "B"),
        ("We can rule out A and C. D is impossible. Hence B.", "B"),
        ("I don't think it is A. B!", "B"),
        ("A) wrong\nB) correct\nC) wrong\nD) wrong", "B"),
        ("A: \u2717\nB: \u2713\nC: \u2717", "B"),
        ("B, not A", "B"),
        ("The answer is B. Not A.", "B"),
        ("C is right, unlike A.", "C"),
        ("B is not wrong, B is right", "B"),
        # Several, none, lists and questions.
        ("A or B", ""),
        ("The answer is A or B.", ""),
        ("Answer: A, B", ""),
        ("The answer is A and B", ""),
        ("The answer is B and C is wrong", "B"),
        ("Both A and B are correct.", ""),
        ("Possible answers: A, B, C, D. I choose C.", "C"),
        ("A) Oslo\nB) Bern\nC) Riga\nD) Rome", ""),
        ("A) Oslo\nB) Bern\nC) Riga\nD) Rome\n\nC", "C"),
        ("A. Oslo is in Norway. B. Bern is in Switzerland. So B is right.", "B"),
        ("A\nB\nC\nD", ""),
        ("Thinking, then writing: \nA). Oslo\nB). Bern\nC). Riga", ""),
        ("Is the answer A?", ""),
        ("Is it A? It is B.", "B"),
        ("the answer is Bonn", ""),
        ("Vitamin C is good for you", ""),
        ("Plan B, written in C++ on the U.S.A. side", ""),
        ("Let f(B) = 3", ""),
        ("42", ""),
        ("", ""),
        ("The answer is Z.", ""),
        # Other languages and their punctuation.
        ("答案是B。", "B"),
        ("答案：B", "B"),
        ("正确答案是（B）。", "B"),
        ("所以选B。", "B"),
        ("应选 B，不是 A。", "B"),
        ("A不对，B正确。", "B"),
        ("答えはBです。", "B"),
        ("정답은 B입니다.", "B"),
        ("La réponse est B.", "B"),
        ("La respuesta correcta es la B.", "B"),
        ("Die Antwort ist B, nicht A.", "B"),
        ("Ответ: B", "B"),
        ("«B»", "B"),
        ("「B」", "B"),
        ("【B】", "B"),
    ],
)  # fmt: skip
def test_stated_letter(text: str, letter: str) -> None:
    assert stated(text, 10) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Paris", "B"),
        ("paris.", "B"),
        ("The answer is Paris.", "B"),
        (r"\boxed{\text{Paris}}", "B"),
        ("The capital of France is Paris.", "B"),
        ("The answer is Paris, Texas", "D"),
        ("The answer is **Berlin**, not Rome.", "C"),
        ("Rome is wrong; Berlin is right.", "C"),
        ("B) Paris", "B"),
        ("B. Paris\n\nRome is in Italy.", "B"),
        ("A) Rome\nB) Paris\nC) Berlin\nD) Paris, Texas\n\nThe answer is (C) Berlin.", "C"),
        ("A) Rome is wrong\nC) Berlin is right", "C"),
        ("The seat of the French government equals Paris.", "B"),
        ("Capital of France: Paris", "B"),
        ("Parisians like Rome", ""),
        ("The answer is E.", ""),
        ("The answer is Lyon.", ""),
    ],
)
def test_stated_text(text: str, letter: str) -> None:
    assert stated(text, 4, CITIES) == letter


@pytest.mark.parametrize(
    ("answer", "fields", "letter", "reference"),
    [
        ("0", {"choices": ["4", "2", "0", "1"]}, "A", "auto"),
        ("0", {"choices": [4, 2, 0, 1]}, "A", "auto"),
        ("4", {"choices": ["4", "2", "0", "1"]}, "A", "auto"),
        ("0", {"choices": ["4", "2", "0", "1"]}, "C", "text"),
        ("2", {"choices": ["4", "2", "0", "1"]}, "B", "text"),
        ("2", {"choices": ["4", "2", "0", "1"]}, "C", "index"),
        ("0", {"choices": '["4", "2", "0", "1"]'}, "A", "auto"),
        ("B", {"choices": ["C", "A", "B"]}, "B", "auto"),
        ("B", {"choices": ["C", "A", "B"]}, "C", "text"),
        ("(b)", {}, "B", "auto"),
        ("3", {}, "D", "auto"),
        ("paris ", {"options": ["Rome", "Paris"]}, "B", "auto"),
        ("true", {"choices": ["False", "True"]}, "B", "auto"),
        ("true", {"choices": [False, True]}, "B", "auto"),
        ("21", {"options": ["A)12", "B)21", "C)7"]}, "B", "auto"),
        ("Bonn", {"options": {"A": "Rome", "B": "Bonn"}}, "B", "auto"),
        ("2", {"choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}}, "B", "auto"),
        ("$\\frac{1}{2}$", {"choices": ["1", "\\frac{1}{2}"]}, "B", "auto"),
        ("1", {"endings": ["goes on", "stops"]}, "B", "auto"),
    ],
)
def test_reference(answer: str, fields: dict[str, Any], letter: str, reference: Any) -> None:
    problem = SimpleNamespace(prompt="?", answer=answer, fields=fields)
    judge = MultipleChoice(reference=reference)
    count = 4 if len(fields) else 10
    scores = {chr(65 + place): judge(problem, f"The answer is ({chr(65 + place)}).") for place in range(count)}
    assert [each for each, score in scores.items() if score == 1.0] == [letter]


def test_reference_that_is_none() -> None:
    fields: dict[str, Any] = {"choices": ["Rome", "Paris"]}
    for answer, reference in (("Lyon", "auto"), ("C", "auto"), ("2", "auto"), ("Paris", "index"), ("B", "text")):
        with pytest.raises(ValueError, match="neither a letter"):
            MultipleChoice(reference=reference)(SimpleNamespace(prompt="?", answer=answer, fields=fields), "A")
    assert MultipleChoice(letters=3)(SimpleNamespace(prompt="?", answer="A", fields={}), "answer: D") == 0.0
    with pytest.raises(UserError, match="reference='letter' is not known"):
        MultipleChoice(reference="letter")  # type: ignore[arg-type]


def test_reading_takes_linear_time() -> None:
    started = time.process_time()
    for text in (
        "answer ",
        "A, ",
        "not A ",
        "(",
        "**",
        " \n",
        r"\boxed{",
        "is B ",
        "the correct answer is option ",
        "```",
    ):
        stated(text * (10_000 // len(text)), 4, CITIES)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("unit", ["\n", "\t\n", "-\n", "# \n", "A, ", "answer ", "#", "is not "])
def test_the_time_grows_with_the_length_and_no_faster(unit: str) -> None:
    problem = SimpleNamespace(prompt="Which?\nA) x\nB) y", answer="A", fields={})

    def seconds(letters: int) -> float:
        started = time.process_time()
        MultipleChoice()(problem, unit * (letters // len(unit)))
        return time.process_time() - started

    # Quadratic time would be 64 times as long.
    assert seconds(16_000) < 24 * max(seconds(2_000), 0.005)
