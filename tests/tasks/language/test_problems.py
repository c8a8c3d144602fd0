from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from hashlib import sha256

import numpy as np
import pytest

from vantage.core.errors import UserError
from vantage.tasks.language import countdown, space
from vantage.tasks.language.problems import (
    Addition,
    Countdown,
    Mixed,
    ModularChain,
    Problem,
    ProblemSet,
    Sorting,
    alphabet,
    problem_set,
)

SPECS = [
    "addition",
    "addition:digits=1",
    "addition:digits=4,scratchpad=true",
    "addition:digits=18",
    "countdown",
    "countdown:numbers=2,limit=100,target_max=1000",
    "countdown:numbers=4,limit=20",
    "countdown:numbers=5,limit=30,target_max=60",
    "modular",
    "modular:length=1,modulus=7",
    "modular:length=12,modulus=100",
    "sorting:length=3",
    "sorting:length=32",
    "sorting:length=10,symbols=2",
    "addition:digits=1..3",
]


@pytest.mark.parametrize("spec", SPECS)
def test_problems_are_distinct_disjoint_and_solved_by_their_solution(spec: str) -> None:
    problems = problem_set(spec)
    letters = set(alphabet(problems))
    assert letters <= set(alphabet())
    seen: dict[str, set[str]] = {}
    for split in ("train", "test"):
        size = problems.size(split)
        assert size > 0
        indices = np.unique(np.linspace(0, size - 1, min(size, 60)).astype(int)).tolist()
        found = [problems.problem(split, index) for index in indices]
        for problem in found:
            assert isinstance(problem.prompt, str)
            assert set(problem.prompt + problem.solution) <= letters
            assert problem.prompt.endswith("=")
            assert problem.solution.endswith(problem.answer)
            assert problem.fields["difficulty"] >= 1
            for good in (problem.solution, problem.answer, f" {problem.answer}\n"):
                assert problems.score(problem, good) == {"correct": 1.0}
            for bad in ("", "?", f"{problem.answer}0", f"{problem.answer};", f"0{problem.answer}", problem.prompt):
                assert problems.score(problem, bad) == {"correct": 0.0}, bad
        seen[split] = {str(problem.prompt) for problem in found}
        assert len(seen[split]) == len(found)
    assert not seen["train"] & seen["test"]


@pytest.mark.parametrize("spec", ["addition", "countdown", "sorting:length=4", "modular:length=2"])
def test_small_spaces_are_used_up(spec: str) -> None:
    problems = problem_set(spec)
    prompts = {
        split: [str(problems.problem(split, index).prompt) for index in range(problems.size(split))]
        for split in ("train", "test")
    }
    for each in prompts.values():
        assert len(set(each)) == len(each)
    assert not set(prompts["train"]) & set(prompts["test"])
    share = len(prompts["test"]) / sum(map(len, prompts.values()))
    assert share == pytest.approx(1 / 8, abs=0.02)
    if spec == "addition":
        assert sum(map(len, prompts.values())) == 90**2
        pairs = {split: {frozenset(text[:-1].split("+")) for text in each} for split, each in prompts.items()}
        assert not pairs["train"] & pairs["test"]  # a+b held out, b+a not trained on
    if spec == "countdown":
        expected = {
            f"{','.join(map(str, numbers))}:{target}="
            for numbers in itertools.combinations_with_replacement(range(1, 11), 3)
            for target in reached(numbers)
            if 1 <= target <= 50
        }
        assert set(prompts["train"]) | set(prompts["test"]) == expected


def reached(numbers: tuple[int, ...]) -> set[int]:
    """Every value of three numbers, by trying all orders, operations and brackets."""
    found = set()
    for a, b, c in itertools.permutations(numbers):
        for one, two in itertools.product("+-*", repeat=2):
            found |= {eval(f"({a}{one}{b}){two}{c}"), eval(f"{a}{one}({b}{two}{c})")}
    return found


