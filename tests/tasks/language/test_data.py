from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from vantage.core.errors import UserError
from vantage.rewards.verifiers import Numeric
from vantage.tasks.language.data import ProblemTable, load_problems, prompt_key
from vantage.tasks.language.pairs import Demonstration, Pair, load_demonstrations, load_pairs
from vantage.tasks.language.problem import Problem
from vantage.tasks.language.reading import read_rows

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k"
ROWS = [{"question": f"What is {i}+1?", "answer": str(i + 1), "level": i % 3} for i in range(200)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def every(table: ProblemTable) -> list[Problem]:
    return [*table.train, *table.test]


def test_json_lines(tmp_path: Path) -> None:
    table = load_problems(write(tmp_path / "data.jsonl", ROWS))
    assert table.columns == {"prompt": "question", "answer": "answer"}
    assert table.size("train") + table.size("test") == 200
    assert 8 <= table.size("test") <= 35
    assert sorted(problem.prompt for problem in every(table)) == sorted(row["question"] for row in ROWS)
    problem = table.problem("train", 0)
    assert problem == Problem("What is 0+1?", "1", "", {"level": 0}) or problem.fields["level"] in (0, 1, 2)
    assert table.score(problem, f" {problem.answer} ") == {"correct": 1.0}
    assert table.score(problem, "no") == {"correct": 0.0}
    assert len(load_problems(tmp_path / "data.jsonl", limit=7, held_out=0.0).train) == 7


def test_every_format_gives_the_same(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    rows = [{"question": 'a, "b"\nc ünd', "answer": "1"}, {"question": "d", "answer": "2"}]
    write(tmp_path / "a.jsonl", rows)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write((tmp_path / "a.jsonl").read_text("utf-8"))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes() + b"\n\n")
    (tmp_path / "a.json").write_text(json.dumps(rows), "utf-8")
    (tmp_path / "held.json").write_text(json.dumps({"version": 1, "data": rows}), "utf-8")
    for name, comma in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["question", "answer"], delimiter=comma)
            writer.writeheader()
            writer.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": data, "extra": data.select([1])}).save_to_disk(str(tmp_path / "splits"))
    expected = [Problem(row["question"], row["answer"]) for row in rows]
    for name in (
        "a.jsonl",
        "a.jsonl.gz",
        "bom.jsonl",
        "a.json",
        "held.json",
        "a.csv",
        "a.tsv",
        "a.parquet",
        "saved",
        "splits",
    ):
        table = load_problems(tmp_path / name, held_out=0.0)
        assert list(table.train) == expected, name
        assert table.size("test") == 0
    assert list(load_problems(tmp_path / "splits", held_out=1.0, split="extra").test) == expected[1:]
    with pytest.raises(UserError, match=r"unknown split 'extr' .*did you mean extra"):
        load_problems(tmp_path / "splits", split="extr")
    with pytest.raises(UserError, match="a file has no splits"):
        load_problems(tmp_path / "a.jsonl", split="train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"prompt": "a", "answer": "b"}\n{"prompt": "a" "answer"}\n',
            "a.jsonl, line 2: not JSON at column 16: Expecting ','",
        ),
        (
            "a.jsonl",
            b'{"prompt": "a", "answer": "b"}\n\n[1]\n',
            "a.jsonl, line 3: expected an object of named fields, found a list",
        ),
        ("a.jsonl", b'{"prompt": "\xff", "answer": "b"}\n', "a.jsonl, line 1: not UTF-8 at byte 13"),
        ("a.jsonl", b'{"prompt": "a", "answer": null}\n', "line 1: the field 'answer' is null"),
        (
            "a.jsonl",
            b'{"prompt": "a", "answer": 1}\n{"prompt": "a"}\n',
            r"line 2: the field 'answer' is missing \(fields: prompt\)",
        ),
        ("a.jsonl", b'{"prompt": " ", "answer": 1}\n', "line 1: the field 'prompt' is empty"),
        ("a.jsonl", b'{"prompt": "a", "answer": " "}\n', "line 1: the answer is empty"),
        (
            "a.jsonl",
            b'{"text": "a", "Answer": "b"}\n',
            r"line 1: no field for the prompt: name it, prompt=FIELD \(fields: text, Answer\)",
        ),
        (
            "a.jsonl",
            b'{"question": "a", "reply": "b"}\n',
            r"no field for the answer: name it, answer=FIELD \(fields: question, reply\)",
        ),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1: (not JSON|JSON that is nested too deeply)"),
        ("a.jsonl", b"", "there are no rows in it"),
        ("a.jsonl", b"\n\n", "there are no rows in it"),
        ("a.json", b"[]", "there are no rows in it"),
        ("a.json", b"3", "expected a list of objects, found a number"),
        ("a.json", b'{"a": [], "b": []}', "found 2 lists"),
        ("a.json", b'[\n{"a": 1},\n{"a" 1}]', "not JSON at line 3, column 6"),
        ("a.csv", b"prompt,answer\na,b\nc\n", "a.csv, line 3: 1 cells under 2 columns"),
        ("a.csv", b"prompt,prompt\na,b\n", "two columns have the same name"),
        ("a.csv", b'prompt,answer\n"a,b\n', "a.csv, line 2: unexpected end of data"),
        ("a.csv", b"prompt,answer\na,b\n\xff,c\n", "a.csv, line 3: not UTF-8"),
        ("a.parquet", b"not parquet", "not a parquet file"),
        ("a.jsonl.gz", b"not packed", "line 1: Not a gzipped file"),
        ("a.txt", b"hello", "cannot read .txt .*known: .csv, .json"),
    ],
)
def test_broken_files_say_where_and_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_problems(tmp_path / name)


