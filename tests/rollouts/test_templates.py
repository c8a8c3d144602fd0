from __future__ import annotations

import pytest

from vantage.core import UserError
from vantage.rollouts.templates import Template


def test_text_and_messages_are_rewritten() -> None:
    template = Template("{prompt} Draft: {draft}")
    assert template("1+1=", draft="{3}") == "1+1= Draft: {3}"
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "second"},
    ]
    found = template(chat, draft="x")
    assert [message["content"] for message in found] == ["Be brief.", "first", "yes", "second Draft: x"]
    assert chat[3]["content"] == "second"


def test_a_template_is_checked_before_it_is_filled() -> None:
    Template("{draft[0]}, {prompt!r:>8} {{literal}}").check("here", ("prompt", "draft"))
    with pytest.raises(UserError, match=r"here: .* lacks \{draft\}; it must have \{prompt\}, \{draft\}"):
        Template("{prompt}").check("here", ("prompt", "draft"))


def test_what_cannot_be_filled_is_refused() -> None:
    with pytest.raises(UserError, match="given are: prompt, draft"):
        Template("{prompt} {hint}")("a", draft="b")
    with pytest.raises(UserError, match="not a prompt of type int"):
        Template("{prompt}")(7)
    with pytest.raises(UserError, match="no message of the user"):
        Template("{prompt}")([{"role": "system", "content": ""}])