def test_one_text_is_on_one_side_whatever_the_settings() -> None:
    narrow, wide = Countdown(target_max=20), Countdown(target_max=60)
    prompts = {
        (task, split): {str(task.problem(split, index).prompt) for index in range(task.size(split))}
        for task in (narrow, wide)
        for split in ("train", "test")
    }
    assert prompts[narrow, "train"] & prompts[wide, "train"]
    assert not prompts[narrow, "train"] & prompts[wide, "test"]
    assert not prompts[wide, "train"] & prompts[narrow, "test"]


def digest() -> str:
    texts = []
    for spec in SPECS:
        problems = problem_set(spec)
        for split in ("train", "test"):
            size = problems.size(split)
            texts.append(f"{spec} {split} {size}")
            texts += [repr(problems.problem(split, index)) for index in {0, 1, size // 2, size - 1} if index < size]
    return sha256("\n".join(texts).encode()).hexdigest()


def test_problems_are_the_same_in_every_process() -> None:
    light = "from vantage.rewards.deferred import defer; defer('vantage.core'); "
    code = f"{light}from tests.tasks.language.test_problems import digest; print(digest())"
    made = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77", "PATH": ""},
    )
    assert made.stdout.strip() == digest()


def test_problems_do_not_change_between_versions() -> None:
    """Changing these changes what every stored result was measured on."""
    examples = [
        ("addition:digits=3,scratchpad=true", "train", 0, "858+608=", "8+8=16;5+0+1=6;8+6=14;1466"),
        ("addition:digits=3,scratchpad=true", "test", 7, "121+122=", "1+2=3;2+2=4;1+1=2;243"),
        ("countdown", "train", 0, "4,8,9:40=", "(9-4)*8"),
        ("countdown", "test", 7, "3,3,3:6=", "3*3-3"),
        ("countdown:numbers=4,limit=20", "train", 0, "12,13,16,20:16=", "12*(16-13)-20"),
        ("countdown:numbers=4,limit=20", "test", 7, "2,9,17,18:46=", "2+9+17+18"),
        ("modular", "train", 0, "4*8-3+1%10=", "4*8=2;2-3=9;9+1=0;0"),
        ("modular", "test", 7, "7*6*6-7%10=", "7*6=2;2*6=2;2-7=5;5"),
        ("sorting:length=8", "train", 0, "65061693=", "01356669"),
        ("sorting:length=8", "test", 7, "83791391=", "11337899"),
        ("addition:digits=1..2", "train", 0, "1+6=", "7"),
        ("addition:digits=1..2", "test", 7, "95+31=", "126"),
    ]
    for spec, split, index, prompt, solution in examples:
        problem = problem_set(spec).problem(split, index)
        assert (problem.prompt, problem.solution) == (prompt, solution)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97, 1000, 4096, 4097])
def test_the_permutation_is_one(count: int) -> None:
    images = [space.permuted(number, count) for number in range(count)]
    assert sorted(images) == list(range(count))
    assert space.permutation(count).tolist() == images


def test_the_permutation_mixes_and_reaches_far() -> None:
    count = 10**36
    images = [space.permuted(number, count) for number in range(2000)]
    assert len(set(images)) == 2000
    assert all(0 <= image < count for image in images)
    assert np.mean([image / count for image in images]) == pytest.approx(0.5, abs=0.03)
    assert abs(np.corrcoef(np.array(images, float)[:-1], np.array(images, float)[1:])[0, 1]) < 0.08


def test_the_share_held_out() -> None:
    keys = [f"{number}+1=" for number in range(20_000)]
    assert np.mean([space.held_out(key) for key in keys]) == pytest.approx(1 / 8, abs=0.01)
    assert np.mean([space.held_out(key, 0.3) for key in keys]) == pytest.approx(0.3, abs=0.015)
    assert not any(space.held_out(key, 0.0) for key in keys)
    assert all(space.held_out(key, 1.0) for key in keys)
    # The same texts as for a smaller share, and more.
    assert all(space.held_out(key, 0.3) for key in keys if space.held_out(key, 0.1))


