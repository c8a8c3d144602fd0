"""Conversations: turns of a language model in a session, with answers of a function inserted between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vantage.rollouts.tokens.completions import Completions
from vantage.rollouts.tokens.session import Session

Answers = Callable[[list[int], list[list[int]]], Sequence[Sequence[int] | None]]
"""`(rows, turns) -> answers`: indices of the rows whose turn ended, that turn's tokens, and the answers' tokens."""


def converse(session: Session, rows: int, answers: Answers, *, turns: int, max_new_tokens: int) -> Completions:
    """Decode the rows turn by turn, and append to each the answer to its turn.

    A row ends with a turn that has no answer (None), that `max_new_tokens` truncated, or that is its last one.

    Args:
        session: rows 0 .. `rows` - 1 before their first token.
        rows: number of rows.
        answers: called once a turn, with the rows whose turn ended by itself.
        turns: turns of the model at most.
        max_new_tokens: tokens of each turn after the first at most.

    Returns:
        The completions of all rows; the answers' tokens are `forced`.
    """
    live = list(range(rows))
    begins = [0] * rows
    for turn in range(turns):
        session.step()
        if turn == turns - 1:
            break
        held = session.result(live)
        ends = dict(zip(live, held.length.tolist(), strict=True))
        done = held.finished.nonzero().squeeze(-1).tolist()
        ended = [live[i] for i in done]
        spoken = [held.tokens[i, begins[row] : ends[row]].tolist() for i, row in zip(done, ended, strict=True)]
        said = answers(ended, spoken) if ended else []
        given = {row: ids for row, ids in zip(ended, said, strict=True) if ids is not None}
        left = [row for row in live if row not in given]
        if left:
            session.close(left)
        if not given:
            break
        live = list(given)
        for row, ids in given.items():
            begins[row] = ends[row] + len(ids)
        session.append(live, list(given.values()), max_new_tokens=max_new_tokens)
    return session.result()
