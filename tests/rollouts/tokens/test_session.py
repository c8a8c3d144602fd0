"""Sessions: stepping, forking a live cache, tokens put in, resuming, closing."""

import random

import pytest
import torch

from tests.rollouts.tokens.tiny import agrees, make, same
from vantage.core.errors import UserError
from vantage.rollouts.tokens import Sampling, TokenEngine, lean

PREFIXES = [[3, 4, 5], [7], list(range(8, 60))]


@pytest.fixture(params=["lean", "transformers"])
def backend(request):
    return request.param


def opened(backend, kind="Llama", n=2, **settings):
    model = make(kind)
    settings = {"max_new_tokens": 24, "temperature": 0.9, **settings}
    return model, TokenEngine(model, backend=backend, eos_token_ids=()).open(PREFIXES, n, Sampling(**settings), seed=9)


def test_steps_add_up_to_a_generation(backend):
    model, session = opened(backend)
    whole = TokenEngine(model, backend=backend, eos_token_ids=()).generate(
        PREFIXES, 2, Sampling(max_new_tokens=24, temperature=0.9), seed=9
    )
    assert session.step(1).all()
    assert session.result().tokens.shape == (6, 1)
    assert session.step(7).all()
    assert not session.step().any()
    same(session.result(), whole)


def test_a_fork_keeps_what_it_is_told_and_draws_on_by_itself(backend):
    model, session = opened(backend)
    session.step(10)
    copies = session.fork([0, 0, 5, 5, 2], [10, 4, 0, 9, 1])
    assert copies == [6, 7, 8, 9, 10]
    parent = session.result([0, 0, 5, 5, 2])
    found = session.result(copies)
    assert found.length.tolist() == [10, 4, 0, 9, 1]
    for row, size in enumerate(found.length.tolist()):
        assert found.tokens[row, :size].tolist() == parent.tokens[row, :size].tolist()
        assert torch.equal(found.logp[row, :size], parent.logp[row, :size])
    session.step()
    result = session.result()
    assert result.length.tolist() == [24] * 11
    assert len({tuple(row) for row in result.tokens.tolist()}) == 11
    agrees(model, result, PREFIXES, 0.9)


def test_forks_with_the_seed_of_their_row_repeat_it(backend):
    _, session = opened(backend)
    session.step()
    result = session.result()
    session.fork([3, 4], [0, 7], seeds=result.seed[[3, 4]])
    session.step()
    again = session.result([6, 7])
    assert torch.equal(again.tokens, result.tokens[[3, 4]])


def test_tokens_put_in_are_marked_and_what_follows_is_drawn_after_them(backend):
    model, session = opened(backend, "Qwen3")
    session.step(5)
    session.append([1, 4], [[20, 21, 22, 23], [24]])
    session.step(5)
    session.append([4, 0, 5], [[30, 31], [32], [33] * 12])
    session.step()
    result = session.result()
    agrees(model, result, PREFIXES, 0.9)
    assert result.tokens[1, 5:9].tolist() == [20, 21, 22, 23]
    assert result.forced[1].nonzero().flatten().tolist() == [5, 6, 7, 8]
    assert result.forced[4].nonzero().flatten().tolist() == [5, 11, 12]
    assert result.length.tolist() == [24] * 6
    assert not (result.mask & result.forced).any()
    assert int(result.mask.sum()) == 24 * 6 - int(result.forced.sum())


def test_a_row_that_ended_goes_on_after_a_tools_answer(backend):
    model = make()
    engine = TokenEngine(model, backend=backend, eos_token_ids=range(40))
    session = engine.open(PREFIXES, 3, Sampling(max_new_tokens=40), seed=2)
    session.step()
    first = session.result()
    assert first.finished.all()
    session.append(range(9), [[50 + row] * (row % 3 + 1) for row in range(9)])
    assert session.active.all()
    session.step()
    result = session.result()
    agrees(model, result, PREFIXES)
    for row in range(9):
        size = int(first.length[row])
        assert result.tokens[row, :size].tolist() == first.tokens[row, :size].tolist()
        assert result.tokens[row, size : size + row % 3 + 1].tolist() == [50 + row] * (row % 3 + 1)
        assert result.length[row] > size + row % 3 + 1