def test_any_problem_is_found_fast() -> None:
    for spec in ("addition:digits=12", "modular:length=8,modulus=30", "sorting:length=20"):
        problems = problem_set(spec)
        started = time.process_time()
        for index in range(0, problems.size("train"), 997):
            problems.problem("train", index)
        assert time.process_time() - started < 0.5


def test_addition() -> None:
    task = Addition(digits=2, scratchpad=True)
    for index in range(300):
        problem = task.problem("train", index)
        first, second = map(int, str(problem.prompt)[:-1].split("+"))
        assert problem.answer == str(first + second)
        units, tens, last = problem.solution.split(";")
        carry = (first % 10 + second % 10) // 10
        assert units == f"{first % 10}+{second % 10}={first % 10 + second % 10}"
        assert tens == f"{first // 10}+{second // 10}{'+1' if carry else ''}={first // 10 + second // 10 + carry}"
        assert last == problem.answer
        assert problem.fields["carries"] == carry + (first // 10 + second // 10 + carry) // 10
    assert task.score(Problem("58+67=", "125"), "8+7=15;5+6+1=12;125") == {"correct": 1.0}
    assert task.score(Problem("58+67=", "125"), "8+7=15;5+6+1=12;25") == {"correct": 0.0}


def test_modular_chain() -> None:
    task = ModularChain(length=4, modulus=13)
    for index in range(200):
        problem = task.problem("train", index)
        chain, modulus = str(problem.prompt)[:-1].split("%")
        value = ""
        for token in re.findall(r"^\d+|[+*-]\d+", chain):
            value = str(eval(f"{value}{token}") % int(modulus)) if value else token
        assert problem.answer == value
        steps = problem.solution.split(";")
        assert len(steps) == 5
        for step, following in itertools.pairwise(steps):
            left, right = step.split("=")
            assert eval(left) % 13 == int(right)
            assert following.startswith(right)


def test_sorting() -> None:
    task = Sorting(length=6, symbols=4)
    for index in range(100):
        problem = task.problem("test", index)
        assert problem.answer == "".join(sorted(str(problem.prompt)[:-1]))
        assert set(problem.answer) <= set("0123")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3*5+7", (22, [3, 5, 7])),
        (" (3 + 5) * 7 ", (56, [3, 5, 7])),
        ("3-5-7", (-9, [3, 5, 7])),
        ("3**5", None),
        ("-3+5", None),
        ("3/5", None),
        ("3//5", None),
        ("__import__('os')", None),
        ("1e3", None),
        ("3+", None),
        ("007+1", None),
        ("3,5", None),
        ("3(5)", None),
        ("", None),
        ("(" * 150 + "1" + ")" * 10, None),
        ("9" * 201, None),
        ("9*" * 99 + "9", (9**100, [9] * 100)),
        ("3+5;3*5", None),
    ],
)
def test_expressions_are_read_and_never_run(text: str, expected: object) -> None:
    assert countdown.evaluate(text) == expected


def test_countdown_reaches_what_it_says() -> None:
    rng = np.random.default_rng(0)
    for count, limit in ((2, 20), (3, 12), (3, 100), (4, 15), (5, 10)):
        for _ in range(6):
            numbers = tuple(sorted(rng.integers(1, limit + 1, count).tolist()))
            values = countdown.values(numbers)
            if count == 3:
                assert set(values.tolist()) == reached(numbers)
            for target in rng.choice(values, 5).tolist():
                text = countdown.express(numbers, target)
                value, used = countdown.evaluate(text) or (None, [])
                assert value == target
                assert sorted(used) == list(numbers)
    with pytest.raises(ValueError, match="cannot be made"):
        countdown.express((1, 1), 7)


def test_at_most_three_and_27_targets() -> None:
    """What numbers the candidates of two and three numbers by rank."""
    rng = np.random.default_rng(1)
    for count, most in ((2, 3), (3, 27)):
        found = [countdown.values(tuple(sorted(rng.integers(1, 101, count).tolist()))) for _ in range(3000)]
        assert max((values > 0).sum() for values in found) <= most


