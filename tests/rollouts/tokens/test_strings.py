"""Stop strings: found where they end, within the token that ends them, and nowhere else."""

import pytest
import torch

from tests.rollouts.tokens.tiny import agrees, make
from vantage.rollouts.tokens import Sampling, TokenEngine
from vantage.rollouts.tokens.strings import StopStrings


def tokenizer(pieces):
    """A word-level tokenizer with the given vocabulary, which joins what it decodes."""
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<u>")
    )
    made.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<u>", clean_up_tokenization_spaces=False)


PIECES = ["<u>", "<e>", "<p>", "a", "b", "ab", "\n", "\n\n", " ", "x;", ";y", "ba"]


@pytest.mark.parametrize("backend", ["lean", "transformers"])
@pytest.mark.parametrize("stops", [("aba",), ("\n\n",), (";",), ("b ", "a;"), ("ax;",)])
def test_rows_end_with_the_first_token_that_completes_a_stop(backend, stops):
    words = tokenizer(PIECES)
    model = make(vocab_size=len(PIECES), scale=0.15)
    prefixes = [[3, 4], [5, 3, 3]]
    sampling = Sampling(max_new_tokens=40, stop_strings=stops)
    found = TokenEngine(model, words, eos_token_ids=(), backend=backend).generate(prefixes, 12, sampling, seed=1)
    agrees(model, found, prefixes)
    ends = 0
    for row in range(len(found)):
        tokens = found.tokens[row, : found.length[row]].tolist()
        texts = [words.decode(tokens[:size]) for size in range(1, len(tokens) + 1)]
        stopped = [any(stop in text for stop in stops) for text in texts]
        assert not any(stopped[:-1])
        assert bool(found.finished[row]) == stopped[-1]
        ends += stopped[-1]
    assert ends > 3


def test_a_stop_does_not_begin_before_tokens_that_were_put_in():
    words = tokenizer(PIECES)
    model = make(vocab_size=len(PIECES), scale=0.05)
    session = TokenEngine(model, words, eos_token_ids=()).open(
        [[3]], 40, Sampling(max_new_tokens=30, stop_strings=("ab",))
    )
    session.step(3)
    rows = session.active.nonzero().flatten().tolist()
    session.append(rows, [[3]] * len(rows))  # an "a": a "b" drawn next does not complete the stop
    session.step(1)
    result = session.result(rows)
    followed = result.tokens[:, 4] == 4
    assert followed.any()
    assert not result.finished[followed].any()


def test_only_tokens_that_could_end_a_stop_are_looked_at():
    words = StopStrings(tokenizer(PIECES))
    assert words.closing(("xb", "\n;")).nonzero().flatten().tolist() == [4, 5, 9, 10, 11]
    assert words.closing(("a ",)) is None
    tokens = torch.tensor([[3, 4, 3], [4, 4, 4]])
    before = [torch.tensor([11]), torch.tensor([], dtype=torch.int64)]
    found = words.ends(("aab",), before, tokens)
    assert found.tolist() == [[False, True, False], [False, False, False]]
