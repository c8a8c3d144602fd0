"""Which fenced block of a completion is its program."""

from __future__ import annotations

import time

import pytest

from vantage.rewards.fences import Block, answer_block, fenced_blocks
from vantage.rewards.programs import PYTHON, _is_program

RIGHT = "def f(n):\n    return n * n"
WRONG = "def f(n):\n    return 0"


@pytest.mark.parametrize(
    "completion",
    [
        f"```python\n{RIGHT}\n```",
        f"Install it:\n```bash\npip install x\n```\nThen:\n```python\n{RIGHT}\n```",
        f"```python\n{RIGHT}\n```\nIt prints:\n```\n9\n```",
        f"```\n{RIGHT}\n```\nIt prints:\n```\n9\n```",
        f"```\n{RIGHT}\n```\nIt prints:\n```text\nf(3) = 9\n```",
        f"```\n{RIGHT}\n```\nIt prints\n```\nthe square, nine\n```",
        f"```python\n{RIGHT}\n```\n```bash\npython solution.py\n```",
        f"```Python\r\n{RIGHT}\r\n```\r\n".replace("\n    ", "\r\n    "),
        f"```python\n{RIGHT}",
        f"```python\n{RIGHT}\n``",
        f"```python\n{RIGHT}```",
        f"Here it is: ```python\n{RIGHT}\n```",
        f"```python   \n{RIGHT}\n```   ",
        f"``` python\n{RIGHT}\n```",
        f"```py\n{RIGHT}\n```",
        f"```python3 title=x.py\n{RIGHT}\n```",
        f"```{{.python .numberLines}}\n{RIGHT}\n```",
        f"~~~python\n{RIGHT}\n~~~",
        f"~~~\n{RIGHT}\n~~~~",
        f"````python\n{RIGHT}\n````",
        f"````markdown\n```python\n{WRONG}\n```\n````\n```python\n{RIGHT}\n```",
        f"1. First:\n   ```python\n   {RIGHT}\n   ```".replace("\n    return", "\n       return"),
        f"1. First:\n\n\t```python\n\t{RIGHT}\n\t```".replace("\n    return", "\n\t    return"),
        f"```python\n    {RIGHT}\n```".replace("\n    return", "\n        return"),
        f"```python\n{WRONG}\n```\nThat is wrong. Better:\n```python\n{RIGHT}\n```",
        f"```python\n{RIGHT}\n```\nor, faster,\n```python\ndef f(n):\n    return",
        f"<think>Try ```python\n{WRONG}\n</think>\n```python\n{RIGHT}\n```",
        f"{RIGHT}\n```\nThis is what was asked.",
        f"{RIGHT}\n```",
        RIGHT,
    ],
)
def test_the_program_is_found(completion: str) -> None:
    assert answer_block(completion, PYTHON, _is_program).strip() == RIGHT


def test_blocks() -> None:
    text = 'a\n```js\n1\n```\nb `c` ```d``` wow~~~\n~~~~\n~~~\n2\n~~~~\n```\n"""\n3\n'
    assert fenced_blocks(text) == [Block("js", "1", True), Block("", "~~~\n2", True), Block("", '"""\n3\n', False)]
    assert fenced_blocks("no fence, not even `one`") == []
    assert answer_block("```js\nf()\n```", PYTHON, _is_program) == "```js\nf()\n```"


def test_reading_takes_linear_time() -> None:
    started = time.process_time()
    for text in ("`", "```\n", "~~~x\n", " ", "```python\n", "x```", "```py ", "\r\n", "    ```\n\t"):
        fenced_blocks(text * (50_000 // len(text)))
    assert time.process_time() - started < 2