def test_countdown_scores_each_number_exactly_once() -> None:
    task = Countdown()
    problem = Problem("3,3,7:16=", "3*3+7", "", {"numbers": [3, 3, 7], "target": 16})
    scores = {
        text: task.score(problem, text)["correct"]
        for text in ("3*3+7", "7+3*3", "16", "3*7-3-3+1", "7+9", "3+7+6", "x")
    }
    assert scores == {"3*3+7": 1.0, "7+3*3": 1.0, "16": 0.0, "3*7-3-3+1": 0.0, "7+9": 0.0, "3+7+6": 0.0, "x": 0.0}
    twelve = Problem("3,7:10=", "3+7", "", {"numbers": [3, 7], "target": 10})
    assert task.score(twelve, "3+7+3-3")["correct"] == 0.0


def test_mixed_keeps_its_proportions_everywhere() -> None:
    parts = (Addition(digits=1), Addition(digits=2), Sorting(length=5))
    mixed = Mixed(parts, (1.0, 2.0, 5.0))
    size = mixed.size("train")
    assert size == pytest.approx(parts[0].size("train") * 8, abs=3)
    drawn = [mixed.problem("train", index) for index in range(size)]
    assert len({problem.prompt for problem in drawn}) == size
    for start in range(0, size - 80, 40):
        shares = np.bincount([problem.fields["part"] for problem in drawn[start : start + 80]], minlength=3) / 80
        assert shares == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.03)
    assert {problem.fields["difficulty"] for problem in drawn} == {1, 2, 5}
    assert all(mixed.score(problem, problem.solution) == {"correct": 1.0} for problem in drawn[:50])
    ranged = problem_set("addition:digits=2..3")
    assert isinstance(ranged, Mixed)
    assert ranged.parts == (Addition(2), Addition(3))
    assert set(alphabet(mixed)) == set(alphabet(Addition())) | set(alphabet(Sorting()))
    for weights, message in (((1.0,), "1 weights for 3"), ((1.0, 0.0, 1.0), "above 0")):
        with pytest.raises(UserError, match=message):
            Mixed(parts, weights)
    with pytest.raises(UserError, match="parts is empty"):
        Mixed(())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adition", "unknown task 'adition'; did you mean addition"),
        ("addition:digit=3", r"has no setting 'digit'; did you mean digits\? \(settings: digits, scratchpad\)"),
        ("addition:digits=19", "digits=19 is out of range: 1 to 18"),
        ("addition:digits=0", "is out of range: 1 to 18"),
        ("addition:digits=two", "'two' is not an integer"),
        ("addition:digits", "cannot read 'digits'"),
        ("addition:digits=2,digits=3", "given twice"),
        ("addition:scratchpad=perhaps", "true or false"),
        ("addition:digits=5..2", "write low..high"),
        ("countdown:numbers=7", "is out of range: 2 to 6"),
        ("modular:modulus=1", "is out of range: 2 to 100"),
        ("sorting:length=33", "is out of range: 2 to 32"),
    ],
)
def test_bad_specifications_say_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        problem_set(spec)


def test_bad_indices_and_splits() -> None:
    for problems in (Addition(), Mixed((Addition(),))):
        with pytest.raises(UserError, match="no problem 10000000"):
            problems.problem("train", 10_000_000)
        with pytest.raises(UserError, match="no problem -1"):
            problems.problem("train", -1)
        with pytest.raises(UserError, match=r"unknown split 'tset'.*did you mean test"):
            problems.size("tset")


def test_the_alphabet_is_known_for_generated_sets_alone() -> None:
    assert alphabet() == " %()*+,-0123456789:;=KPS"
    other: ProblemSet = object.__new__(type("Other", (), {"name": "mine"}))
    with pytest.raises(UserError, match="only a generated task"):
        alphabet(other)