def test_what_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"there is no file .*tran.jsonl; did you mean train.jsonl"):
        load_problems(tmp_path / "tran.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="a folder that `datasets` has not saved"):
        load_problems(tmp_path / "folder")
    with pytest.raises(UserError, match=r"no field 'quest' for the prompt; did you mean question\? \(fields: question"):
        load_problems(tmp_path / "train.jsonl", {"prompt": "quest"})
    with pytest.raises(UserError, match="unknown role 'promt' in fields; did you mean prompt"):
        load_problems(tmp_path / "train.jsonl", {"promt": "question"})
    with pytest.raises(UserError, match="held_out=2 is out of range"):
        load_problems(tmp_path / "train.jsonl", held_out=2)
    with pytest.raises(UserError, match="did you mean numeric"):
        load_problems(tmp_path / "train.jsonl", verifier="numerik")


def test_rows_are_read_as_they_go(tmp_path: Path) -> None:
    """A broken line costs nothing before it is reached, and `limit` ends the reading."""
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n{broken\n")
    rows = read_rows(path)
    assert next(rows) == (f"{path}, line 1", ROWS[0])
    with pytest.raises(UserError, match="line 2"):
        next(rows)
    assert len(every(load_problems(path, limit=1))) == 1


def test_fields_are_found_or_named(tmp_path: Path) -> None:
    row = {"problem": "p", "solution": "worked: 3", "answer": 3, "input": "other", "tags": ["x"]}
    path = write(tmp_path / "data.jsonl", [row])
    found = load_problems(path, held_out=0.0).train[0]
    assert (found.prompt, found.answer, found.solution) == ("p", "3", "worked: 3")
    assert found.fields == {"solution": "worked: 3", "input": "other", "tags": ["x"]}
    named = load_problems(path, {"prompt": "input", "answer": "tags"}, held_out=0.0).train[0]
    assert (named.prompt, named.answer) == ("other", '["x"]')


def test_answers_after_a_marker(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{"question": "q", "answer": "2*3 = 6\n#### 1,006"}])
    found = load_problems(path, answer_after="####", held_out=0.0, verifier="numeric")
    assert found.train[0] == Problem("q", "1,006", "2*3 = 6\n#### 1,006", {})
    assert found.score(found.train[0], "It is 1006.") == {"correct": 1.0}
    with pytest.raises(UserError, match="line 1: the field 'answer' has no '@@' for the answer to follow"):
        load_problems(path, answer_after="@@")


def test_messages_are_prompts(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?", "name": "x"}]
    found = load_problems(write(tmp_path / "a.jsonl", [{"messages": chat, "answer": "2"}]), held_out=0.0).train[0]
    assert found.prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    bad: list[tuple[Any, str]] = [
        ([], "the field 'prompt' is a list; expected a list of messages"),
        (["hi"], r"message 1 of 'prompt' needs role and content \(found: a text\)"),
        ([{"role": "user"}], r"needs role and content \(found: role\)"),
        ([{"role": "usr", "content": "x"}], "unknown role 'usr' in .* message 1 of 'prompt'; did you mean user"),
        ([{"role": "user", "content": 3}], "content of message 1 of 'prompt' is a number, not a text"),
        ([*chat, {"role": "assistant", "content": "2"}], "end with the assistant's"),
    ]
    for prompt, message in bad:
        with pytest.raises(UserError, match=message):
            load_problems(write(tmp_path / "b.jsonl", [{"prompt": prompt, "answer": "2"}]))


def test_the_same_prompt_falls_on_the_same_side_whatever_else_is_there(tmp_path: Path) -> None:
    doubled = [row for row in ROWS for _ in range(2)] + [
        {**row, "question": f"  {row['question'].upper()}"} for row in ROWS
    ]
    first = load_problems(write(tmp_path / "a.jsonl", doubled), held_out=0.3)
    second = load_problems(write(tmp_path / "b.jsonl", ROWS[::-3]), held_out=0.3)
    sides = [{prompt_key(problem) for problem in side} for side in (first.train, first.test)]
    assert not sides[0] & sides[1]
    assert len(first.train) + len(first.test) == 600
    assert {prompt_key(problem) for problem in second.train} <= sides[0]
    assert {prompt_key(problem) for problem in second.test} <= sides[1]
    smaller = load_problems(tmp_path / "a.jsonl", held_out=0.1)
    assert {prompt_key(problem) for problem in smaller.test} <= sides[1]


def test_a_separate_test_file(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", ROWS[:5])
    table = load_problems(tmp_path / "train.jsonl", test=tmp_path / "test.jsonl")
    assert (table.size("train"), table.size("test"), table.dropped) == (195, 5, 5)


def test_demonstrations(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = write(tmp_path / "a.jsonl", [{"messages": chat}])
    assert load_demonstrations(path) == [Demonstration(chat[:1], "hello")]
    path = write(
        tmp_path / "b.jsonl", [{"prompt": "2+2=", "completion": "4"}, {"prompt": chat[:1], "completion": chat[1:]}]
    )
    assert load_demonstrations(path) == [Demonstration("2+2=", "4"), Demonstration(chat[:1], "hello")]
    path = write(tmp_path / "c.jsonl", [{"q": "2+2=", "messages": "x", "a": "4"}])
    assert load_demonstrations(path, {"prompt": "q", "completion": "a"}) == [Demonstration("2+2=", "4")]
    for row, message in (
        ({"messages": chat[:1]}, "must end with the assistant's"),
        ({"prompt": "a", "completion": " "}, "the field 'completion' is empty"),
        ({"prompt": "a", "completion": None}, "the field 'completion' is null"),
        ({"prompt": "a"}, r"no field for the completion: name it, completion=FIELD \(fields: prompt\)"),
    ):
        with pytest.raises(UserError, match=message):
            load_demonstrations(write(tmp_path / "d.jsonl", [row]))


def test_pairs(tmp_path: Path) -> None:
    ask = [{"role": "user", "content": "hi"}]
    good, bad = ({"role": "assistant", "content": text} for text in ("hello", "go away"))
    rows = [
        {"prompt": "hi", "chosen": "hello", "rejected": "go away"},
        {"prompt": ask, "chosen": [good], "rejected": [bad]},
    ]
    expected = [Pair("hi", "hello", "go away"), Pair(ask, "hello", "go away")]
    assert load_pairs(write(tmp_path / "a.jsonl", rows)) == expected
    whole = [{"chosen": [*ask, good], "rejected": [*ask, bad]}]
    assert load_pairs(write(tmp_path / "b.jsonl", whole)) == expected[1:]
    # A text beside conversations: the template writes both, and nothing of the conversation is lost.
    system, early = {"role": "system", "content": "be kind"}, [*ask, {"role": "assistant", "content": "yes?"}]
    for prompt, before, shared in (
        ("hi", [], ask),
        ("hi", ask, ask),
        ("hi", [system, *ask], [system, *ask]),
        ("hi", [system, *early, *ask], [system, *early, *ask]),
        ("hi", [early[1], *ask], [*early, *ask]),
        (ask, [system, *ask], [system, *ask]),
        ([system, *ask], ask, [system, *ask]),
        ([system, *ask], [early[1], *ask], [system, *early, *ask]),
    ):
        sides = {"prompt": prompt, "chosen": [*before, good], "rejected": [*before, bad]}
        assert load_pairs(write(tmp_path / "e.jsonl", [sides])) == [Pair(shared, "hello", "go away")]
        texts = {"prompt": prompt, "completion": [*before, good]}
        path = write(tmp_path / "f.jsonl", [texts])
        assert load_demonstrations(path) == [Demonstration(shared, "hello")]
        problem = load_problems(path, held_out=0.0).train[0]
        assert (problem.prompt, problem.answer) == (shared, "hello")
    # What the prompt says beside a conversation is never dropped: it stands in the conversation, or joins it, or is an error.
    later = [system, *early, {"role": "user", "content": "go on"}]
    joined: tuple[tuple[Any, Any, Any], ...] = (
        ("hi", [system], [system, *ask]),
        (" hi\n", [system, *early, *ask], [system, *early, *ask]),
        ("say: hi there", [{"role": "user", "content": "hi there"}], [{"role": "user", "content": "hi there"}]),
        ("be kind\nuser: hi\nassistant:", [system, *ask], [system, *ask]),
        (ask, later, later),
    )
    for prompt, before, shared in joined:
        sides = {"prompt": prompt, "chosen": [*before, good], "rejected": [*before, bad]}
        assert load_pairs(write(tmp_path / "g.jsonl", [sides])) == [Pair(shared, "hello", "go away")]
    told = r"line 2: the prompt in the field 'prompt' \('bye'\) is none of the messages before the answer in {} \('hi'\): correct"
    for before in (ask, [system, *ask], [*ask, early[1], *ask]):
        for prompt in ("bye", [{"role": "user", "content": "bye"}]):
            sides = {"prompt": prompt, "chosen": [*before, good], "rejected": [*before, bad]}
            fitting = {"prompt": "hi", "chosen": [*ask, good], "rejected": [*ask, bad]}
            with pytest.raises(UserError, match=told.format("chosen and rejected")):
                load_pairs(write(tmp_path / "h.jsonl", [fitting, sides]))
            fitting, texts = (
                {"prompt": "hi", "completion": [*ask, good]},
                {"prompt": prompt, "completion": [*before, good]},
            )
            for load in (load_demonstrations, load_problems):
                with pytest.raises(UserError, match=told.format("completion")):
                    load(write(tmp_path / "h.jsonl", [fitting, texts]))
            told_of = [{"prompt": "hi", "messages": [*ask, good]}, {"prompt": prompt, "messages": [*before, good]}]
            with pytest.raises(UserError, match=told.format("'messages'")):
                load_demonstrations(write(tmp_path / "h.jsonl", told_of))
    other = [{"role": "system", "content": "be rude"}, {"role": "user", "content": "bye"}]
    path = write(tmp_path / "h.jsonl", [{"prompt": other, "chosen": [system, good], "rejected": [system, bad]}])
    with pytest.raises(UserError, match=r"\('bye'\) is none of the messages before the answer in chosen and rejected"):
        load_pairs(path)
    # The conversation of an answer counts beside a worked solution in text, too.
    both = {"prompt": "hi", "answer": [system, *ask, good], "solution": "hello there"}
    (problem,) = load_problems(write(tmp_path / "i.jsonl", [both]), held_out=0.0).train
    assert (problem.prompt, problem.answer, problem.solution) == ([system, *ask], "hello", "hello there")
    named = load_pairs(
        write(tmp_path / "c.jsonl", [{"q": "hi", "w": "a", "l": "b"}]), {"prompt": "q", "chosen": "w", "rejected": "l"}
    )
    assert named == [Pair("hi", "a", "b")]
    for row, message in (
        ({"prompt": "a", "chosen": "b"}, "no field for the rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same text"),
        ({"chosen": "b", "rejected": "c"}, "no field for the prompt"),
        ({"chosen": [*ask, good], "rejected": [{"role": "user", "content": "yo"}, bad]}, "do not begin with the same"),
        ({"prompt": "a", "chosen": ask, "rejected": "c"}, "must end with the assistant's"),
        ({"prompt": "a", "chosen": [*ask, good], "rejected": "c"}, "one is a text and the other messages"),
        ({"prompt": "a", "chosen": [system, good], "rejected": [bad]}, "do not begin with the same messages"),
    ):
        with pytest.raises(UserError, match=message):
            load_pairs(write(tmp_path / "d.jsonl", [row]))


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the GSM8K files are not on this machine")
def test_gsm8k_as_it_is() -> None:
    table = load_problems(
        GSM8K / "train.jsonl", answer_after="####", test=GSM8K / "test.jsonl", verifier=Numeric(after="####")
    )
    assert table.columns == {"prompt": "question", "answer": "answer"}
    assert table.size("train") + table.dropped == 7473
    assert table.size("test") == 1319
    for problem in every(table):
        assert table.score(problem, problem.solution) == {"correct": 1.0}
        assert table.score(problem, f"#### {float(problem.answer.replace(',', '')) + 1}") == {"correct": 0.0}
        assert "<<" not in problem.answer
        assert len(problem.answer) < 20


def test_the_input_of_an_instruction_is_part_of_the_question(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Name it.", "output": "a cat"},
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Sing.", "input": " ", "output": "la"},
    ]
    asked = ["Name it.", "Add.\n\n1 and 2", "Sing."]
    path = write(tmp_path / "alpaca.jsonl", rows)
    assert [one.prompt for one in load_demonstrations(path)] == asked
    assert [one.prompt for one in load_problems(path, held_out=0.0).train] == asked
    named = load_demonstrations(path, {"prompt": "instruction", "completion": "output"})
    assert [one.prompt for one in named] == ["Name it.", "Add.", "Sing."]
    pairs = [{"instruction": "Add.", "input": "1 and 2", "chosen": "3", "rejected": "4"}]
    assert load_pairs(write(tmp_path / "pairs.jsonl", pairs)) == [Pair("Add.\n\n1 and 2", "3", "4")]