def test_a_row_that_its_limit_cut_is_resumed(backend):
    model, session = opened(backend, max_new_tokens=6)
    session.step()
    assert session.result().length.tolist() == [6] * 6
    session.append([0, 3], [[], []], max_new_tokens=5)
    session.append([1], [[40]], max_new_tokens=2)
    session.step()
    result = session.result()
    assert result.length.tolist() == [11, 9, 6, 11, 6, 6]
    agrees(model, result, PREFIXES, 0.9)
    whole = TokenEngine(model, backend=backend, eos_token_ids=()).generate(
        PREFIXES, 2, Sampling(max_new_tokens=11, temperature=0.9), seed=9
    )
    assert torch.equal(result.tokens[[0, 3]], whole.tokens[[0, 3]])


def test_closed_rows_stay_in_the_result(backend):
    _, session = opened(backend)
    session.step(4)
    session.close([0, 1, 2])
    session.step()
    session.close([5])
    assert session.result().length.tolist() == [4, 4, 4, 24, 24, 24]
    for call in (lambda: session.append([0], [[3]]), lambda: session.fork([5]), lambda: session.close([1])):
        with pytest.raises(UserError, match="closed"):
            call()


def test_calls_that_make_no_sense_are_refused(backend):
    _, session = opened(backend)
    session.step(3)
    for call, message in (
        (lambda: session.fork([9]), "rows=\\[9\\]"),
        (lambda: session.fork([]), "one at least"),
        (lambda: session.fork([0], [4]), "lengths"),
        (lambda: session.append([0, 0], [[3], [3]]), "no row twice"),
        (lambda: session.append([0], [[3], [4]]), "one list a row"),
        (lambda: session.append([0], [[97]]), "vocabulary"),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.parametrize("trial", range(6))
def test_any_order_of_operations_is_the_same_on_every_backend(trial, monkeypatch):
    monkeypatch.setattr(lean, "sharing_pays", lambda *_: trial % 2 == 0)
    model = make(("Llama", "Qwen2", "Qwen3")[trial % 3], seed=trial)
    results = []
    for backend, replay in (("lean", False), ("lean", True), ("transformers", False)):
        chosen = random.Random(trial)
        prefixes = [[chosen.randrange(3, 97) for _ in range(chosen.choice([1, 2, 9, 30, 31, 50]))] for _ in range(5)]
        engine = TokenEngine(model, backend=backend, eos_token_ids=range(4))
        engine.graphs = replay  # off CUDA: the captured step's operations, one by one
        session = engine.open(prefixes, [2, 0, 3, 1, 2], Sampling(max_new_tokens=25, top_k=50), seed=trial)
        for _ in range(12):
            total = len(session.length)
            rows = [row for row in range(total) if not session.closed[row]]
            picked = chosen.sample(rows, min(len(rows), chosen.randrange(1, 4)))
            what = chosen.choice(["step", "step", "fork", "append", "close"])
            if what == "step":
                session.step(chosen.randrange(1, 6))
            elif what == "fork":
                cuts = [chosen.randrange(0, int(session.length[row]) + 1) for row in picked]
                session.fork(picked, cuts if chosen.random() < 0.7 else None)
            elif what == "append":
                texts = [[chosen.randrange(3, 97) for _ in range(chosen.randrange(9))] for _ in picked]
                session.append(picked, texts, max_new_tokens=chosen.choice([None, 4]))
            elif len(rows) > 3:
                session.close(picked[:1])
        session.step()
        result = session.result()
        agrees(model, result, prefixes)
        results.append(result)
    same(results[0], results[1])
    same(results[0], results[2])
